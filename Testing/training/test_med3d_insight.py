"""Med3DInsight's pre-training with both objectives, heads on top of it, and masks on the scan's own voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.files import read
from MedVLMReaderLib.models import segmenter
from MedVLMReaderLib.models.med3d_insight import Med3DInsight, Sizes
from MedVLMReaderLib.models.pyramid import Classifier, EncoderSizes, Segmenter
from MedVLMReaderLib.models.segmenter import MaskModel, MaskRecipe, at_voxels, shown
from MedVLMReaderLib.training.engine import Settings, curve, fit
from MedVLMReaderLib.training.med3d_insight import (
    Arrays,
    Insight,
    LabelLoss,
    MaskLoss,
    Objective,
    shuffled,
    taught,
    together,
)  # fmt: skip
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

SIZES = EncoderSizes("resnet", (4, 4, 6, 8, 10), (1, 1, 1, 1), shape=(16, 32, 32))
SETTINGS = Settings(steps=2, batch=2, learning_rate=1e-3, log_every=1, cpu=True)


def volumes(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 1, *SIZES.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("objective", "parts"),
    [("contrastive", {"picture", "caption"}), ("transport", {"picture", "caption", "rebuilt"})],
)
def test_both_objectives_train_and_log_their_parts(tmp_path: Path, objective: Objective, parts: set[str]) -> None:
    torch.manual_seed(0)
    network = Med3DInsight(Sizes(SIZES, width=16, depth=1, heads=2, queries=3, places=9, embedding=6))
    before = {name: one.detach().clone() for name, one in network.encoder.named_parameters()}
    rows = Arrays({"volumes": volumes(), "plane": np.array([0, 1, 2, 0]), "slice_number": np.array([1, 9, 20, 5]),
                   "picture": torch.randn(4, 6), "caption": torch.randn(4, 6)}, ["a", "b", "c", "d"])  # fmt: skip
    assert fit(Insight(network, objective), rows, together, SETTINGS, tmp_path)
    assert parts <= set(curve(tmp_path)[-1])
    assert all(not torch.equal(one, before[name]) for name, one in network.encoder.named_parameters())


def test_what_was_learned_goes_on_in_heads_that_train_on_masks_and_labels(tmp_path: Path) -> None:
    network = Med3DInsight(Sizes(SIZES, width=16, depth=1, heads=2, queries=3, embedding=6))
    masks, labels = Segmenter(SIZES, 3), Classifier(SIZES, 2)
    for head in (masks, labels):
        taught(network, head)
        torch.testing.assert_close(dict(head.encoder.state_dict()), dict(network.encoder.state_dict()))
    rows = Arrays({"volumes": volumes(), "masks": (volumes() * 3).long().clamp(max=2)}, list("abcd"))
    assert fit(MaskLoss(masks), rows, together, SETTINGS, tmp_path / "masks")
    rows = Arrays({"volumes": volumes(), "labels": torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])}, list("abcd"))
    assert fit(LabelLoss(labels), rows, together, SETTINGS, tmp_path / "labels")


def test_weights_of_the_classes_are_no_part_of_what_is_saved(tmp_path: Path) -> None:
    rows = Arrays({"volumes": volumes(), "masks": (volumes() * 3).long().clamp(max=2)}, list("abcd"))
    assert fit(MaskLoss(Segmenter(SIZES, 3), torch.tensor([0.5, 1.0, 1.5])), rows, together, SETTINGS, tmp_path)
    assert all(name.startswith("segmenter.") for name in load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("n", [2, 3, 17])
def test_shuffled_captions_leave_none_in_its_place(n: int) -> None:
    captions = torch.arange(n)[:, None]
    moved = shuffled(captions, seed=n)
    assert sorted(moved[:, 0].tolist()) == list(range(n))
    assert not (moved == captions).any()


# ---- Masks on scans -------------------------------------------------------------------------------------------------


def scan() -> Volume:
    grid = oblique_grid((21, 30, 26), (8.0, 5.0, 6.0), axes=(1, 2, 0), signs=(1, -1, 1))
    return Volume(np.random.default_rng(0).integers(-900, 500, grid.shape).astype(np.int16), grid, "CT", "made")


def model(classes: int = 3, recipe: MaskRecipe | BlockRecipe | None = None, head: int = 32) -> MaskModel:
    torch.manual_seed(0)
    names = ["background", "liver", "stone"][:classes]
    return MaskModel(Segmenter(SIZES, classes, head), SIZES, names, recipe or MaskRecipe())


@pytest.mark.parametrize(("recipe", "head"), [(MaskRecipe(), 32), (BlockRecipe(SIZES.shape, plane="axial"), 8)])
def test_masks_lie_on_the_scans_own_voxels_and_come_back_from_a_folder(
    tmp_path: Path, recipe: MaskRecipe | BlockRecipe, head: int
) -> None:
    ours, volume = model(recipe=recipe, head=head), scan()
    labels = ours.labels(volume)
    assert labels.grid.same_as(volume.grid)
    assert set(np.unique(labels.values)) <= {0, 1, 2}
    ours.save(tmp_path)
    again = segmenter.load(tmp_path)
    assert np.array_equal(again.labels(volume).values, labels.values)
    found = again.found(labels)
    share = sum(one.millilitres for one in found) * 1000 / (8 * 5 * 6)
    assert share == pytest.approx((labels.values > 0).sum())
    assert all(bool(volume.grid.contains(one.centre)) for one in found)


def test_a_thing_is_marked_where_it_lies_whatever_the_storage_order() -> None:
    volume, recipe = scan(), MaskRecipe((8.0, 5.0, 5.0))
    bright = np.full(volume.values.shape, -1000, np.int16)
    bright[5:9, 12:17, 3:9] = 600
    for stored in (replace(volume, values=bright), replace(volume, values=bright).transpose((2, 0, 1)).flip(1)):
        pictures = shown(stored, recipe)
        back = at_voxels((pictures.values > 0.5).astype(np.uint8), pictures.grid, stored.grid)
        overlap = ((back > 0) & (stored.values > 0)).sum() * 2 / ((back > 0).sum() + (stored.values > 0).sum())
        assert overlap > 0.8


def test_the_command_writes_a_label_map_and_says_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model().save(tmp_path / "model")
    scan().save(tmp_path / "scan.nii.gz")
    command = ["segment", str(tmp_path / "scan.nii.gz"), "--model", str(tmp_path / "model"), "--out"]
    assert main([*command, str(tmp_path / "labels.nii.gz"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    labels = read(tmp_path / "labels.nii.gz")
    assert labels.grid.same_as(scan().grid, 1e-2)
    names = {("background", "liver", "stone")[n] for n in np.unique(labels.values) if n}
    assert {one["name"] for one in told["found"]} == names
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no")
    assert main([*command, str(tmp_path / "labels.nii.gz")]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": "ms_vlm"}, "holds a 'ms_vlm', which gives no masks"),
        ({"classes": ["background", "liver"]}, "do not fit its config.json: 'head"),
        ({"classes": "liver"}, "no list of at least two classes"),
        ({"run": "code"}, "'run', which is not allowed"),
        ({"recipe": {"block": {"shape": [4, 4, 4], "run": 1}}}, "a recipe that cannot be used"),
        ({"recipe": {"boxes": {}}}, "a recipe that cannot be used"),
    ],
)
def test_a_folder_of_another_system_or_size_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ReaderError, match=said):
        segmenter.load(tmp_path)
