"""Captions of slices, a small teacher, pre-training on them, heads on a few studies: each at a tiny size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe, block
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.models.med3d_insight import Sizes
from MedVLMReaderLib.models.pyramid import EncoderSizes, new_encoder
from MedVLMReaderLib.training import downstream, insight, slice_captions, teacher
from MedVLMReaderLib.training.downstream import ORGANS, Labelled
from MedVLMReaderLib.training.engine import Settings
from MedVLMReaderLib.training.med3d_insight import Objective
from MedVLMReaderLib.training.slice_captions import captions, picture_of, slab
from MedVLMReaderLib.volume import PLANES, Volume
from Testing.made_scans import oblique_grid

RECIPE = BlockRecipe((8, 16, 16), window_ct=(-1000.0, 600.0), plane="axial")
ENCODER = EncoderSizes("resnet", (4, 4, 4, 4, 4), (1, 1, 1, 1), shape=(8, 16, 16))
FEW = Settings(steps=2, batch=2, learning_rate=1e-3, log_every=1, cpu=True)


def scan(seed: int = 0) -> Volume:
    grid = oblique_grid((21, 30, 26), (8.0, 5.0, 6.0), axes=(1, 2, 0), signs=(1, -1, 1))
    return Volume(np.random.default_rng(seed).integers(-900, 500, grid.shape).astype(np.int16), grid, "CT", "made")


# ---- Captions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
def test_a_slab_holds_the_place_of_its_slice_and_is_as_thick_as_asked(axis: int) -> None:
    volume = scan()
    shown = block(volume, RECIPE)
    for n in (0, shown.grid.shape[axis] // 2, shown.grid.shape[axis] - 1):
        part = slab(volume, shown.grid, PLANES[axis], n, thick_mm=30.0)
        index = (np.array(shown.grid.shape) - 1) / 2
        index[axis] = n
        inside = part.grid.to_index(shown.grid.to_world(index))
        assert -1 <= inside[axis] <= part.grid.shape[axis]
        assert part.grid.shape[axis] >= 2
        assert part.grid.shape[axis] * part.grid.spacing[axis] <= 30 + 2 * part.grid.spacing[axis]
        others = [other for other in range(3) if other != axis]
        whole = volume.as_seen("axial").grid.shape
        assert all(part.grid.shape[other] == whole[other] for other in others)


def test_captions_are_kept_and_only_missing_ones_are_asked_for(tmp_path: Path) -> None:
    scan().save(tmp_path / "a.nii.gz")
    scan(1).save(tmp_path / "b.nii.gz")
    asked: list[tuple[int, ...]] = []

    def load() -> slice_captions.Ask:
        def ask(part: Volume) -> str:
            asked.append(part.grid.shape)
            return f"answer {len(asked)}"

        return ask

    names, path = [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")], tmp_path / "kept" / "captions.jsonl"
    first = list(captions(names[:1], RECIPE, load, path, each=2))
    assert [(one.plane, one.text) for one in first[0]][:3] == [("axial", "answer 1"), ("axial", "answer 2"),
                                                               ("coronal", "answer 3")]  # fmt: skip
    path.write_text(path.read_text() + '{"volume": "cut o')
    both = list(captions(names, RECIPE, load, path, each=2))
    assert both[0] == first[0]
    assert len(asked) == 12
    assert list(captions(names, RECIPE, load, path, each=2)) == both


def test_the_picture_of_a_slice_is_that_of_its_plane() -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert picture_of(values, "axial", 1).tolist() == values[1].tolist()
    assert picture_of(values, "coronal", 2).tolist() == values[:, 2].tolist()
    assert picture_of(values, "sagittal", 3).tolist() == values[:, :, 3].tolist()


# ---- The teacher ----------------------------------------------------------------------------------------------------


def test_a_small_teacher_learns_from_slices_and_captions_and_a_saved_one_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures, texts = [rng.random((5, 9)).astype(np.float32) for _ in range(4)], ["liver", "heart, spine", "liver", "-"]
    sizes = teacher.TeacherSizes(side=16, patch=8, width=8, depth=1, heads=2, embedding=6)
    ours = teacher.taught(pictures, texts, sizes, FEW, tmp_path / "clip")
    assert ours is not None
    seen, told = ours.of_pictures(pictures), ours.of_captions(texts)
    assert seen.shape == told.shape == (4, ours.embedding)
    torch.testing.assert_close(told[0], told[2])
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(4))
    again = teacher.taught(pictures, texts, sizes, FEW, tmp_path / "clip")
    assert again is not None
    torch.testing.assert_close(again.of_pictures(pictures), seen)
    ours.network.save_pretrained(tmp_path / "saved")
    ours.tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(teacher.load(tmp_path / "saved").of_captions(texts), told)
    with pytest.raises(ReaderError, match="has no config"):
        teacher.load(tmp_path / "clip")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ReaderError, match="holds no CLIP"):
        teacher.load(tmp_path / "saved")


# ---- Pre-training ---------------------------------------------------------------------------------------------------


def plan(**more: Any) -> insight.Plan:
    sizes = Sizes(ENCODER, width=8, depth=1, heads=2, inner=8, queries=2, places=9)
    small = teacher.TeacherSizes(side=16, patch=8, width=8, depth=1, heads=2, embedding=6)
    return insight.Plan(RECIPE, sizes, FEW, each=1, teacher_sizes=small, teacher_training=FEW, **more)


def told(folder: Path, ours: insight.Plan) -> insight.Told:
    names = [str(folder / f"{n}.nii.gz") for n in range(3)]
    for n, name in enumerate(names):
        scan(n).save(name)
    answers = iter(f"word{n}" for n in range(9))
    return insight.told(names, ours, lambda: lambda _: next(answers), folder / "run")


def test_slices_without_a_caption_take_the_nearest_of_those_that_were_told(tmp_path: Path) -> None:
    ours = plan(more=2)
    said = told(tmp_path, ours)
    taught = insight.taught(said, ours, tmp_path / "teacher")
    assert taught is not None
    rows = insight.targets(said, taught, ours.more, seed=0)
    assert rows["volumes"].shape == (3, 1, *RECIPE.shape)
    assert rows["plane"].tolist() == [[0, 1, 2, 0, 0, 1, 1, 2, 2]] * 3
    known = taught.of_captions(said.texts)
    torch.testing.assert_close(rows["caption"][:, :3].flatten(0, 1), known)
    for seen, caption in zip(rows["picture"][:, 3:].flatten(0, 1), rows["caption"][:, 3:].flatten(0, 1), strict=True):
        torch.testing.assert_close(caption, known[(known @ seen).argmax()])


def test_the_control_has_the_same_slices_and_captions_and_none_in_its_place(tmp_path: Path) -> None:
    said = told(tmp_path, plan())
    mixed = said.mixed(seed=1)
    assert sorted(mixed.texts) == sorted(said.texts)
    assert all(a != b for a, b in zip(mixed.texts, said.texts, strict=True))
    assert [[(one.plane, one.slice) for one in ours] for ours in mixed.captions] == [
        [(one.plane, one.slice) for one in ours] for ours in said.captions
    ]


@pytest.mark.parametrize("objective", insight.OBJECTIVES)
def test_a_pre_trained_encoder_is_kept_and_read_again(tmp_path: Path, objective: Objective) -> None:
    ours = plan(objective=objective)
    said = told(tmp_path, ours)
    assert insight.train(said, ours, tmp_path / "run")
    sizes, recipe, tensors = insight.load(tmp_path / "run" / "encoder")
    assert (sizes, recipe) == (ENCODER, RECIPE)
    again = insight.pretrained(said, ours, tmp_path / "run")
    assert again is not None
    for name, one in again.items():
        torch.testing.assert_close(one, tensors[name])
    (tmp_path / "run" / "encoder" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ReaderError, match="no pre-trained encoder that can be read"):
        insight.load(tmp_path / "run" / "encoder")


TINY = """
system = "med3dinsight"
[data]
cases = "cases.csv"
[captions]
each = 1
questions = ["Which organs are in the scan?"]
[recipe]
shape = [8, 16, 16]
[encoder]
kind = "resnet"
widths = [4, 4, 4, 4, 4]
[transformer]
width = 8
depth = 1
heads = 2
queries = 2
[teacher]
side = 16
patch = 8
width = 8
depth = 1
heads = 2
steps = 1
batch = 2
cpu = true
[training]
objective = "contrastive"
steps = 1
batch = 2
cpu = true
"""


def test_a_file_pre_trains_with_captions_of_the_built_in_model(tmp_path: Path) -> None:
    for n in range(2):
        scan(n).save(tmp_path / f"{n}.nii.gz")
    (tmp_path / "cases.csv").write_text("volume,report\n0.nii.gz,none is read\n1.nii.gz,nor this\n")
    (tmp_path / "tiny.toml").write_text(TINY)
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 0
    assert len((tmp_path / "run" / "captions.jsonl").read_text().splitlines()) == 6
    assert insight.load(tmp_path / "run" / "encoder")[0].widths == ENCODER.widths


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"contrastive"', '"triplet"', "the objective 'triplet'. Known: transport, contrastive"),
        ("[teacher]", '[teacher]\nfolder = "clip"', "leave its other keys out"),
        ("[transformer]", "[transformer]\nlayers = 3", "the key 'layers', which does not exist"),
        ("side = 16", "sides = 16", "[teacher] has the key 'sides', which does not exist"),
        ("[captions]", "[captions]", "1 scans cannot fill a batch of 2"),
        ("[8, 16, 16]", "[8, 0, 16]", "a field that is not allowed"),
        ('"resnet"', '"unet"', "No encoder 'unet'"),
    ],
)
def test_a_file_that_cannot_be_trained_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    scan().save(tmp_path / "0.nii.gz")
    (tmp_path / "cases.csv").write_text("volume,report\n0.nii.gz,none is read\n")
    (tmp_path / "bad.toml").write_text(TINY.replace(old, new))
    assert main(["train", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "run")]) == 1
    assert said in capsys.readouterr().err


# ---- Heads ----------------------------------------------------------------------------------------------------------


def test_made_masks_lie_on_the_blocks_own_cells(tmp_path: Path) -> None:
    recipe = replace(RECIPE, shape=(16, 32, 32))
    one = downstream.labelled(930_000, recipe, tmp_path)
    assert one.grey.shape == one.mask.shape == (16, 32, 32)
    assert len(one.labels) == len(downstream.LABEL_NAMES)
    lungs = (one.mask == ORGANS.index("lung right")) | (one.mask == ORGANS.index("lung left"))
    body = one.mask == ORGANS.index("liver")
    if lungs.any() and body.any() and not one.labels[downstream.LABEL_NAMES.index("MR")]:
        assert one.grey[lungs].mean() < one.grey[body].mean() - 40
    again = downstream.labelled(930_000, recipe, tmp_path)
    assert np.array_equal(again.mask, one.mask)
    assert again.spacing == one.spacing


def test_heads_train_from_a_pre_trained_encoder_and_are_measured_on_other_studies(tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (8, 16, 16)
    studies = [
        Labelled(f"s{n}", rng.integers(0, 255, shape).astype(np.uint8), rng.integers(0, 3, shape).astype(np.uint8),
                 rng.integers(0, 2, len(downstream.LABEL_NAMES)).astype(np.uint8), (4.0, 2.0, 2.0))
        for n in range(4)
    ]  # fmt: skip
    torch.manual_seed(1)
    start = new_encoder(ENCODER).state_dict()
    masks = downstream.segmenter(ENCODER, studies[:2], FEW, tmp_path / "masks", start=start)
    labels = downstream.classifier(ENCODER, studies[:2], FEW, tmp_path / "labels", start=start)
    assert masks is not None
    assert labels is not None
    figures = downstream.dice(masks, studies[2:])["dice"]
    assert 0 <= figures["all"]["value"] <= 1
    assert figures["liver"]["value"] is None
    assert 0 <= downstream.accuracy(labels, studies[2:])["accuracy"]["all"]["value"] <= 1


def test_small_organs_count_for_more_and_absent_ones_not_without_end() -> None:
    masks = torch.zeros(1, 10, 10, 10, dtype=torch.long)
    masks[0, 0] = ORGANS.index("liver")
    masks[0, 1, 0] = ORGANS.index("spine")
    weights = downstream.balance(masks)
    assert weights.mean() == pytest.approx(1)
    background, liver, spine, heart = (weights[ORGANS.index(one)] for one in ("background", "liver", "spine", "heart"))
    assert background < liver < spine < heart
    assert heart < 4 * spine
