"""M3D-CLIP: the published tensors, a published folder, and vectors that depend on what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.m3d_clip import M3DClip, Sizes, load
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.weights import Checkpoint, fingerprint
from Testing.published import listed, needs_parity, shapes
from Testing.tiny_m3d import write_tiny_m3d_clip
from Testing.tiny_scan import tiny_scan


def opened(folder: Path) -> M3DClip:
    return load(Checkpoint(folder, "tiny-clip", fingerprint(folder)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> M3DClip:
    return opened(write_tiny_m3d_clip(tmp_path_factory.mktemp("models") / "clip"))


@needs_parity
def test_the_published_size_has_exactly_the_published_tensors():
    with torch.device("meta"):
        assert shapes(M3DClip(Sizes())) == listed("m3d_clip")


def test_a_scan_and_a_text_become_unit_vectors(pair):
    image, texts = pair.of_volume(tiny_scan()), pair.of_texts(["nodule", "stone in left"])
    assert image.shape == (64,)
    assert texts.shape == (2, 64)
    torch.testing.assert_close(image.norm(), torch.tensor(1.0))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_another_scan_is_another_vector_and_another_storage_order_is_not(pair):
    scan = tiny_scan()
    image = pair.of_volume(scan)
    assert (pair.of_volume(tiny_scan(1)) - image).abs().max() > 1e-4
    torch.testing.assert_close(pair.of_volume(scan.transpose((2, 0, 1)).flip(1)), image, atol=1e-5, rtol=0)


def test_a_text_means_the_same_alone_and_beside_a_longer_one(pair):
    both = pair.of_texts(["nodule", "there is no stone in left"])
    torch.testing.assert_close(pair.of_texts(["nodule"])[0], both[0], atol=1e-5, rtol=0)


def test_words_are_read_in_lower_case_and_by_their_parts(pair):
    assert pair.tokenizer.convert_ids_to_tokens(pair.tokenizer("Nodule.")["input_ids"]) == [
        "[CLS]", "nod", "##ule", ".", "[SEP]",
    ]  # fmt: skip


def test_a_text_that_is_too_long_is_read_up_to_the_limit(pair):
    assert pair.of_texts(["stone " * 100]).shape == (1, 64)


def test_the_scale_is_used_without_an_exponential(pair):
    images, texts = torch.eye(64)[:2], torch.eye(64)[:3]
    expected = torch.eye(2, 3) * pair.logit_scale
    torch.testing.assert_close(pair.logits(images, texts), expected)


def test_a_score_weighs_a_finding_against_its_absence(pair):
    image = pair.of_volume(tiny_scan())
    present, absent = pair.of_texts(["There is stone.", "There is no stone."])
    expected = torch.sigmoid(pair.logit_scale * (image @ present - image @ absent))
    found = pair.scores(image, ["nodule", "stone"])
    assert found.shape == (2,)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pos_embed": "conv"}, "pos_embed 'conv'; only 'perceptron'"),
        ({"num_layers": 3}, "lacks the tensor 'vision_encoder.blocks.2"),
        ({"num_layers": 1}, "beyond what the model needs.*vision_encoder.blocks.1"),
        ({"img_size": [8, 64, 90]}, "cannot be cut into patches"),
        ({"hidden_size": 128}, "128"),
        ({"run_this": "code"}, "field 'run_this', which is not allowed"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, said):
    with pytest.raises(ReaderError, match=said):
        opened(write_tiny_m3d_clip(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "neither tokenizer.json nor vocab.txt"),
        ("one\ntwo\n", r"no \[UNK\]"),
        ("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(50))]), "has 5. tokens, the model 40"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, text, said):
    write_tiny_m3d_clip(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    if text:
        (tmp_path / "vocab.txt").write_text(text)
    with pytest.raises(ReaderError, match=said):
        opened(tmp_path)


def test_a_scan_of_one_grey_level_has_a_vector_too(pair):
    scan = tiny_scan()
    flat = Volume(np.zeros(scan.grid.shape, np.int16), scan.grid, "CT")
    assert torch.isfinite(pair.of_volume(flat)).all()
    assert torch.isfinite(pair.of_volume(replace(flat, modality="MR"))).all()
