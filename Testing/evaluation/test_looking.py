"""Calibration, the table of ways of looking, and verification's own evaluation, on made studies with the tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation import calibration, verification
from MedVLMReaderLib.evaluation.calibration import Case, localising, overlap
from MedVLMReaderLib.evaluation.verification import area_under, exchanged
from MedVLMReaderLib.phantom import made_truth
from MedVLMReaderLib.phantom_report import sentence
from MedVLMReaderLib.reader import Reader, load
from MedVLMReaderLib.reading import Trace
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

FOUND = [seed for seed in range(40) if 0 < len(made_truth(seed).findings) <= 2][:2]


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture(scope="module")
def case(reader: Reader) -> Case:
    return next(calibration.cases(reader, FOUND[:1]))


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
    assert calibration._score(there, case, 0) == pytest.approx(2)
    away = np.zeros_like(there)
    away[int((~calibration._near(case, 0)).argmax())] = 1
    assert calibration._score(away, case, 0) == 0
    for weights, hit in ((there, True), (away, False)):
        rows = np.repeat(weights[None], len(case.spans), 0)
        shown = replace(case.reading, traces=(Trace("attention", case.spans, rows),), boxes=())
        found = calibration._judged(shown, case, 0)
        assert found[0] is hit
        assert (found[1] > 0) is hit


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


def test_calibration_finds_the_head_that_points(reader, monkeypatch):
    def maps(_reader: Reader, case: Case) -> np.ndarray:
        out = np.random.default_rng(0).random((1, 2, len(case.spans), case.seen.token_map.cells)) * 1e-3
        for n in range(len(case.spans)):
            out[0, 1, n] += pointing_at(case, n)
        return out

    monkeypatch.setattr(calibration, "head_maps", maps)
    told: list[tuple[int, int]] = []
    found = calibration.calibrate(reader, FOUND, lambda *now: told.append(now))
    assert found.heads == ((0, 1),)
    assert found.pointing == 1
    assert (found.model, found.revision) == (reader.model.name, reader.model.revision)
    assert told == [(1, 2), (2, 2)]


def test_calibration_without_a_finding_asks_for_more_studies(reader):
    none = next(seed for seed in range(60) if not made_truth(seed).findings)
    for work in (calibration.calibrate, calibration.compare, verification.evaluate):
        with pytest.raises(ReaderError, match="Take more seeds"):
            work(reader, [none])


def test_the_table_has_every_way_of_looking_with_both_figures(reader):
    found = calibration.compare(reader, FOUND[:1])
    ways = set(found["methods"])
    assert ways == {"last layer", "later half", "localisation heads", "relative to a generic prompt", "relevance"}
    assert all(set(row) == {"pointing", "overlap"} for row in found["methods"].values())
    assert found["best"] in ways
    assert set(found["best_above_last_layer"]) == {"value", "low", "high", "n"}


def test_exchanged_sentences_have_another_side_or_else_another_organ():
    assert exchanged("Nodule of 14 mm in the right lung.") == "Nodule of 14 mm in the left lung."
    assert exchanged("Pleural effusion of 9 mm on the left.") == "Pleural effusion of 9 mm on the right."
    assert exchanged("Dark lesion of 9 mm in the liver.") == "Dark lesion of 9 mm in the spleen."
    assert exchanged("All is well.") is None


def test_the_area_is_the_share_of_pairs_in_order():
    assert area_under([3, 2, 1, 0], [True, True, False, False]) == 1
    assert area_under([1, 1], [True, False]) == 0.5
    assert area_under([0, 3, 2], [True, True, False]) == 0.5
    assert np.isnan(area_under([1, 2], [True, True]))


@pytest.mark.slow
def test_verification_is_measured_with_the_likelihood_alone_beside_it(reader):
    found = verification.evaluate(reader, FOUND[:1], regions=1)
    assert {"verification_auc", "likelihood_auc", "true_sentences", "exchanged_sentences"} <= set(found)
    assert found["verification_auc"]["n"] % 2 == 0
    assert found["verification_auc"]["n"] > 0
