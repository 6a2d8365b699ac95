"""The SigLIP pair: the published numbers and tensors, a published folder, and scans and texts in one space."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.siglip import NAMES, SiglipPair, Sizes, load, sigmoid_loss
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint, renamed
from Testing.made_scans import oblique_grid
from Testing.parity import results
from Testing.parity_med3dvlm import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes
from Testing.tiny_med3dvlm import TINY_PAIR, write_tiny_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pair"
    write_tiny_pair(path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> SiglipPair:
    return load(Checkpoint(folder, "pair", "1"))


def scan() -> Volume:
    grid = oblique_grid((24, 36, 30), (5.0, 4.0, 3.0), axes=(1, 2, 0), signs=(1, -1, 1))
    return Volume(np.random.default_rng(0).integers(-20, 100, grid.shape).astype(np.int16), grid, "CT", "made")


@needs_parity
def test_the_published_numbers_come_out():
    (result,) = results(PARITY, KINDS, "dec_clip_nano")
    assert result.right, result


@needs_parity
def test_the_published_size_has_exactly_the_published_tensors():
    with torch.device("meta"):
        ours = shapes(SiglipPair(Sizes()))
    theirs = {n: torch.empty(s, device="meta") for n, s in listed("med3dvlm_dec_clip_siglip").items()}
    assert {name: tuple(tensor.shape) for name, tensor in renamed(theirs, NAMES).items()} == ours


def test_a_published_folder_gives_unit_vectors_of_scans_and_texts(pair):
    image = pair.of_volume(scan())
    texts = pair.of_texts(["a stone in the left kidney", "no nodule", "a stone"])
    assert image.shape == (TINY_PAIR.width,)
    assert texts.shape == (3, TINY_PAIR.width)
    torch.testing.assert_close(torch.cat([image[None], texts]).norm(dim=1), torch.ones(4))
    logits = pair.logits(image[None], texts)
    torch.testing.assert_close(logits[0], texts @ image * pair.t_prime.exp() + pair.bias)


def test_a_text_is_the_same_alone_and_beside_a_longer_one(pair):
    together = pair.of_texts(["no nodule", "a stone in the left kidney in the left kidney"])
    torch.testing.assert_close(together[0], pair.of_texts(["no nodule"])[0], atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_the_model_reads_is_cut_off(pair):
    sizes, words = TINY_PAIR, ["stone"] * 5000
    assert pair.longest == sizes.positions
    torch.testing.assert_close(pair.of_texts([" ".join(words)]), pair.of_texts([" ".join(words[:2000])]))


def test_the_window_of_the_screen_counts(pair):
    assert not torch.equal(pair.of_volume(scan()), pair.of_volume(scan(), View(1500.0, -600.0, (0.0, 0.0, 0.0))))


def test_the_loss_of_pairs_that_belong_together_is_small():
    apart = torch.full((4, 4), -20.0)
    assert sigmoid_loss(apart.fill_diagonal_(20.0)) < 1e-6
    assert sigmoid_loss(torch.zeros(4, 4)).item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_encoder": "vit3d"}, r"vision_encoder 'vit3d'; only 'dcformer'"),
        ({"model_type": "clip"}, r"model_type 'clip'; only 'dec_clip'"),
        ({"custom": "code"}, r"the field 'custom', which is not allowed"),
        ({"input_size": [2000, 192, 64]}, r"holds no pair"),
    ],
)
def test_a_folder_that_is_no_such_pair_is_told(tmp_path, change, said):
    write_tiny_pair(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ReaderError, match=said):
        load(Checkpoint(tmp_path, "pair", "1"))
