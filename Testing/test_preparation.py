"""Preparation: the same pictures whatever way the scan is stored, in its own frame, by a recipe that is plain data."""

import json
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.preparation import AIR_HU, Recipe, notes, stacks, windows
from MedVLMReaderLib.volume import PLANES, Volume
from Testing.made_scans import oblique_grid

RECIPE = Recipe(
    size=16,
    pixel_mm=3.2,
    slice_mm=(4.0, 5.0, None),
    windows_ct=((-1000.0, -600.0), (-100.0, 260.0), (-1000.0, 600.0)),
    windows_mr=((0.0, 0.5), (0.25, 1.0), (0.0, 1.5)),
)
STORAGE_ORDERS = [
    (order, flipped) for order in permutations(range(3)) for n in range(4) for flipped in combinations(range(3), n)
]


def stretched(recipe: Recipe) -> Recipe:
    return replace(recipe, pixel_mm=None, slice_mm=(None, None, None))


def mr(gain: float = 1.0, shift: float = 0.0) -> Volume:
    grid = oblique_grid((8, 20, 18), (6.0, 3.0, 2.5))
    values = np.random.default_rng(2).gamma(2.0, 100.0, grid.shape).astype(np.float32)
    values[:, :5] = 3.0
    return Volume(values * np.float32(gain) + np.float32(shift), grid, "MR")


def stored(volume: Volume, order: tuple[int, ...], flipped: tuple[int, ...]) -> Volume:
    """The same scan as a file in another order would give it: its numbers in a row of their own."""
    other = volume.transpose(order).flip(*flipped)
    return replace(other, values=np.ascontiguousarray(other.values))


@pytest.mark.parametrize("recipe", [RECIPE, stretched(RECIPE)], ids=["millimetres", "stretched"])
def test_all_48_storage_orders_of_a_scan_give_the_same_pictures_bit_for_bit(oblique_ct, recipe):
    first = stacks(oblique_ct, recipe)
    assert len(STORAGE_ORDERS) == 48
    for order, flipped in STORAGE_ORDERS:
        for one, other in zip(first, stacks(stored(oblique_ct, order, flipped), recipe), strict=True):
            assert one.plane == other.plane
            assert one.acquired_mm == pytest.approx(other.acquired_mm)
            np.testing.assert_array_equal(one.volume.values, other.volume.values)
            np.testing.assert_array_equal(one.channels(recipe), other.channels(recipe))
            assert one.volume.grid.same_as(other.volume.grid, 1e-9)


def test_pixels_exactly_on_the_border_of_the_scan_are_the_same_for_every_storage_order():
    grid = oblique_grid((6, 8, 10), (4.0, 2.0, 1.6))  # 16 mm wide: some of the pixels of 3.2 mm lie on its very border
    scan = Volume(np.random.default_rng(3).normal(30, 9, grid.shape).astype(np.float32), grid, "CT")
    first = stacks(scan, RECIPE)
    for order, flipped in STORAGE_ORDERS:
        for one, other in zip(first, stacks(stored(scan, order, flipped), RECIPE), strict=True):
            np.testing.assert_array_equal(one.volume.values, other.volume.values)


@pytest.mark.parametrize("recipe", [RECIPE, stretched(RECIPE)], ids=["millimetres", "stretched"])
def test_stacks_have_the_middle_and_the_axes_of_the_scan(oblique_ct, recipe):
    for stack in stacks(oblique_ct, recipe):
        np.testing.assert_allclose(stack.volume.grid.centre, oblique_ct.grid.centre, atol=1e-9)
        turned = np.abs(stack.volume.grid.directions.T @ oblique_ct.grid.directions)
        np.testing.assert_allclose(np.sort(turned, axis=1), [[0, 0, 1]] * 3, atol=1e-9)
        assert stack.volume.grid.shape[1:] == (16, 16)


def test_slices_are_as_thick_and_pixels_as_wide_as_the_recipe_says(oblique_ct):
    axial, coronal, sagittal = (stack.volume.grid.spacing for stack in stacks(oblique_ct, RECIPE))
    np.testing.assert_allclose(axial, (4.0, 3.2, 3.2))
    np.testing.assert_allclose(coronal, (5.0, 3.2, 3.2))
    own = oblique_ct.anatomical().grid.spacing[2]
    np.testing.assert_allclose(sagittal, (own, 3.2, 3.2))


def test_stretched_slices_cover_the_scan_and_no_more(oblique_ct):
    extent = np.sort(np.array(oblique_ct.grid.shape) * oblique_ct.grid.spacing)
    for stack in stacks(oblique_ct, stretched(RECIPE)):
        grid = stack.volume.grid
        np.testing.assert_allclose(np.sort(np.array(grid.shape) * grid.spacing), extent)


def test_a_landmark_is_in_the_same_place_on_every_plane(oblique_ct):
    reach = np.linalg.norm(oblique_ct.grid.spacing)
    for stack in stacks(oblique_ct, RECIPE):
        assert np.linalg.norm(stack.volume.peak() - oblique_ct.peak()) < reach


def test_each_plane_tells_how_far_apart_the_scan_was_sampled_across_it(oblique_ct):
    across = [stack.acquired_mm for stack in stacks(oblique_ct, RECIPE)]
    np.testing.assert_allclose(across, oblique_ct.anatomical().grid.spacing)
    assert PLANES[int(np.argmax(across))] == oblique_ct.acquisition_plane


def test_around_the_scan_there_is_air(oblique_ct):
    even = replace(oblique_ct, values=np.full(oblique_ct.grid.shape, 70, np.int16))
    for stack in stacks(even, RECIPE):
        assert set(np.unique(stack.volume.values.round(3))) == {AIR_HU, 70.0}


def test_pictures_are_grey_levels_from_0_to_1(oblique_ct):
    for volume in (oblique_ct, mr(), replace(mr(), modality="")):
        for stack in stacks(volume, RECIPE):
            pictures = stack.channels(RECIPE)
            assert pictures.dtype == np.float32
            assert pictures.shape == (len(stack.volume.values), 3, 16, 16)
            assert pictures.min() == 0
            assert 0.5 < pictures.max() <= 1


def test_a_window_is_black_at_its_lower_end_and_white_at_its_upper_end():
    values = np.array([[[-1000.0, -100.0], [80.0, 600.0]]])
    lung, soft, wide = windows(values, "CT", RECIPE)[0]
    np.testing.assert_allclose(lung, [[0, 1], [1, 1]])
    np.testing.assert_allclose(soft, [[0, 0], [0.5, 1]])
    np.testing.assert_allclose(wide, [[0, 0.5625], [0.675, 1]])


@pytest.mark.parametrize(("gain", "shift"), [(7.3, 0.0), (0.004, 0.0), (1.0, 250.0)])
def test_mr_looks_the_same_whatever_the_scanner_multiplied_by_or_added(gain, shift):
    for one, other in zip(stacks(mr(), RECIPE), stacks(mr(gain, shift), RECIPE), strict=True):
        np.testing.assert_allclose(one.channels(RECIPE), other.channels(RECIPE), atol=2e-4)


def test_a_scan_of_one_grey_level_gives_finite_pictures():
    even = replace(mr(), values=np.full(mr().grid.shape, 12.5, np.float32))
    for stack in stacks(even, RECIPE):
        assert np.isfinite(stack.channels(RECIPE)).all()


def test_what_was_assumed_or_trimmed_is_said(oblique_ct):
    assert notes(oblique_ct, RECIPE) == ()
    (unknown,) = notes(replace(oblique_ct, modality=""), RECIPE)
    assert "CT or MR" in unknown
    wide = Volume(np.zeros((4, 30, 12), np.int16), oblique_grid((4, 30, 12), (5.0, 4.0, 2.0)), "CT")
    (trimmed,) = notes(wide, RECIPE)  # 120 mm of which 51 are shown
    assert "51 mm" in trimmed
    assert "34 mm" in trimmed
    assert notes(wide, stretched(RECIPE)) == ()


def test_two_slices_are_enough_and_one_is_not(oblique_ct):
    two = oblique_ct.crop((0, 0, 0), (2, 10, 12))
    assert all(np.isfinite(stack.volume.values).all() for stack in stacks(two, RECIPE))
    with pytest.raises(ReaderError, match=r"1 x 10 x 12 voxels.*Choose"):
        stacks(oblique_ct.crop((0, 0, 0), (1, 10, 12)), RECIPE)


def test_a_recipe_comes_back_from_json():
    for recipe in (RECIPE, stretched(RECIPE)):
        again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
        assert again == recipe
        assert again.key == recipe.key


@pytest.mark.parametrize(
    "change",
    [
        {"size": 32},
        {"pixel_mm": 3.3},
        {"pixel_mm": None},
        {"slice_mm": (4.0, 5.0, 6.0)},
        {"windows_ct": ((-1000.0, -600.0), (-100.0, 260.0), (-1000.0, 601.0))},
        {"windows_mr": ((0.0, 0.5), (0.25, 1.0), (0.1, 1.5))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_recipe_has_another_key(change):
    assert replace(RECIPE, **change).key != RECIPE.key


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 100_000},
        {"pixel_mm": -1.0},
        {"pixel_mm": float("nan")},
        {"slice_mm": (5.0, 0.0, 5.0)},
        {"slice_mm": (5.0, 5.0)},
        {"windows_ct": ((100.0, 100.0),) * 3},
        {"windows_mr": ((0.0, 1.0),)},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_pictures_is_refused(change):
    with pytest.raises(ValueError, match=r"size|mm|window"):
        replace(RECIPE, **change)


def test_a_recipe_has_no_other_fields():
    with pytest.raises(TypeError, match="sharpen"):
        Recipe.from_json({**RECIPE.to_json(), "sharpen": True})
