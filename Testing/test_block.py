"""The block that Med3DVLM and M3D-LaMed read: made as their training data were, and each voxel where it says it is."""

import json
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe, block, notes, on_screen, stretched
from MedVLMReaderLib.volume import PLANES, View, Volume, default_view
from Testing.made_scans import oblique_grid

RECIPE = BlockRecipe((6, 14, 10))
STORAGE_ORDERS = [
    (order, flipped) for order in permutations(range(3)) for n in range(4) for flipped in combinations(range(3), n)
]


def mr(gain: float = 1.0, shift: float = 0.0) -> Volume:
    grid = oblique_grid((8, 20, 18), (6.0, 3.0, 2.5))
    values = np.random.default_rng(2).gamma(2.0, 100.0, grid.shape).astype(np.float32)
    return Volume(values * np.float32(gain) + np.float32(shift), grid, "MR")


@pytest.mark.parametrize("plane", [*PLANES, None])
def test_all_48_storage_orders_of_a_scan_give_the_same_block_bit_for_bit(oblique_ct, plane):
    recipe = replace(RECIPE, plane=plane)
    for scan in (oblique_ct, mr()):
        first = block(scan, recipe)
        for order, flipped in STORAGE_ORDERS:
            other = scan.transpose(order).flip(*flipped)
            again = block(replace(other, values=np.ascontiguousarray(other.values)), recipe)
            np.testing.assert_array_equal(again.values, first.values)
            assert again.grid.same_as(first.grid, 1e-9)


@pytest.mark.parametrize("shape", [(6, 14, 10), (32, 3, 40), (7, 10, 12), (1, 1, 1)])
@pytest.mark.parametrize("old", [(7, 10, 12), (2, 33, 9), (301, 5, 17)])
def test_stretching_is_torchs_trilinear_interpolation(old, shape):
    values = np.random.default_rng(1).random(old).astype(np.float32)
    volume = stretched(Volume(values, oblique_grid(old, (5.0, 1.5, 2.0))), shape)
    theirs = F.interpolate(torch.from_numpy(values)[None, None], shape, mode="trilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(volume.values, theirs, atol=2e-6)
    assert volume.values.dtype == np.float32


def test_each_voxel_of_a_stretched_volume_lies_where_its_grid_says():
    """The scan's values are a slope in patient space; so are the block's, but for its outermost half voxels."""
    grid = oblique_grid((9, 21, 16), (6.0, 2.0, 3.0))
    slope = np.array([0.7, -1.1, 0.4])
    places = grid.to_world(np.stack(np.indices(grid.shape), -1))
    volume = stretched(Volume(places @ slope, grid), (18, 7, 16))
    inner = np.stack(np.indices(volume.grid.shape), -1)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(volume.values[1:-1, 1:-1, 1:-1], volume.grid.to_world(inner) @ slope, atol=1e-4)


def test_a_block_is_cut_to_what_is_not_black(oblique_ct):
    air = np.full(oblique_ct.grid.shape, -1000, np.int16)
    air[2:5, 3:9, 4:8] = 240
    made = block(replace(oblique_ct, values=air), RECIPE)
    assert (made.values == 1).all()
    assert made.grid.shape == RECIPE.shape
    body = oblique_ct.grid.crop((2, 3, 4), (5, 9, 8))
    np.testing.assert_allclose(made.grid.centre, body.centre, atol=1e-9)
    extents = [np.sort(np.array(grid.shape) * grid.spacing) for grid in (made.grid, body)]
    np.testing.assert_allclose(*extents)


def test_a_landmark_stays_in_its_place_in_every_plane(oblique_ct):
    for plane in PLANES:
        made = block(oblique_ct, replace(RECIPE, plane=plane, window_ct=(0.0, 2000.0)))
        assert np.linalg.norm(made.peak() - oblique_ct.peak()) < np.linalg.norm(oblique_ct.grid.spacing)


@pytest.mark.parametrize(
    ("plane", "towards"),
    [  # where slices, rows and columns run to: rows of (r, a, s)
        ("axial", [(0, 0, 1), (0, -1, 0), (-1, 0, 0)]),
        ("coronal", [(0, 1, 0), (0, 0, -1), (-1, 0, 0)]),
        ("sagittal", [(-1, 0, 0), (0, 0, -1), (0, -1, 0)]),
    ],
)
def test_pictures_stand_as_a_radiologist_looks_at_them(oblique_ct, plane, towards):
    directions = block(oblique_ct, replace(RECIPE, plane=plane)).grid.directions.T
    assert (np.sum(directions * towards, axis=1) > 0.8).all()


def test_without_a_plane_the_pictures_are_those_that_were_acquired():
    grid = oblique_grid((8, 20, 18), (2.5, 7.0, 3.0))
    scan = Volume(np.random.default_rng(0).normal(40, 30, grid.shape).astype(np.int16), grid, "CT")
    own, named = block(scan, RECIPE), block(scan, replace(RECIPE, plane=scan.acquisition_plane))
    np.testing.assert_array_equal(own.values, named.values)


def test_ct_comes_through_its_window_in_256_grey_levels(oblique_ct):
    values = np.random.default_rng(0).uniform(-300, 400, oblique_ct.grid.shape).astype(np.float32)
    for corner in (0, -1):
        values[corner, corner, corner] = 400  # nothing to cut off
    values[3, 4, 5] = 40
    scan = replace(oblique_ct, values=values)
    seen = scan.as_seen("coronal")
    made = block(scan, BlockRecipe(seen.grid.shape, (-160, 240), plane="coronal"))
    np.testing.assert_allclose(made.values, np.round(np.clip((seen.values + 160) / 400, 0, 1) * 255) / 255, atol=1e-6)
    assert made.at(scan.grid.to_world((3, 4, 5))) == pytest.approx(0.5, abs=0.003)
    assert made.grid.same_as(seen.grid)


def test_the_window_of_the_screen_is_the_models_window(oblique_ct):
    lung = on_screen(RECIPE, View(1500.0, -600.0, (0.0, 0.0, 0.0)))
    assert lung.window_ct == (-1350, 150)
    assert lung.key != RECIPE.key
    assert on_screen(RECIPE, None) == RECIPE
    assert on_screen(RECIPE, default_view(oblique_ct)) == RECIPE


@pytest.mark.parametrize(("gain", "shift"), [(7.3, 0.0), (0.004, 0.0), (1.0, 250.0)])
def test_mr_looks_the_same_whatever_the_scanner_multiplied_by_or_added(gain, shift):
    np.testing.assert_allclose(block(mr(gain, shift), RECIPE).values, block(mr(), RECIPE).values, atol=0.006)


def test_a_scan_of_one_grey_level_gives_a_black_block(oblique_ct):
    for modality in ("CT", "MR"):
        even = replace(oblique_ct, values=np.full(oblique_ct.grid.shape, 12.5, np.float32), modality=modality)
        made = block(even, RECIPE)
        assert (made.values == 0).all()
        np.testing.assert_allclose(made.grid.centre, oblique_ct.grid.centre, atol=1e-9)


def test_what_was_assumed_is_said(oblique_ct):
    acquired, window = notes(oblique_ct, RECIPE)
    assert f"{oblique_ct.acquisition_plane} pictures, in which it was acquired" in acquired
    assert "6 x 14 x 10" in acquired
    assert "-160 to 240 HU" in window
    other = next(plane for plane in PLANES if plane != oblique_ct.acquisition_plane)
    assert f"{other} pictures, though" in notes(oblique_ct, replace(RECIPE, plane=other))[0]
    assert "CT or MR" in notes(replace(oblique_ct, modality=""), RECIPE)[1]


def test_one_slice_is_not_enough(oblique_ct):
    with pytest.raises(ReaderError, match=r"1 x 10 x 12 voxels.*Choose"):
        block(oblique_ct.crop((0, 0, 0), (1, 10, 12)), RECIPE)


def test_a_recipe_comes_back_from_json():
    for recipe in (RECIPE, replace(RECIPE, plane="coronal", window_ct=(-1350.0, 150.0))):
        again = BlockRecipe.from_json(json.loads(json.dumps(recipe.to_json())))
        assert again == recipe
        assert again.key == recipe.key


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (0, 4, 4)},
        {"shape": (4, 4, 100_000)},
        {"window_ct": (100.0, 100.0)},
        {"percentiles": (99.0, 1.0)},
        {"percentiles": (1.0, float("nan"))},
        {"foreground": 1.0},
        {"plane": "oblique"},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_block_is_refused(change):
    with pytest.raises(ValueError, match=r"shape|window|plane"):
        replace(RECIPE, **change)


def test_a_recipe_has_no_other_fields():
    with pytest.raises(TypeError, match="sharpen"):
        BlockRecipe.from_json({**RECIPE.to_json(), "sharpen": True})
