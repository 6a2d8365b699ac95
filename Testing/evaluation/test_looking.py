"""Calibration, the table of ways of looking, and verification's own evaluation, on made studies with the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.evaluate import put
from MedVLMReaderLib.evaluation import calibration, heatmaps, verification
from MedVLMReaderLib.evaluation.forced import Case, cases
from MedVLMReaderLib.evaluation.heatmaps import localising, overlap
from MedVLMReaderLib.evaluation.rows import Rows
from MedVLMReaderLib.evaluation.verification import Judged, area_under, exchanged, told_instead
from MedVLMReaderLib.phantom import made_truth
from MedVLMReaderLib.phantom_report import sentence
from MedVLMReaderLib.reader import Reader, load
from MedVLMReaderLib.reading import Trace
from MedVLMReaderLib.truth import Finding
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

FOUND = [seed for seed in range(40) if 0 < len(made_truth(seed).findings) <= 2][:2]


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture(scope="module")
def case(reader: Reader) -> Case:
    return next(cases(reader, FOUND[:1]))


def pointing_at(case: Case, n: int) -> np.ndarray:
    """(cells,) all in the cell of the first grid nearest to a finding's middle."""
    mask, grid = case.masks[n], case.seen.token_map.grids[0]
    places = case.study.volume.grid.to_world(np.argwhere(mask))
    index = np.rint(grid.to_index(places[np.linalg.norm(places - places.mean(0), axis=1).argmin()])).astype(int)
    weights = np.zeros(case.seen.token_map.cells, np.float32)
    weights[np.ravel_multi_index(np.clip(index, 0, np.array(grid.shape) - 1), grid.shape)] = 1
    return weights


def test_every_true_sentence_comes_with_the_mask_of_its_finding(case):
    assert len(case.spans) == len(case.masks) == len(case.study.truth.findings)
    said = {case.reading.text[a:b] for a, b in case.spans}
    assert said == {sentence(finding) for finding in case.study.truth.findings}


def test_a_heatmap_in_the_mask_scores_all_and_one_elsewhere_nothing(case):
    there = pointing_at(case, 0)
    assert calibration._scores(there, case, 0) == pytest.approx(2)
    assert calibration._points(there, case, 0)
    away = np.zeros_like(there)
    away[int((~calibration._near(case, 0)).argmax())] = 1
    assert calibration._scores(away, case, 0) == 0
    assert not calibration._points(away, case, 0)
    assert not calibration._points(0 * away, case, 0)
    for weights, hit in ((there, True), (away, False)):
        rows = np.repeat(weights[None], len(case.spans), 0)
        shown = replace(case.reading, traces=(Trace("attention", case.spans, rows),), boxes=())
        assert heatmaps._judged(shown, case, 0)[0] is hit


def test_overlap_is_one_for_the_mask_itself_and_a_share_where_heat_is_flat():
    grid = oblique_grid((6, 7, 8), (4.0, 2.0, 3.0))
    mask = np.zeros(grid.shape, bool)
    mask[1:3, 2:5, 3:5] = True
    assert overlap(Volume(mask.astype(np.float32), grid), mask, grid) == 1
    flat = overlap(Volume(np.ones(grid.shape, np.float32), grid), mask, grid)
    assert flat == pytest.approx(mask.mean(), rel=1e-6)
    assert overlap(Volume((~mask).astype(np.float32), grid), mask, grid) == 0


def test_of_heads_that_look_at_the_image_the_sharpest_localise():
    weights, share = np.full((4, 2, 9), 0.1), np.full((4, 2), 0.9)
    weights[3, 1, 4] = weights[2, 0, 1] = weights[0, 0, 3] = 9.0
    share[2, 0] = 0.1
    assert localising(weights, share, 1) == [(3, 1)]  # 2.0 hardly looks; 0.0 is of the first two layers
    assert (0, 0) not in localising(weights, share, 3)


@pytest.mark.parametrize("better", [False, True])
def test_calibration_finds_the_head_that_points_and_how_words_count(reader, monkeypatch, better):
    def maps(_reader: Reader, case: Case, weighed: bool) -> np.ndarray:
        out = np.random.default_rng(0).random((1, 2, len(case.spans), case.seen.token_map.cells)) * 1e-3
        for n in range(len(case.spans)):
            out[0, 1, n] += pointing_at(case, n) * (1 if weighed == better else 1e-2)
        return out

    monkeypatch.setattr(calibration, "head_maps", maps)
    told: list[tuple[int, int]] = []
    found = calibration.calibrate(reader, FOUND, lambda *now: told.append(now))
    assert found.heads == ((0, 1),)
    assert found.pointing == 1
    assert found.weighed is better
    assert calibration.WEIGHED[better] in found.choice
    assert (found.model, found.revision) == (reader.model.name, reader.model.revision)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("weighed", [False, True])
def test_every_head_has_a_map_for_every_sentence(reader, case, weighed):
    maps = calibration.head_maps(reader, case, weighed)
    assert maps.shape == (1, 2, len(case.spans), case.seen.token_map.cells)
    assert (maps >= 0).all()
    assert maps.any(-1).all()


def test_calibration_without_a_finding_asks_for_more_studies(reader):
    none = next(seed for seed in range(60) if not made_truth(seed).findings)
    for work in (calibration.calibrate, heatmaps.compare, verification.evaluate):
        with pytest.raises(ReaderError, match="Take more seeds"):
            work(reader, [none])


def test_the_table_has_every_way_of_looking_with_all_figures_and_goes_on_from_what_is_kept(
    reader, tmp_path, monkeypatch
):
    kept = tmp_path / "rows" / "heatmaps.jsonl"
    found = heatmaps.compare(reader, FOUND[:1], kept=kept)
    ways = set(found["methods"])
    assert ways == {"last layer", "later half", "localisation heads", "relative to a generic prompt", "relevance"}
    columns = {"pointing", "pointing_said", "overlap", "above_last_layer"}
    assert all(set(row) == columns for row in found["methods"].values())
    assert found["methods"]["last layer"]["above_last_layer"]["value"] == 0
    assert found["best"] in ways
    assert found["best_above_last_layer"] == found["methods"][found["best"]]["above_last_layer"]
    monkeypatch.setattr(heatmaps, "_row", lambda *_: pytest.fail("asked again"))
    assert heatmaps.compare(reader, FOUND[:1], kept=kept) == found
    table = heatmaps.markdown(found)
    assert all(f"| {way} |" in table for way in ways)


def test_the_gain_on_the_last_layer_is_paired_study_by_study():
    ways = {heatmaps.LAST: [[False, 0.1], [True, 0.2]], heatmaps.RELEVANCE: [[True, 0.5], [True, 0.4]]}
    rows = [{"said": [True, False], "chance": [0.1, 0.1], "ways": ways}] * 3
    found = heatmaps.figures(rows)
    assert found["best"] == heatmaps.RELEVANCE
    best = found["methods"][heatmaps.RELEVANCE]
    assert (best["pointing"]["value"], best["overlap"]["value"]) == (1, 0.45)
    assert best["above_last_layer"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 6}
    last = found["methods"][heatmaps.LAST]
    assert (last["pointing"]["value"], last["pointing_said"]["value"], last["pointing_said"]["n"]) == (0.5, 0.0, 3)


# What is kept of a long evaluation


def once(value: object) -> Callable[[], object]:
    calls: list[object] = []

    def found() -> object:
        assert not calls, "asked again"
        calls.append(value)
        return value

    return found


def test_rows_are_kept_as_they_come_and_a_line_that_was_cut_off_is_made_again(tmp_path):
    path, about = tmp_path / "rows.jsonl", {"model": "tiny", "revision": "1"}
    rows = Rows(path, about)
    assert rows.of(3, once([1, 2])) == rows.of(3, once("other")) == [1, 2]
    rows.of(4, once(None))
    path.write_text(path.read_text() + '{"seed": 5, "ro')
    again = Rows(path, about)
    assert again.kept == {3: [1, 2], 4: None}
    again.of(5, once({"a": 1.5}))
    assert Rows(path, about).kept[5] == {"a": 1.5}


def test_rows_of_another_measurement_and_other_files_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(path, {"model": "tiny", "revision": "1"}).of(3, once(1))
    with pytest.raises(ReaderError, match=r"another measurement \(revision 1\)"):
        Rows(path, {"model": "tiny", "revision": "2"})
    for content in ("[1]\n", "no\n", '{"seed": 3}\n'):
        path.write_text(content)
        with pytest.raises(ReaderError, match="something else than rows"):
            Rows(path, {"model": "tiny"})
    with pytest.raises(ReaderError, match="cannot be read"):
        Rows(tmp_path, {"model": "tiny"})


def test_without_a_file_rows_are_kept_for_this_run_alone():
    rows = Rows(None, {})
    assert rows.of(1, once("a")) == rows.of(1, once("b")) == "a"


def test_a_table_is_put_between_its_marks_and_the_rest_of_the_page_stays(tmp_path):
    page = tmp_path / "heatmaps.md"
    put("| 1 |", page)
    page.write_text(f"# Title\n\n{page.read_text()}\nAfter.\n")
    put("| 2 |", page)
    text = page.read_text()
    assert text.startswith("# Title")
    assert text.endswith("After.\n")
    assert ("| 1 |" in text, text.count("| 2 |")) == (False, 1)
    with pytest.raises(ReaderError, match="could not be written"):
        put("| 3 |", tmp_path)


# Verification


def a_finding(kind: str, organ: str, side: str = "", size_mm: float = 14.0) -> Finding:
    return Finding(kind, organ, side, size_mm, (0.0, 0.0, 0.0), 3.0)  # type: ignore[arg-type]


def test_an_exchanged_finding_is_on_the_other_side_or_else_in_another_organ():
    truth = replace(made_truth(0), findings=())
    assert exchanged(a_finding("nodule", "lung", "right"), truth) == a_finding("nodule", "lung", "left")
    assert exchanged(a_finding("dark liver lesion", "liver"), truth) == a_finding("dark liver lesion", "spleen")
    assert exchanged(a_finding("fracture", "spine"), truth) == a_finding("fracture", "liver")


def test_what_would_be_true_too_is_left_out():
    both = (a_finding("nodule", "lung", "right"), a_finding("nodule", "lung", "left", 9.0))
    assert exchanged(both[0], replace(made_truth(0), findings=both)) is None
    assert exchanged(both[0], replace(made_truth(0), findings=both[:1])) is not None


def test_an_exchanged_finding_is_told_where_its_report_would_tell_it():
    mine, other = a_finding("nodule", "lung", "right"), a_finding("nodule", "lung", "left")
    truth = replace(made_truth(0), findings=(mine,), in_view=(("lung", "right"), ("lung", "left")))
    text, (start, stop) = told_instead(truth, mine, other)
    assert text[start:stop] == "Nodule of 14 mm in the left lung."
    assert text[:start].endswith("The right lung is clear. ")


def test_the_area_is_the_share_of_pairs_in_order():
    assert area_under([3, 2, 1, 0], [True, True, False, False]) == 1
    assert area_under([1, 1], [True, False]) == 0.5
    assert area_under([0, 3, 2], [True, True, False]) == 0.5
    assert np.isnan(area_under([1, 2], [True, True]))


@pytest.mark.slow
def test_verification_is_measured_with_the_likelihood_alone_beside_it(reader, tmp_path, monkeypatch):
    kept = tmp_path / "rows.jsonl"
    found = verification.evaluate(reader, FOUND[:1], regions=1, kept=kept)
    assert {"verification_auc", "likelihood_auc", "true_sentences", "exchanged_sentences"} <= set(found)
    assert found["verification_auc"]["n"] % 2 == 0
    assert found["verification_auc"]["n"] > 0
    assert len(kept.read_text().splitlines()) == 2
    monkeypatch.setattr(verification, "_row", lambda *_: pytest.fail("asked again"))
    assert verification.evaluate(reader, FOUND[:1], regions=1, kept=kept) == found


def test_the_margin_and_the_likelihood_have_an_area_each():
    def row(*margins: float) -> list[Judged]:
        return [Judged(n % 2 == 0, margin, -1.0, "undecided") for n, margin in enumerate(margins)]

    found = verification.figures([row(3.0, 1.0), row(2.0, 2.5)])
    assert found["verification_auc"]["value"] == 0.75
    assert found["likelihood_auc"]["value"] == 0.5
    assert found["exchanged_sentences"] == {"supported": 0, "undecided": 2, "not supported": 0}
