"""Slices as pictures: the published windows number by number, every pixel where it says it is, evenly chosen slices."""

import json
from dataclasses import replace

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.pages import PageRecipe, chosen, notes, pages
from MedVLMReaderLib.volume import View, Volume
from Testing.made_scans import oblique_grid


def upright(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """k to Superior, j to Posterior, i to Left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing[0], -spacing[1], -spacing[2], 1
    return Grid(shape, affine)


def flat_ct(hounsfield: float) -> Volume:
    return Volume(np.full((3, 5, 5), hounsfield, np.float32), upright((3, 5, 5), (2, 1, 1)), "CT")


@pytest.mark.parametrize(
    ("hounsfield", "colour"),
    [
        (-2000, (0, 0, 0)),
        (-1024, (0, 0, 0)),
        (-512, (64, 0, 0)),
        (-135, (111, 0, 0)),
        (0, (128, 98, 0)),
        (20, (130, 113, 64)),
        (40, (132, 128, 128)),
        (80, (137, 157, 255)),
        (175, (149, 226, 255)),  # a lost sign in the second window, 175 for -135, would make this 0
        (215, (154, 255, 255)),
        (1024, (255, 255, 255)),
        (3000, (255, 255, 255)),
    ],
)
def test_hounsfield_units_become_the_published_colours(hounsfield, colour):
    (page, *_) = pages([flat_ct(hounsfield)], PageRecipe())
    assert page.pixels.dtype == np.uint8
    assert tuple(int(channel) for channel in page.pixels[2, 2]) == colour


def test_slices_are_spread_from_the_first_to_the_last():
    assert chosen(300, 85)[0] == 0
    assert chosen(300, 85)[-1] == 299
    assert len(chosen(300, 85)) == 85
    assert set(np.diff(chosen(300, 85))) <= {3, 4}
    assert chosen(86, 85)[-1] == 85
    assert chosen(40, 85) == list(range(40))
    assert chosen(9, 1) == [4]
    assert chosen(1, 85) == [0]


def test_axial_slices_go_from_head_to_feet_and_are_numbered(oblique_ct):
    found = pages([oblique_ct], PageRecipe())
    heights = [page.grid.centre[2] for page in found]
    assert heights == sorted(heights, reverse=True)
    assert [page.label for page in found] == [f"SLICE {n}" for n in range(1, len(found) + 1)]


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("side", [1024, 8])
def test_a_bright_voxel_is_bright_where_the_page_says(oblique_ct, square, side):
    """Turned, flipped, voxels 1.5 x 2 mm: resampled to square pixels, perhaps padded, perhaps averaged down."""
    metal = oblique_ct.grid.to_world((4, 3, 8))
    best = max(pages([oblique_ct], PageRecipe(square=square, side=side)), key=lambda page: page.pixels[..., 0].max())
    spacing = best.grid.spacing
    if side == 1024:
        assert spacing[1] == pytest.approx(spacing[2], rel=0.1)
    assert max(best.grid.shape) <= max(side, 1)
    assert best.grid.shape[1:] == best.pixels.shape[:2]
    if square:
        assert best.grid.shape[1] == best.grid.shape[2]
    place = np.argwhere(best.pixels[..., 0] == best.pixels[..., 0].max()).mean(0)
    off = best.grid.to_index(metal) - [0, *place]
    assert np.abs(off[1:] * spacing[1:]).max() <= 0.75 * max(2.0, *spacing[1:])
    assert abs(off[0]) < 0.01


def test_padding_is_black_and_the_picture_stays_in_the_middle():
    tall = Volume(np.full((2, 9, 4), 500.0), upright((2, 9, 4), (3, 1, 1)), "CT")
    page, _ = pages([tall], PageRecipe())
    assert page.pixels.shape == (9, 9, 3)
    assert np.flatnonzero(page.pixels.max((0, 2))).tolist() == [2, 3, 4, 5]
    assert page.grid.to_world((0, 0, 2)) == pytest.approx(tall.grid.to_world((1, 0, 0)))


@pytest.mark.parametrize("modality", ["CT", "MR", ""])
def test_the_same_scan_in_another_storage_order_makes_the_same_pages(oblique_ct, modality):
    scan = replace(oblique_ct, modality=modality)
    turned = scan.transpose((2, 0, 1)).flip(0, 2)
    for one, other in zip(pages([scan], PageRecipe()), pages([turned], PageRecipe()), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.grid.same_as(other.grid)


def test_unskipped_slices_have_their_own_thickness_and_skipped_ones_reach_their_neighbours():
    grid = oblique_grid((40, 6, 7), (2.5, 1.5, 2.0), axes=(2, 1, 0))
    scan = Volume(np.zeros(grid.shape), grid, "CT")
    whole, few = pages([scan], PageRecipe()), pages([scan], PageRecipe(most=7))
    assert len(whole) == 40
    assert all(page.grid.spacing[0] == pytest.approx(2.5) for page in whole)
    places = [whole[n].grid.centre for n in (0, 6, 13, 20, 26, 32, 39)]
    for page, place in zip(few, places, strict=True):
        assert np.abs(page.grid.centre - place).max() <= 2.6
    assert few[0].grid.centre == pytest.approx(whole[0].grid.centre)
    assert few[-1].grid.centre == pytest.approx(whole[-1].grid.centre)
    for page in whole:
        assert any(one.grid.contains(page.grid.centre) for one in few)


def test_one_slice_of_many_stands_for_all():
    scan = Volume(np.zeros((9, 6, 7)), upright((9, 6, 7), (2, 1, 1)), "MR")
    (page,) = pages([scan], PageRecipe(most=1))
    assert page.grid.spacing[0] == pytest.approx(9 * 2.0)
    assert page.grid.centre == pytest.approx(pages([scan], PageRecipe())[4].grid.centre)


def test_mr_is_grey_between_its_percentiles():
    values = np.linspace(100, 900, 4 * 20 * 20).reshape(4, 20, 20)
    found = pages([Volume(values, upright((4, 20, 20), (3, 1, 1)), "MR")], PageRecipe())
    pixels = np.stack([page.pixels for page in found])
    assert (pixels == pixels[..., :1]).all()
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert 125 < pixels.mean() < 130


def test_an_empty_mr_makes_black_pictures():
    found = pages([Volume(np.zeros((2, 4, 4)), upright((2, 4, 4), (3, 1, 1)), "MR")], PageRecipe())
    assert not any(page.pixels.any() for page in found)


def test_the_displayed_planes_follow_at_the_window_on_the_screen(oblique_ct):
    cursor = tuple(float(x) for x in oblique_ct.grid.to_world((4, 3, 8)))
    found = pages([oblique_ct], PageRecipe(), View(100.0, 50.0, cursor))
    shown = found[-3:]
    assert [page.label for page in shown] == [f"DISPLAYED {name} PLANE" for name in ("AXIAL", "CORONAL", "SAGITTAL")]
    for page in shown:
        assert (page.pixels == page.pixels[..., :1]).all()
        assert page.grid.contains(cursor)
        _, row, column = np.rint(page.grid.to_index(cursor)).astype(int)
        assert page.pixels[row, column, 0] > 240
    assert len(pages([oblique_ct], PageRecipe(displayed=False), View(100.0, 50.0, cursor))) == len(found) - 3


def test_a_cursor_outside_is_refused(oblique_ct):
    with pytest.raises(ReaderError, match="cursor"):
        pages([oblique_ct], PageRecipe(), View(100.0, 50.0, (900.0, 0.0, 0.0)))


def test_several_series_share_the_slices_and_are_told_apart(oblique_ct, body_ct):
    found = pages([oblique_ct, body_ct], PageRecipe(most=8))
    assert len(found) == 8
    assert found[0].label == "SERIES 1, SLICE 1"
    assert found[-1].label == "SERIES 2, SLICE 4"
    with pytest.raises(ReaderError, match="2 series"):
        pages([oblique_ct, body_ct], PageRecipe(most=1))
    with pytest.raises(ReaderError, match="No volume"):
        pages([], PageRecipe())


def test_what_was_assumed_is_said(oblique_ct):
    said = " ".join(notes([oblique_ct], PageRecipe(most=3)))
    assert "3 of" in said
    assert "-135 to 215" in said
    unknown = " ".join(notes([replace(oblique_ct, modality="")], PageRecipe()))
    assert "CT or MR" in unknown
    sagittal = Volume(np.zeros((8, 9, 4)), upright((8, 9, 4), (1, 1, 5)), "MR")
    assert "acquired as sagittal slices" in " ".join(notes([sagittal], PageRecipe()))


def test_a_recipe_is_plain_data_with_a_hash():
    recipe = PageRecipe(most=20, square=False)
    again = PageRecipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.key == recipe.key != PageRecipe().key
    with pytest.raises(TypeError):
        PageRecipe.from_json({"colour": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"most": 0}, {"most": 10**9}, {"side": 0}, {"plane": "oblique"}, {"percentiles": (5.0, 5.0)},
        {"windows_ct": ((0.0, 1.0),)}, {"windows_ct": ((0.0, 1.0), (175.0, 80.0), (0.0, 80.0))},
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_pictures_is_refused(change):
    with pytest.raises(ValueError, match=r"most|side|plane|windows"):
        PageRecipe(**change)
