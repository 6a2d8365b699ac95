"""Looking again at a reading: attention beside relevance, edited text, mixed tokens, readings that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError, calibration
from MedVLMReaderLib.calibration import Calibration
from MedVLMReaderLib.looking import EDITED
from MedVLMReaderLib.models.layers import Perceiver
from MedVLMReaderLib.models.ms_vlm import MSVLM, SeenPlanes
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.study import Message, Seen
from Testing.tiny_model import TINY_TEXT


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture
def seen(reader, body_ct) -> Seen:
    return reader.see(body_ct)


@pytest.fixture
def reading(reader, seen) -> Reading:
    return reader.report(seen, Options(heatmaps=False))


def test_attention_is_a_second_way_beside_the_models_own(reader, seen, body_ct):
    report = reader.report(seen)
    both = reader.look(seen, report, method="attention")
    assert [trace.method for trace in both.traces] == ["relevance", "attention"]
    np.testing.assert_array_equal(both.heatmap(1).values, report.heatmap(1).values)
    heat = both.heatmap(1, "attention")
    assert heat.values.sum() == pytest.approx(1, abs=1e-4)
    assert body_ct.grid.contains(heat.peak())
    assert heat.notes[0].startswith("Attention of tiny")


def test_without_a_method_it_is_the_models_own_and_the_same_numbers(reader, seen):
    report = reader.report(seen)
    again = reader.look(seen, report)
    np.testing.assert_allclose(again.traces[0].weights, report.traces[0].weights, rtol=1e-4, atol=1e-9)
    assert len(again.traces) == 1


def test_the_share_of_attention_on_the_image_is_kept_and_told(reader, seen, reading, tmp_path):
    found = reader.look(seen, reading, method="attention")
    shares = found.traces[0].how["image_share"]
    assert len(shares) == len(found.traces[0].spans) == 3
    assert all(0 < share < 1 for share in shares)
    assert found.heatmaps(0)[0].notes[1] == f"{shares[0]:.0%} of it lies on the image."
    found.save(tmp_path)
    assert Reading.load(tmp_path).traces[0].how == found.traces[0].how


def test_looking_again_replaces_what_was_seen_by_the_same_method(reader, seen, reading):
    one = reader.look(seen, reading, method="attention", layers=[0], heads=[0])
    other = reader.look(seen, one, method="attention", layers=[0], heads=[1])
    assert len(other.traces) == 1
    assert other.traces[0].how["heads"] == [[0, 1]]
    assert not np.allclose(one.traces[0].weights, other.traces[0].weights)


def test_relative_attention_is_another_map_with_the_same_share_on_the_image(reader, seen, reading):
    plain = reader.look(seen, reading, method="attention")
    held = reader.look(seen, reading, method="attention", relative=True)
    assert held.traces[0].how["relative"]
    assert held.traces[0].how["image_share"] == plain.traces[0].how["image_share"]
    assert not np.allclose(held.heatmap(0).values, plain.heatmap(0).values)


@pytest.mark.parametrize("method", ["attention", "relevance"])
def test_edited_text_is_looked_up_and_said_to_be_edited(reader, seen, reading, method):
    text = "  Findings: A stone of 9 mm in the left kidney.\n"
    edited = reader.look(seen, reading, method=method, text=text)
    assert edited.text == text
    assert edited.notes[-1] == EDITED
    assert edited.options["edited"]
    assert [trace.method for trace in edited.traces] == [method]
    assert edited.heatmap("left kidney").values.sum() == pytest.approx(1, abs=1e-4)
    assert reader.look(seen, edited, method=method, text="Clear.").notes.count(EDITED) == 1


def test_earlier_turns_change_what_is_attended_to(reader, seen, reading):
    history = (Message("user", "Is there a stone?"), Message("assistant", "Yes."))
    alone = reader.look(seen, reading, method="attention").traces[0]
    after = reader.look(seen, reading, method="attention", history=history).traces[0]
    assert np.mean(after.how["image_share"]) != pytest.approx(np.mean(alone.how["image_share"]), rel=1e-3)


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "written by other, revision"),
        ({"revision": "0"}, "revision 0; loaded is tiny"),
        ({"grids": ()}, "of another scan"),
    ],
)
def test_a_reading_of_another_model_or_scan_is_refused(reader, seen, reading, body_ct, change, message):
    other = replace(reading, traces=(), **change)
    with pytest.raises(ReaderError, match=message):
        reader.look(seen, other)
    with pytest.raises(ReaderError, match=message):
        reader.verify(body_ct, seen, other, 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "saliency"}, "no method 'saliency'.*relevance, attention"),
        ({"text": " \n"}, "no words"),
        ({"text": "xq" * 400}, r"this model reads 512"),
        ({"method": "attention", "layers": [7]}, "layers 0 to 0 with heads 0 to 1"),
        ({"method": "attention", "heads": [2]}, "were asked for"),
    ],
)
def test_what_cannot_be_looked_for_is_told(reader, seen, reading, how, message):
    with pytest.raises(ReaderError, match=message):
        reader.look(seen, reading, **how)


def test_words_that_are_not_in_the_answer_are_told_and_so_is_a_way_that_was_not_looked_up(reader, seen, reading):
    found = reader.look(seen, reading, method="attention")
    with pytest.raises(ReaderError, match="does not say 'left lung'"):
        found.heatmap("left lung", "attention")
    with pytest.raises(ReaderError, match="Recorded with this answer: attention"):
        found.heatmap(0, "relevance")


def test_a_reading_whose_arrays_are_missing_is_told(reader, seen, reading, tmp_path):
    reader.look(seen, reading, method="attention").save(tmp_path)
    (tmp_path / "arrays.npz").unlink()
    with pytest.raises(ReaderError, match=r"no arrays\.npz"):
        Reading.load(tmp_path)


# Heads that were found to localise


def calibrated(reader: Reader, **changes) -> Calibration:
    said = Calibration("tiny", reader.model.revision, ((0, 1),), "two heads that localise", (1, 4), 9, 0.5)
    return replace(said, **changes)


@pytest.fixture
def beside(reader):
    """Where the tiny model's calibration lies; removed afterwards."""
    path = reader.checkpoint.folder / calibration.FILE
    yield path
    path.unlink(missing_ok=True)


def test_heads_that_localise_are_used_where_they_are_known(reader, seen, reading, beside):
    assert reader.calibration is None
    beside.write_text(calibrated(reader).to_json())
    assert reader.calibration == calibrated(reader)
    how = reader.look(seen, reading, method="attention").traces[0].how
    assert (how["heads"], how["chosen"]) == ([[0, 1]], "two heads that localise")
    assert reader.look(seen, reading, method="attention", heads=[0]).traces[0].how["heads"] == [[0, 0]]


def test_words_count_as_far_as_the_image_decides_them_where_that_was_found_to_point_better(
    reader, seen, reading, beside
):
    beside.write_text(calibrated(reader).to_json())
    alike = reader.look(seen, reading, method="attention").traces[0]
    beside.write_text(calibrated(reader, weighed=True).to_json())
    weighed = reader.look(seen, reading, method="attention").traces[0]
    assert (alike.how["weighed"], weighed.how["weighed"]) == (False, True)
    assert not np.allclose(alike.weights, weighed.weights, rtol=1e-3)


def test_a_calibration_of_before_words_could_be_weighed_is_read(reader, beside):
    plain = json.loads(calibrated(reader).to_json())
    del plain["weighed"]
    beside.write_text(json.dumps(plain))
    assert reader.calibration == calibrated(reader)


def test_heads_of_other_weights_are_passed_over(reader, beside):
    beside.write_text(calibrated(reader, revision="other").to_json())
    assert reader.calibration is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "heads": [], "seeds": [1, 2]}'])
def test_damaged_heads_are_told_with_the_file(reader, beside, content):
    beside.write_text(content)
    with pytest.raises(ReaderError, match=r"calibration\.json' is damaged"):
        _ = reader.calibration


def test_heads_of_a_newer_version_are_told(reader, beside):
    beside.write_text(calibrated(reader).to_json().replace('"format": 1', '"format": 2'))
    with pytest.raises(ReaderError, match="newer version"):
        _ = reader.calibration


# Mixed tokens


def test_latents_are_spread_over_the_patches_they_read_and_the_sum_stays(reader, seen):
    weights = np.random.default_rng(0).random((2, 3, len(seen.tokens))).astype(np.float32)
    spread = seen.token_map.spread
    assert spread is not None
    cells = spread(weights)
    assert cells.shape == (2, 3, seen.token_map.cells)
    assert (cells >= 0).all()
    np.testing.assert_allclose(cells.sum(-1), weights.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(spread(2 * weights[0]), 2 * cells[0], rtol=1e-4, atol=1e-7)
    assert isinstance(seen, SeenPlanes)
    kept = np.concatenate([_flags(plane) for plane in seen.planes])
    assert 0 < kept.sum() < kept.size
    assert (cells[..., ~kept] == 0).all()


def _flags(plane) -> np.ndarray:
    flags = np.zeros(int(np.prod(plane.grid.shape)), bool)
    flags[plane.kept.numpy()] = True
    return flags


def test_a_latent_that_reads_one_patch_lies_in_its_cell(reader, seen, monkeypatch):
    model = reader.model
    assert isinstance(model, MSVLM)
    assert isinstance(seen, SeenPlanes)
    first = seen.planes[0]
    patch = len(first.kept) // 2

    def reach(_self: Perceiver, media: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(seen.tokens), media.shape[1])
        out[:, first.grid.shape[0] + patch] = 1
        return out

    monkeypatch.setattr(Perceiver, "reach", reach)
    (cells,) = model.spread(np.ones((1, len(seen.tokens)), np.float32), seen.planes)
    assert cells.argmax() == int(first.kept[patch])
    assert cells[cells.argmax()] == pytest.approx(len(seen.tokens))


def test_where_latents_reach_is_where_the_perceiver_attends():
    torch.manual_seed(0)
    perceiver = Perceiver(16, 2, 5, 2, 8).eval()
    media = torch.randn(1, 30, 16)
    with torch.no_grad():
        even = perceiver.reach(media)
        for attend, _ in perceiver.steps():  # keys that shout where a medium is large
            attend.to_q.weight.mul_(8)
            attend.to_kv.weight.mul_(8)
        sharp = perceiver.reach(media)
    assert even.shape == (5, 30)
    torch.testing.assert_close(even.sum(-1), torch.ones(5))
    torch.testing.assert_close(sharp.sum(-1), torch.ones(5))
    assert sharp.max() > even.max()


def test_the_text_that_was_written_has_the_same_tokens_again(reader, seen, reading):
    assert reading.text == TINY_TEXT
    found = reader.look(seen, reading, method="attention")
    assert found.traces[0].spans == reading.sentences
