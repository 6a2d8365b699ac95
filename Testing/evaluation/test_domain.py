"""Scans that a model has not learned to read: flagged, with their own grey levels and with familiar ones."""

import numpy as np
import pytest

from MedVLMReaderLib.evaluation.domain import evaluate, matched
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.volume import Volume
from Testing import scans
from Testing.made_scans import oblique_grid


def test_a_matched_scan_has_the_other_ones_quantiles_and_its_own_order_and_place():
    rng = np.random.default_rng(3)
    scan = Volume(rng.gamma(2.0, 50.0, (9, 11, 13)).astype(np.float32), oblique_grid((9, 11, 13)), "")
    like = made_study(7).volume
    found = matched(scan, like)
    assert found.grid is scan.grid
    assert found.modality == like.modality
    assert (np.diff(found.values.ravel()[np.argsort(scan.values.ravel())]) >= 0).all()
    for share in (0.1, 0.5, 0.9):
        near = np.quantile(like.values, [share - 0.02, share + 0.02])
        assert near[0] - 1 <= np.quantile(found.values, share) <= near[1] + 1


def test_air_that_is_one_value_stays_one_value():
    values = np.zeros((8, 8, 8), np.float32)
    values[2:6, 2:6, 2:6] = np.arange(64).reshape(4, 4, 4) + 1
    found = matched(Volume(values, oblique_grid((8, 8, 8)), ""), made_study(7).volume)
    assert len(np.unique(found.values[values == 0])) == 1


@pytest.mark.slow
def test_noise_is_flagged_whatever_its_grey_levels_and_a_made_study_is_not():
    reader = load("built-in")
    noise = np.random.default_rng(0).normal(0, 300, (40, 64, 64)).astype(np.float32)
    found = evaluate(reader, [Volume(noise, oblique_grid((40, 64, 64)), "CT")])
    assert (found["flagged_as_it_is"], found["flagged_histogram_matched"]) == (1, 1)
    assert evaluate(reader, [made_study(5000).volume])["flagged_as_it_is"] == 0


@pytest.mark.slow
def test_real_scans_are_flagged():
    from MedVLMReaderLib.files import read

    found = sorted(scans.available().values())
    if not found:
        pytest.skip("no real scan is at hand: `make scans` fetches them")
    figures = evaluate(load("built-in"), [read(path) for path in found[:2]])
    assert figures["flagged_as_it_is"] == figures["scans"]
