"""What a reading says about places: sentences, heatmaps of words, and the folder it is kept in."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib import heatmap as heatmap_module
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.heatmap import combined, densities, peak, softened
from MedVLMReaderLib.reading import Reading, Trace, effective_cells, sentence_spans
from MedVLMReaderLib.volume import Volume

TEXT = "Findings: A nodule of 1.5 cm lies in the left lobe. No effusion. Impression: Benign nodule, e.g. a hamartoma."


def oblique(shape=(3, 5, 4), spacing=(6.0, 2.0, 3.0), tilt=0.4, centre=(-20.0, 35.0, 110.0)) -> Grid:
    """Non-cubic, turned about two axes, first axis to Inferior."""
    c, s = np.cos(tilt), np.sin(tilt)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -1], [0, 1, 0], [-1, 0, 0]]) * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def words_of(text: str) -> tuple[tuple[int, int], ...]:
    spans, start = [], 0
    for word in text.split(" "):
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return tuple(spans)


@pytest.fixture
def reading() -> Reading:
    """Each word looks at one cell of two grids over the same oblique box; relevance only of the first two sentences."""
    grid = oblique()
    grids = (grid, grid.resize((3, 1, 2)))
    cells = 60 + 6
    spans = words_of(TEXT)
    attention = np.zeros((len(spans), cells), np.float16)
    attention[np.arange(len(spans)), (7 * np.arange(len(spans))) % cells] = 0.25
    relevance = np.random.default_rng(1).random((2, cells)).astype(np.float32)
    traces = (Trace("attention", spans, attention), Trace("relevance", sentence_spans(TEXT)[:2], relevance))
    return Reading(
        question="Is there a nodule?",
        text=TEXT,
        complete=True,
        traces=traces,
        grids=grids,
        model="echo",
        revision="0123abc",
        options={"length": 64, "greedy": True},
        preparation={"spacing_mm": [6.0, 2.0, 3.0]},
        notes=("Contrast is assumed.",),
        timings={"see": 0.5},
    )


def shown(text: str) -> list[str]:
    return [text[start:stop] for start, stop in sentence_spans(text)]


def test_a_sentence_leaves_out_the_heading_and_keeps_decimals_and_abbreviations_whole():
    assert shown(TEXT) == [
        "A nodule of 1.5 cm lies in the left lobe.",
        "No effusion.",
        "Benign nodule, e.g. a hamartoma.",
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("Findings:", []),
        ("no full stop", ["no full stop"]),
        ("FINDINGS:\n1. Clear lungs.\n2. Cyst, 2.0 x 3.1 mm\n\nImpression: 1. Normal.", None),
        ("**Impression:** Normal study.", ["Normal study."]),
        ("the heart is normal. the lungs are clear.", ["the heart is normal.", "the lungs are clear."]),
        ("Is it? Yes! See image no. 3.", ["Is it?", "Yes!", "See image no. 3."]),
        ("Fracture of L4. Vitamin D.\r\nDone", ["Fracture of L4.", "Vitamin D.", "Done"]),
        ("肺清晰。无积液。", ["肺清晰。", "无积液。"]),
    ],
)
def test_sentences_of_reports_as_models_write_them(text: str, sentences: list[str] | None):
    assert shown(text) == (["Clear lungs.", "Cyst, 2.0 x 3.1 mm", "Normal."] if sentences is None else sentences)


def test_heatmap_of_a_word_peaks_where_the_words_weight_sits(reading: Reading):
    for row, (start, stop) in enumerate(words_of(TEXT)[:6]):
        cell = 7 * row
        fine, coarse = reading.heatmaps((start, stop))
        assert fine.values.ravel()[cell] == 1
        assert fine.values.sum() == 1
        assert coarse.values.sum() == 0
        place = reading.grids[0].to_world(np.unravel_index(cell, (3, 5, 4)))
        np.testing.assert_allclose(fine.peak(), place)
        index = reading.grids[0].to_index(reading.heatmap((start, stop)).peak())
        np.testing.assert_allclose(index, np.unravel_index(cell, (3, 5, 4)), atol=0.5)


def test_a_word_that_looked_at_the_coarse_grid_peaks_in_the_middle_of_the_coarse_cell(reading: Reading):
    start, stop = words_of(TEXT)[9]  # cell 63 of 66: the coarse grid's cell 3
    place = reading.grids[1].to_world((1, 0, 1))
    off = np.abs(reading.grids[0].to_index(reading.heatmap((start, stop)).peak()) - reading.grids[0].to_index(place))
    assert off.max() <= 0.5 + 1e-9


def test_shares_of_all_cells_of_all_grids_sum_to_one(reading: Reading):
    for words in (None, "nodule", 1, (10, 30)):
        assert sum(float(heat.values.sum()) for heat in reading.heatmaps(words)) == pytest.approx(1)
        assert float(reading.heatmap(words).values.sum()) == pytest.approx(1)


def test_rows_count_by_the_letters_they_share_with_the_words(reading: Reading):
    (fine, _) = reading.heatmaps("of 1.5")  # rows 3 and 4: two letters and three
    assert fine.values.ravel()[[21, 28]] == pytest.approx([2 / 5, 3 / 5])


def test_words_may_be_a_sentence_number_or_be_written_in_another_case(reading: Reading):
    assert reading.span(1) == sentence_spans(TEXT)[1]
    assert reading.span("NO EFFUSION") == (52, 63)
    assert reading.span("nodule") == (12, 18)  # the first of two
    assert reading.span(None) == (0, len(TEXT))


def test_the_first_method_with_rows_for_the_words_is_used(reading: Reading):
    turned = replace(reading, traces=reading.traces[::-1])
    assert turned.heatmaps("nodule")[0].notes == ("Relevance of echo, revision 0123abc.",)
    assert turned.heatmaps("hamartoma")[0].notes == ("Attention of echo, revision 0123abc.",)
    with pytest.raises(ReaderError, match=r"No relevance was recorded for 'hamartoma'.*relevance, attention"):
        turned.heatmaps("hamartoma", method="relevance")


def test_unknown_words_are_named_beside_the_start_of_the_answer(reading: Reading):
    with pytest.raises(ReaderError, match=r"'pneumothorax'.*starts: 'Findings: A nodule"):
        reading.heatmaps("pneumothorax")
    for words in ("", 3, -1, (5, 5), (0, 1000)):
        with pytest.raises(ReaderError):
            reading.heatmaps(words)


def test_words_that_looked_nowhere_are_an_error_not_a_flat_map(reading: Reading):
    blind = replace(reading.traces[0], weights=np.zeros_like(reading.traces[0].weights))
    with pytest.raises(ReaderError, match="is zero in the whole image"):
        replace(reading, traces=(blind,)).heatmaps("nodule")


def test_weights_that_do_not_fit_the_grids_are_refused(reading: Reading):
    with pytest.raises(ValueError, match="66 cells"):
        replace(reading, traces=(Trace("attention", ((0, 1),), np.ones((1, 65), np.float32)),))
    with pytest.raises(ValueError, match="not negative"):
        Trace("attention", ((0, 1),), -np.ones((1, 3), np.float32))


def test_effective_cells_run_from_one_to_all():
    grid = oblique()
    one = np.zeros(grid.shape, np.float32)
    one[1, 2, 3] = 1
    assert effective_cells(Volume(one, grid)) == pytest.approx(1)
    even = Volume(np.full(grid.shape, 1 / 120, np.float32), grid)
    assert effective_cells((even, even)) == pytest.approx(120)


def test_a_single_grid_combines_to_itself():
    heat = Volume(np.full((3, 5, 4), 1 / 60, np.float32), oblique())
    assert combined((heat,)) is heat


def stacks(box: Grid) -> tuple[Grid, ...]:
    """Axial, coronal and sagittal slices of one box, each slice a grid of its own, axes in different orders."""
    planes = []
    for order, flipped in (((0, 1, 2), ()), ((1, 0, 2), (0,)), ((2, 0, 1), (1, 2))):
        stack = box.transpose(order).flip(*flipped)
        stack = stack.resize((stack.shape[0], 2, 3))
        planes += [stack.crop((n, 0, 0), (n + 1, 2, 3)) for n in range(stack.shape[0])]
    return tuple(planes)


@pytest.mark.parametrize("tilt", [0.0, 0.4, -0.7])
def test_slices_of_three_planes_combine_where_the_hot_slices_cross(tilt: float):
    box = oblique((5, 7, 6), (6.0, 4.0, 5.0), tilt)
    grids, hot = stacks(box), (1, 2, 4)
    place = box.to_world(hot)
    heats = [Volume(np.full(g.shape, 10.0 if g.contains(place) else 1.0, np.float32), g) for g in grids]
    peak = combined(heats).peak()
    np.testing.assert_allclose(np.rint(box.to_index(peak)), hot)


def test_a_combined_heatmap_lies_inside_the_boxes_and_covers_them():
    one, other = oblique((3, 5, 4)), oblique((4, 3, 3), (4.0, 5.0, 5.0), -0.3)
    heats = [Volume(np.full(grid.shape, 1 / 96, np.float32), grid) for grid in (one, other)]
    heat = combined(heats)
    places = heat.grid.to_world(np.argwhere(heat.values > 0))
    assert np.all(one.contains(places) | other.contains(places))
    empty = heat.grid.to_world(np.argwhere(heat.values == 0))
    assert not np.any(one.contains(empty) | other.contains(empty))


def test_every_cell_of_every_grid_holds_a_cell_of_the_combined_one():
    grids = (oblique((3, 5, 4)), oblique((4, 3, 3), (4.0, 5.0, 1.5), -0.8))
    heats = [Volume(np.full(grid.shape, 1.0, np.float32), grid) for grid in grids]
    places = combined(heats).grid
    centres = places.to_world(np.indices(places.shape).reshape(3, -1).T)
    for grid in grids:
        held = np.unique(np.rint(grid.to_index(centres[grid.contains(centres)])).astype(int), axis=0)
        assert len(held) == np.prod(grid.shape)


def test_coarse_and_fine_cells_mix_by_density_not_by_share():
    fine = oblique((4, 4, 4), (2.0, 2.0, 2.0))
    heats = [Volume(np.full(g.shape, 0.5 / np.prod(g.shape), np.float32), g) for g in (fine, fine.resize((1, 2, 1)))]
    heat = combined(heats)
    assert heat.grid.same_as(fine)
    np.testing.assert_allclose(heat.values, 1 / 64, rtol=1e-6)


def test_a_combined_heatmap_is_never_larger_than_its_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heatmap_module, "MOST_CELLS", 500)
    box = oblique((5, 7, 6), (6.0, 4.0, 5.0), 0.4)
    thin = Grid((1, 2, 3), box.crop((2, 0, 0), (3, 7, 6)).resize((1, 2, 3)).affine @ np.diag([0.02, 1, 1, 1]))
    heats = [Volume(np.full(g.shape, 0.01, np.float32), g) for g in (box, box.flip(1).transpose((2, 0, 1)))]
    heat = combined([*heats, Volume(np.full(thin.shape, 0.9, np.float32), thin)])
    assert heat.values.size <= 500
    assert round(float(box.to_index(heat.peak())[0])) == 2  # a slice thinner than a cell is not lost


def test_a_lone_thin_cell_does_not_outweigh_a_place_on_which_the_planes_agree():
    box = oblique((40, 8, 8), (2.0, 10.0, 10.0))
    thin, wide = box, box.transpose((1, 0, 2)).resize((8, 4, 8))
    heats = [Volume(np.zeros(grid.shape, np.float32), grid) for grid in (thin, wide)]
    heats[0].values[5, 1, 1] = 0.25  # alone
    heats[0].values[28:32, 6, 5] = 0.1
    heats[1].values[6, 3, 5] = 0.35
    np.testing.assert_allclose(np.rint(box.to_index(combined(heats).peak())), (5, 1, 1))
    k, j, i = box.to_index(peak(heats))
    assert 27 <= k <= 33
    assert (round(j), round(i)) == (6, 5)
    soft = softened(combined(heats), [thin, wide])
    assert soft.values.sum() == pytest.approx(combined(heats).values.sum(), rel=1e-5)


def test_a_softened_heatmap_is_one_under_a_gaussian_of_half_a_cell_that_ends_at_the_box():
    box = oblique((9, 14, 11), (2.0, 1.0, 1.5))
    planes = [box, box.transpose((1, 0, 2)), box.transpose((2, 0, 1)).resize((4, 9, 7))]
    whole = Volume(np.random.default_rng(0).random(box.shape).astype(np.float32), box)
    sigma = (3.0 ** (1 / 3) / 2) / np.array([2.0, 1.0, 1.5])
    expected = ndimage.gaussian_filter(whole.values.astype(float), sigma, mode="constant", truncate=3.0)
    expected *= whole.values.sum() / expected.sum()
    np.testing.assert_allclose(softened(whole, planes).values, expected, rtol=1e-5)


def test_slices_side_by_side_are_not_smeared_into_what_was_not_seen():
    slices = [oblique((9, 7, 6)).crop((n, 0, 0), (n + 1, 7, 6)) for n in (0, 4, 8)]
    heats = [Volume(np.full(grid.shape, 1 / 126, np.float32), grid) for grid in slices]
    whole = combined(heats)
    assert softened(whole, slices) is whole


def test_densities_are_zero_outside_every_box():
    grid = oblique()
    far = oblique(centre=(400.0, 0.0, 0.0))
    density, even = densities([Volume(np.ones(grid.shape), grid)], far)
    assert not density.any()
    assert not even.any()


def test_a_saved_reading_comes_back_equal(reading: Reading, tmp_path: Path):
    reading.save(tmp_path / "new" / "folder")
    back = Reading.load(tmp_path / "new" / "folder")
    for name in ("question", "text", "complete", "model", "revision", "options", "preparation", "notes", "timings"):
        assert getattr(back, name) == getattr(reading, name)
    assert back.created == reading.created
    assert back.created.endswith("+00:00")
    for grid, other in zip(back.grids, reading.grids, strict=True):
        assert grid.shape == other.shape
        assert np.array_equal(grid.affine, other.affine)
    for trace, other in zip(back.traces, reading.traces, strict=True):
        assert (trace.method, trace.spans, trace.weights.dtype) == (other.method, other.spans, other.weights.dtype)
        assert np.array_equal(trace.weights, other.weights)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["arrays.npz", "reading.json"]


def test_numbers_of_numpy_are_saved_as_plain_ones(reading: Reading, tmp_path: Path):
    replace(reading, options={"length": np.int64(3), "scale": np.float32(0.5)}).save(tmp_path)
    assert Reading.load(tmp_path).options == {"length": 3, "scale": 0.5}


def test_a_reading_without_traces_is_kept_too(reading: Reading, tmp_path: Path):
    replace(reading, traces=()).save(tmp_path)
    with pytest.raises(ReaderError, match="Recorded with this answer: nothing"):
        Reading.load(tmp_path).heatmaps("nodule")


def test_a_newer_format_asks_for_an_update(reading: Reading, tmp_path: Path):
    reading.save(tmp_path)
    changed(tmp_path, format=2)
    with pytest.raises(ReaderError, match=r"format 2.*Update"):
        Reading.load(tmp_path)


def changed(folder: Path, **entries: object) -> None:
    content = json.loads((folder / "reading.json").read_text()) | entries
    (folder / "reading.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_missing_and_mismatched_parts_are_named(reading: Reading, tmp_path: Path):
    with pytest.raises(ReaderError, match=r"no reading\.json"):
        Reading.load(tmp_path)
    reading.save(tmp_path)
    np.savez(tmp_path / "arrays.npz", weights_0=reading.traces[0].weights)
    with pytest.raises(ReaderError, match=r"'weights_1' \(relevance\)"):
        Reading.load(tmp_path)
    np.savez(tmp_path / "arrays.npz", weights_0=reading.traces[0].weights, weights_1=np.ones((2, 5), np.float32))
    with pytest.raises(ReaderError, match=r"'weights_1' \(relevance\) has shape \(2, 5\).*\(2, 66\)"):
        Reading.load(tmp_path)
    weights = {f"weights_{n}": trace.weights * 0 for n, trace in enumerate(reading.traces)}
    np.savez(tmp_path / "arrays.npz", **weights)
    with pytest.raises(ReaderError, match="not the one saved with"):
        Reading.load(tmp_path)
    (tmp_path / "arrays.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ReaderError, match=r"arrays\.npz is damaged"):
        Reading.load(tmp_path)
    (tmp_path / "arrays.npz").unlink()
    with pytest.raises(ReaderError, match=r"no arrays\.npz"):
        Reading.load(tmp_path)


def test_a_damaged_text_file_is_named(reading: Reading, tmp_path: Path):
    reading.save(tmp_path)
    changed(tmp_path, text=None)
    with pytest.raises(ReaderError, match="lacks 'text'"):
        Reading.load(tmp_path)
    (tmp_path / "reading.json").write_text("{")
    with pytest.raises(ReaderError, match=r"reading\.json is damaged"):
        Reading.load(tmp_path)
    (tmp_path / "reading.json").write_text("[]")
    with pytest.raises(ReaderError, match="is not a reading"):
        Reading.load(tmp_path)


def test_pickled_arrays_are_refused(reading: Reading, tmp_path: Path):
    reading.save(tmp_path)
    np.savez(tmp_path / "arrays.npz", weights_0=np.array([{}], dtype=object))
    with pytest.raises(ReaderError, match="damaged"):
        Reading.load(tmp_path)


def test_a_failed_save_leaves_the_older_reading_whole(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reading.save(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(reading, question="Another?").save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "reading.json"]
    assert Reading.load(tmp_path).question == "Is there a nodule?"


def test_a_folder_that_cannot_be_made_is_an_os_error(reading: Reading, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        reading.save(tmp_path / "file" / "folder")
