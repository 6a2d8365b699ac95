"""Volumes: voxels and places change together, pictures are as a person sees them, resampling keeps what was there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.volume import View, Volume, default_view, planes, resampled, windowed
from Testing.made_scans import oblique_grid

ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
SLOPE = np.array([1.5, -2.0, 0.7])


def linear(grid: Grid) -> Volume:
    """A number that grows evenly along a line in space, at the place of each voxel."""
    places = grid.to_world(np.argwhere(np.ones(grid.shape)))
    return Volume((places @ SLOPE).reshape(grid.shape).astype(np.float32), grid)


def naive_mean(values: np.ndarray, grid: Grid, cell: Grid, index: tuple[int, int, int], fine: int = 6) -> float:
    """The mean over a cell by looking up the nearest voxel at many places inside it."""
    steps = (np.arange(fine) + 0.5) / fine - 0.5
    inside = np.array(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1).T + index
    k, j, i = np.rint(grid.to_index(cell.to_world(inside)) - 1e-9).astype(int).T
    return float(values[k, j, i].mean())


def test_voxels_must_fill_their_grid():
    with pytest.raises(ValueError, match="do not fill"):
        Volume(np.zeros((2, 3, 5)), oblique_grid((2, 3, 4)))


def test_every_voxel_keeps_its_place_through_every_change(oblique_ct):
    places = oblique_ct.grid.to_world(np.argwhere(np.ones(oblique_ct.grid.shape)))
    values = oblique_ct.values.ravel()
    for changed in (
        oblique_ct.flip(0, 2),
        oblique_ct.transpose((2, 0, 1)),
        oblique_ct.pad((1, 0, 2), (0, 3, 1), -1000),
        oblique_ct.anatomical(),
        oblique_ct.as_seen("coronal"),
        oblique_ct.as_seen("sagittal"),
    ):
        np.testing.assert_array_equal(changed.at(places), values)
        np.testing.assert_allclose(changed.peak(), oblique_ct.peak(), atol=1e-9)
    part = oblique_ct.crop((3, 1, 2), (6, 9, 11))
    np.testing.assert_allclose(part.peak(), oblique_ct.peak())


def test_outside_the_volume_there_is_nothing(oblique_ct):
    inside, beside = oblique_ct.grid.to_world([[0, 0, 0], [-1, 0, 0]])
    assert oblique_ct.at(inside) == -1000
    assert np.isnan(oblique_ct.at(beside))


def test_key_names_voxels_and_place_and_not_the_file(oblique_ct):
    same = Volume(oblique_ct.values.copy(), Grid(oblique_ct.grid.shape, oblique_ct.grid.affine), source="elsewhere")
    other = oblique_ct.values.copy()
    other[0, 0, 0] += 1
    assert same.key == oblique_ct.key
    assert replace(oblique_ct, values=other).key != oblique_ct.key
    assert oblique_ct.flip(0).key != oblique_ct.key
    assert oblique_ct.transpose((0, 2, 1)).transpose((0, 2, 1)).key == oblique_ct.key


def person(order=(0, 1, 2), signs=(1, 1, 1)) -> Volume:
    """A marker at the right, front and top ends of a body: 1, 2 and 3, stored along any axes."""
    grid = oblique_grid((21, 21, 21), (2.0, 2.0, 2.0), (0, 0, 0), order, signs)
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.centre
    grid = Grid(grid.shape, affine)
    values = np.zeros(grid.shape, np.float32)
    for number, place in enumerate(((16, 0, 0), (0, 16, 0), (0, 0, 16)), 1):
        k, j, i = np.rint(grid.to_index(place)).astype(int)
        values[k, j, i] = number
    return Volume(values, grid)


def spot(picture: np.ndarray, grey: int) -> tuple[str, str]:
    """Which end of the picture a grey level lies at: (top, middle or bottom; left, middle or right)."""
    row, column = np.argwhere(picture == grey)[0] / (np.array(picture.shape) - 1)
    ends = (("top", "middle", "bottom"), ("left", "middle", "right"))
    return tuple(names[int(np.digitize(x, (0.25, 0.75)))] for names, x in zip(ends, (row, column), strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_pictures_are_as_a_radiologist_sees_them(order, signs):
    """Patient right on the left; front on top of the axial, on the left of the sagittal; head up."""
    axial, coronal, sagittal = planes(person(order, signs), View(3.0, 1.5, (0.0, 0.0, 0.0)))
    right, front, top = 85, 170, 255
    assert spot(axial.pixels, right) == ("middle", "left")
    assert spot(axial.pixels, front) == ("top", "middle")
    assert spot(coronal.pixels, right) == ("middle", "left")
    assert spot(coronal.pixels, top) == ("top", "middle")
    assert spot(sagittal.pixels, front) == ("middle", "left")
    assert spot(sagittal.pixels, top) == ("top", "middle")


@pytest.mark.parametrize("order", ORDERS)
def test_pixels_of_a_picture_know_their_place(order):
    volume = person(order, (1, -1, 1))
    view = View(3.0, 1.5, tuple(volume.peak()))
    for plane in planes(volume, view):
        index = np.argwhere(plane.pixels[None] == 255)[0]
        np.testing.assert_allclose(plane.grid.to_world(index), volume.peak(), atol=1e-6)


def test_cursor_beside_the_scan_is_refused(oblique_ct):
    with pytest.raises(ReaderError, match="outside the volume"):
        planes(oblique_ct, View(400, 40, (9999.0, 0.0, 0.0)))


def test_window_runs_from_black_to_white_and_clips():
    grey = windowed(np.array([-1000, -160, 40, 240, 3000]), 400, 40)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, [0, 0, 128, 255, 255])


def test_first_view_is_the_middle_in_a_window_that_fits(oblique_ct):
    view = default_view(oblique_ct)
    assert (view.window, view.level) == (400.0, 40.0)
    np.testing.assert_allclose(view.cursor_ras, oblique_ct.grid.centre)
    mr = Volume(np.linspace(0, 1000, 7 * 10 * 12).reshape(7, 10, 12), oblique_ct.grid, "MR")
    view = default_view(mr)
    assert view.level == pytest.approx(500, rel=0.1)
    assert view.window == pytest.approx(980, rel=0.1)


def test_plane_of_acquisition_is_the_one_with_the_thickest_slices():
    for axes, name in (((2, 1, 0), "axial"), ((1, 2, 0), "coronal"), ((0, 2, 1), "sagittal")):
        grid = oblique_grid((4, 9, 9), (5.0, 1.0, 1.0), axes=axes)
        assert Volume(np.zeros(grid.shape), grid).acquisition_plane == name
    cube = oblique_grid((4, 9, 9), (1.0, 1.0, 1.0))
    assert Volume(np.zeros(cube.shape), cube).acquisition_plane == "axial"


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    new=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 99),
)
def test_resampling_to_fewer_cells_of_the_box_conserves_the_mean(shape, new, seed):
    new = tuple(min(a, b) for a, b in zip(shape, new, strict=True))
    volume = Volume(np.random.default_rng(seed).normal(size=shape).astype(np.float32), oblique_grid(shape))
    out = resampled(volume, volume.grid.resize(new), 0.0)
    assert out.grid.shape == new
    assert out.values.mean() == pytest.approx(volume.values.mean(), abs=1e-5)
    assert out.values.min() >= volume.values.min() - 1e-5
    assert out.values.max() <= volume.values.max() + 1e-5


def test_fewer_cells_are_the_means_of_what_they_cover():
    """Against looking up many places in each cell; sizes that do not divide, and a box that is cut and moved."""
    values = np.random.default_rng(0).normal(size=(9, 8, 12)).astype(np.float32)
    volume = Volume(values, oblique_grid(values.shape))
    for cell in (volume.grid.resize((3, 4, 4)), volume.grid.crop((1, 0, 2), (7, 8, 11)).resize((4, 4, 6))):
        out = resampled(volume, cell, 0.0)
        naive = [naive_mean(values, volume.grid, cell, index) for index in np.ndindex(cell.shape)]
        np.testing.assert_allclose(out.values.ravel(), naive, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 9)] * 3),
    new=st.tuples(*[st.integers(2, 16)] * 3),
    flips=st.sets(st.integers(0, 2)),
)
def test_field_that_is_linear_in_space_stays_the_same_field(shape, new, flips):
    """More cells or fewer, counted from either end; exactly, but for cells that cut voxels in two: an eighth of one.

    Borders aside, where nothing lies beyond.
    """
    volume = linear(oblique_grid(shape))
    wanted = volume.grid.resize(new).flip(*flips)
    out = resampled(volume, wanted, 0.0)
    places = wanted.to_world(np.argwhere(np.ones(new)))
    index = volume.grid.to_index(places)
    half = np.maximum(np.array(shape) / new, 1) / 2
    inner = np.all((index - half >= -0.5 - 1e-6) & (index + half <= np.array(shape) - 0.5 + 1e-6), axis=1)
    cut = np.array([old > n and old % n > 0 for old, n in zip(shape, new, strict=True)])
    slack = float((np.abs(SLOPE @ volume.grid.affine[:3, :3]) / 8) @ cut)
    np.testing.assert_allclose(out.values.ravel()[inner], (places @ SLOPE)[inner], atol=slack + 2e-3)


def test_more_cells_are_linear_between_centres():
    values = np.array([0.0, 10.0, 40.0], np.float32).reshape(1, 1, 3)
    volume = Volume(values, Grid((1, 1, 3), np.eye(4)))
    affine = np.eye(4)
    affine[2, 2] = 0.25
    out = resampled(volume, Grid((1, 1, 9), affine), 0.0)
    np.testing.assert_allclose(out.values.ravel(), [0, 2.5, 5, 7.5, 10, 17.5, 25, 32.5, 40])


def test_cells_beyond_the_scan_are_filled(oblique_ct):
    wanted = oblique_ct.grid.pad((1, 0, 2), (0, 3, 0))
    out = resampled(oblique_ct, wanted, -1000.0)
    padded = oblique_ct.pad((1, 0, 2), (0, 3, 0), -1000)
    np.testing.assert_allclose(out.values, padded.values, atol=1e-3)
    assert out.values.dtype == np.float32


def test_same_grid_gives_the_same_voxels(oblique_ct):
    np.testing.assert_allclose(resampled(oblique_ct, oblique_ct.grid, 0.0).values, oblique_ct.values, atol=1e-6)


def test_grids_of_other_axes_are_refused(oblique_ct):
    with pytest.raises(ValueError, match="do not share their axes"):
        resampled(oblique_ct, oblique_grid(degrees=(1, 2, 3)), 0.0)
