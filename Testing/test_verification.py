"""Verification: the highlighted region, what takes its place, places to compare with, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reader import Reader, load
from MedVLMReaderLib.verification import (
    Verdict,
    body,
    elsewhere,
    highlighted,
    mask_of,
    painted_over,
    verified,
)
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture
def torso() -> Volume:
    """A turned cylinder of soft tissue with a hole of air in it, around it air."""
    grid = oblique_grid((20, 40, 44), (9.0, 6.0, 7.0), axes=(1, 2, 0), signs=(1, -1, 1))
    k, j, i = np.indices(grid.shape)
    inside = ((j - 20) / 16) ** 2 + ((i - 22) / 18) ** 2 < 1
    values = np.where(inside, 40 + (k + j) % 7, -1000).astype(np.int16)
    values[:, 18:22, 10:14] = -950
    return Volume(values, grid, "CT", "made")


def heat_on(scan: Volume, at: tuple[int, int, int], shape: tuple[int, int, int] = (10, 10, 11)) -> Volume:
    """A heatmap on coarser cells over the same box: one high cell, its neighbour nearly as high, little elsewhere."""
    values = np.full(shape, 0.01, np.float32)
    values[at], values[at[0], at[1], at[2] + 1] = 1.0, 0.8
    return Volume(values / values.sum(), scan.grid.resize(shape))


def test_the_highlighted_region_is_what_holds_a_share_of_the_peak_around_it(torso):
    heat = heat_on(torso, (4, 5, 3))
    heat.values[9, 9, 9] = heat.values.max() * 0.9  # as high, but apart
    region = highlighted(heat, [torso])
    assert region.values.shape == (1, 1, 2)
    mask = mask_of(region, torso.grid)
    assert mask.sum() == 2 * 2 * 4 * 4
    wanted = np.zeros(mask.shape, bool)
    wanted[8:10, 20:24, 12:20] = True
    np.testing.assert_array_equal(mask, wanted)


def test_of_a_flat_heatmap_no_more_than_a_share_is_painted_over(torso):
    shape = (10, 10, 11)
    flat = Volume(np.linspace(0.9, 1, int(np.prod(shape))).reshape(shape).astype(np.float32), torso.grid.resize(shape))
    assert 0 < mask_of(highlighted(flat, [torso]), torso.grid).mean() <= 0.06


def test_a_heatmap_beside_the_scan_has_nothing_to_paint_over(torso):
    aside = torso.grid.crop((0, 0, 200), (20, 40, 244))
    with pytest.raises(ReaderError, match="no region in the scan"):
        highlighted(heat_on(replace(torso, grid=aside), (4, 5, 3)), [torso])


def test_painting_over_changes_the_mask_alone_and_leaves_it_smooth(torso):
    lesion = replace(torso, values=torso.values.copy())
    mask = np.zeros(torso.values.shape, bool)
    mask[8:12, 24:29, 22:28] = True
    lesion.values[mask] = 400
    filled = painted_over(lesion, mask)
    assert filled.values.dtype == torso.values.dtype
    np.testing.assert_array_equal(filled.values[~mask], lesion.values[~mask])
    assert np.abs(filled.values[mask] - 43).max() <= 4
    assert np.ptp(filled.values[mask]) <= 5
    assert lesion.values[9, 25, 25] == 400
    assert filled.key != lesion.key


def test_what_lies_at_a_border_is_painted_like_its_own_side():
    values = np.zeros((12, 12, 12), np.float32)
    values[:, :, 6:] = 100
    mask = np.zeros(values.shape, bool)
    mask[4:8, 4:8, 3:9] = True
    filled = painted_over(Volume(values, oblique_grid(values.shape, (2.0, 2.0, 2.0))), mask).values
    assert filled[6, 6, 3] < 30 < 70 < filled[6, 6, 8]


def test_nothing_to_paint_leaves_the_scan_as_it_is(torso):
    assert painted_over(torso, np.zeros(torso.values.shape, bool)) is torso


def test_regions_elsewhere_are_as_large_lie_in_the_body_and_hardly_on_the_first(torso):
    region = highlighted(heat_on(torso, (4, 5, 3)), [torso])
    inside, first = body(torso), mask_of(region, torso.grid)
    places = list(elsewhere(region, torso, 16, np.random.default_rng(0)))
    assert len(places) == 16
    for place in places:
        mask = mask_of(place, torso.grid)
        assert mask.sum() == first.sum()
        assert inside[mask].mean() > 0.8
        assert (mask & first).sum() < first.sum() / 2
    again = elsewhere(region, torso, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(next(again).grid.affine, places[0].grid.affine)


def test_air_within_the_body_belongs_to_it(torso):
    inside = body(torso)
    assert inside[5, 20, 12]
    assert not inside[5, 0, 0]
    mr = replace(torso, values=np.clip(torso.values, 0, None), modality="MR")
    assert body(mr)[5, 20, 12]


def test_where_no_other_place_is_free_nothing_is_decided(torso):
    region = Volume(np.ones((1, 1, 1), np.uint8), torso.grid.resize((1, 1, 1)))
    assert list(elsewhere(region, torso, 4, np.random.default_rng(0))) == []
    alone = Verdict(-3.0, 2.0, (), 1.0, (0.0, 0.0, 0.0))
    assert alone.said == "undecided"
    assert alone.to_json()["margin"] is None
    assert "Undecided" in str(alone)


@pytest.mark.parametrize(
    ("drop", "others", "said"),
    [
        (2.0, [0.1] * 16, "supported"),
        (0.05, [0.0] * 16, "not supported"),  # rare, but next to nothing
        (0.2, [0.3] * 12 + [0.1] * 4, "not supported"),
        (2.0, [0.1] * 12 + [2.5] * 4, "undecided"),
        (2.0, [0.1] * 4, "undecided"),  # too few places to tell
    ],
)
def test_the_verdict_weighs_the_drop_against_those_elsewhere(drop, others, said):
    verdict = Verdict(-3.0, drop, tuple(others), 4.0, (1.0, 2.0, 3.0))
    assert verdict.said == said
    assert verdict.margin == pytest.approx(drop - np.mean(others))
    assert verdict.to_json()["verdict"] == said


def test_a_sentence_is_held_against_the_image_with_all_its_numbers(reader, torso):
    seen = reader.see(torso)
    reading = reader.report(seen)
    told: list[tuple[int, int]] = []
    verdict = reader.verify(torso, seen, reading, 1, regions=3, progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(verdict.elsewhere) == 3
    assert verdict.likelihood < 0
    assert np.isfinite([verdict.drop, *verdict.elsewhere]).all()
    assert verdict.region_ml > 0
    again = reader.verify(torso, seen, reading, 1, regions=3)
    assert again == verdict
    with pytest.raises(ReaderError, match="does not say"):
        reader.verify(torso, seen, reading, "left lung")


def test_a_model_that_reads_one_place_alone_supports_it(torso):
    """Likelihood by hand: the sentence lives off the mean of one region."""
    heat = heat_on(torso, (4, 5, 5))
    region = mask_of(highlighted(heat, [torso]), torso.grid)
    bright = replace(torso, values=np.where(region, 500, torso.values).astype(np.int16))

    class Reads:
        def see(self, volumes, _view):
            return volumes[0].values[region].mean() / 100

    import MedVLMReaderLib.verification as checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "log_likelihood", lambda _m, seen, *_: np.array([seen - 9.0]))
        verdict = verified(Reads(), [bright], 5.0, (), [1], (0, 1), heat)  # type: ignore[arg-type]
    assert verdict.said == "supported"
    assert verdict.drop > 4
