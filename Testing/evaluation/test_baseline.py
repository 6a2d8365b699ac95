"""The baseline without learning finds what is plain to see, keeps its sides, and takes any volume."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation.baseline import thresholded
from MedVLMReaderLib.evaluation.findings import Said, matched, micro, tallies
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.phantom import Study, made_study
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES
from MedVLMReaderLib.volume import Modality, Volume

made = cache(made_study)


@cache
def said(seed: int) -> list[Said]:
    return thresholded(made(seed).volume)


def torso(side: str = "", fluid: bool = False, lump_hu: float | None = None) -> Volume:
    """A block of a body with two box-shaped lungs, 4 mm voxels stored left to right, and a little noise."""
    values = np.full((60, 64, 96), -1000.0)
    values[:, 4:60, 6:90] = 50  # 224 mm deep, 336 mm wide
    lungs = {
        "left": (slice(25, 58), slice(12, 52), slice(14, 40)),
        "right": (slice(25, 58), slice(12, 52), slice(56, 82)),
    }
    for place in lungs.values():
        values[place] = -850
    if side:
        k, j, i = lungs[side]
        if fluid:
            values[k.start : k.start + 18, j.stop - 7 : j.stop, i] = 15
        if lump_hu is not None:
            away = np.indices(values.shape) - np.array([41, 30, i.start + 12])[:, None, None, None]
            values[(away**2).sum(0) <= 3.2**2] = lump_hu  # 26 mm across
    values += np.random.default_rng(0).normal(0, 15, values.shape)
    affine = np.array([[0, 0, 4.0, -190], [0, -4.0, 0, 126], [4.0, 0, 0, 30], [0, 0, 0, 1]])
    return Volume(values.astype(np.int16), Grid(values.shape, affine), "CT")


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_faint_lump_in_a_lung_is_a_nodule_of_about_its_size_on_its_side(side: str) -> None:
    (found,) = thresholded(torso(side, lump_hu=-785))
    assert (found.kind, found.organ, found.side) == ("nodule", "lung", side)
    assert found.size_mm == pytest.approx(26, abs=6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_layer_behind_a_lung_is_an_effusion_as_deep_as_the_layer(side: str) -> None:
    (found,) = thresholded(torso(side, fluid=True))
    assert (found.kind, found.organ, found.side) == ("effusion", "pleura", side)
    assert found.size_mm == pytest.approx(28, abs=6)


def test_an_empty_torso_has_no_findings() -> None:
    assert thresholded(torso()) == []


def test_the_order_and_direction_of_the_axes_do_not_matter() -> None:
    volume = torso("right", lump_hu=-785)
    assert thresholded(volume.transpose((2, 0, 1)).flip(0, 2)) == thresholded(volume)


def test_what_it_says_are_kinds_in_their_organs_on_their_sides_with_sizes() -> None:
    for seed in range(970000, 970004):
        for one in said(seed):
            assert ORGAN_OF[one.kind] == one.organ  # type: ignore[index]
            assert (one.organ, one.side) in STRUCTURES
            assert one.size_mm is not None
            assert 0 < one.size_mm < 200


@pytest.mark.slow
def test_on_made_studies_it_is_far_better_than_nothing_and_far_from_perfect() -> None:
    studies: list[Study] = [made(seed) for seed in range(970000, 970012)]
    rows = [tallies(matched(thresholded(study.volume), study.truth.findings)) for study in studies]
    assert 0.3 < micro(scoring.summed(rows)).f1 < 0.9


ODD: dict[str, Any] = {
    "one voxel": np.zeros((1, 1, 1)),
    "one slice": np.arange(400.0).reshape(1, 20, 20),
    "constant": np.full((20, 20, 20), 7, np.int16),
    "not a number": np.full((9, 8, 7), np.nan),
    "infinite": np.where(np.indices((12, 13, 14)).sum(0) % 2, np.inf, -np.inf),
    "negative": -np.ones((30, 5, 30)),
    "bits": np.indices((12, 13, 14)).sum(0) % 3 == 0,
    "noise": np.random.default_rng(1).normal(0, 700, (40, 50, 60)),
    "enormous": np.random.default_rng(1).normal(0, 1e300, (10, 10, 10)),
}


@pytest.mark.parametrize("modality", ["CT", "MR", ""])
@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
@pytest.mark.parametrize("spacing", [(0.01, 0.01, 0.01), (5.0, 3.0, 3.0), (90.0, 40.0, 1.0)])
def test_an_odd_volume_raises_nothing(modality: Modality, values: Any, spacing: tuple[float, float, float]) -> None:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
    assert isinstance(thresholded(Volume(values, Grid(values.shape, affine), modality)), list)


def test_a_part_of_a_study_raises_nothing() -> None:
    volume = made(970000).volume
    k, j, i = volume.grid.shape
    for start, stop in (((0, 0, 0), (3, j, i)), ((0, j // 2, 0), (k, j, i)), ((0, 0, i // 3), (k, j, i // 3 + 2))):
        thresholded(volume.crop(start, stop))
        thresholded(replace(volume.crop(start, stop), modality=""))
