"""Grids keep their places through every change of their cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedVLMReaderLib.geometry import LPS, Grid, TokenMap
from Testing.made_scans import oblique_grid

ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
shapes = st.tuples(*[st.integers(1, 9)] * 3)
counts = st.tuples(*[st.integers(0, 4)] * 3)


@st.composite
def grids(draw) -> Grid:
    """Any box of cells: turned, flipped, permuted, uneven."""
    return oblique_grid(
        draw(shapes),
        draw(st.tuples(*[st.floats(0.2, 9)] * 3)),
        draw(st.tuples(*[st.floats(-180, 180)] * 3)),
        draw(st.sampled_from(ORDERS)),
        draw(st.tuples(*[st.sampled_from((-1, 1))] * 3)),
        draw(st.tuples(*[st.floats(-400, 400)] * 3)),
    )


def cells(grid: Grid) -> np.ndarray:
    """(cells, 3) every index."""
    return np.argwhere(np.ones(grid.shape, bool))


def borders(grid: Grid) -> np.ndarray:
    """(8, 3) the outer corners of the box in space, in an order that does not depend on the axes."""
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    places = np.round(grid.to_world(ends), 6)
    return places[np.lexsort(places.T)]


@given(grids())
def test_places_lead_back_to_their_cells(grid):
    index = cells(grid)
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-6)
    assert grid.contains(grid.to_world(index)).all()


@given(grids(), counts, counts)
def test_cropped_cells_stay_in_their_places(grid, before, more):
    start = np.minimum(before, np.array(grid.shape) - 1)
    stop = np.minimum(start + 1 + more, grid.shape)
    part = grid.crop(start, stop)
    np.testing.assert_allclose(part.to_world(cells(part)), grid.to_world(cells(part) + start), atol=1e-9)


@given(grids(), counts, counts)
def test_padding_is_undone_by_cropping(grid, before, after):
    padded = grid.pad(before, after)
    assert padded.shape == tuple(np.array(grid.shape) + before + after)
    assert padded.crop(before, np.array(before) + grid.shape).same_as(grid, 1e-9)


@given(grids(), shapes)
def test_resized_grid_fills_the_same_box(grid, shape):
    again = grid.resize(shape)
    assert again.shape == shape
    np.testing.assert_allclose(again.centre, grid.centre, atol=1e-6)
    np.testing.assert_allclose(again.spacing * shape, grid.spacing * grid.shape)
    index = np.array([[0, 0, 0], shape]) - 0.5
    ends = np.array([[0, 0, 0], grid.shape]) - 0.5
    np.testing.assert_allclose(again.to_world(index), grid.to_world(ends), atol=1e-6)


@given(grids(), st.sets(st.integers(0, 2)))
def test_flipped_cells_stay_in_their_places(grid, axes):
    flipped = grid.flip(*axes)
    index = cells(grid)
    there = index.copy()
    for axis in axes:
        there[:, axis] = grid.shape[axis] - 1 - index[:, axis]
    np.testing.assert_allclose(flipped.to_world(there), grid.to_world(index), atol=1e-6)
    assert flipped.flip(*axes).same_as(grid, 1e-6)


@given(grids(), st.sampled_from(ORDERS))
def test_transposed_cells_stay_in_their_places(grid, order):
    turned = grid.transpose(order)
    index = cells(grid)
    np.testing.assert_allclose(turned.to_world(index[:, order]), grid.to_world(index), atol=1e-9)
    assert turned.shape == tuple(np.array(grid.shape)[list(order)])


@given(grids())
def test_anatomical_axes_run_to_superior_posterior_left_and_fill_the_same_box(grid):
    order, flipped = grid.anatomical()
    seen = grid.transpose(order).flip(*flipped)
    towards = np.array([seen.directions[2, 0], -seen.directions[1, 1], -seen.directions[0, 2]])
    assert towards.sum() >= 1 - 1e-6  # no better choice of axes can do worse than this
    np.testing.assert_allclose(borders(seen), borders(grid), atol=1e-5)
    assert seen.anatomical() == ((0, 1, 2), ())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_slightly_turned_axes_are_named_for_the_nearest_direction(order, signs):
    grid = oblique_grid(degrees=(8, -11, 9), axes=order, signs=signs)
    axes, flipped = grid.anatomical()
    seen = grid.transpose(axes).flip(*flipped)
    assert [seen.directions[2, 0], -seen.directions[1, 1], -seen.directions[0, 2]] == pytest.approx([1, 1, 1], abs=0.06)


def test_box_ends_at_the_border_of_its_cells():
    grid = oblique_grid((2, 3, 4))
    assert grid.contains(grid.to_world([[-0.5, 1, 1], [1.5, 2.5, 3.5]])).all()
    assert not grid.contains(grid.to_world([[-0.51, 1, 1], [1, 2.51, 1], [1, 1, 3.6]])).any()


def test_itk_and_dicom_get_left_posterior_superior_and_columns_first():
    grid = oblique_grid()
    place = grid.lps_affine @ [5, 4, 3, 1]
    np.testing.assert_allclose((LPS @ place)[:3], grid.to_world((3, 4, 5)))


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((2, 3, 4), np.zeros((4, 4))),
        ((2, 3, 4), np.diag([1.0, 1, 0, 1])),
        ((2, 3, 4), np.full((4, 4), np.nan)),
        ((2, 3, 4), np.eye(3)),
        ((2, 0, 4), np.eye(4)),
        ((2, 3), np.eye(4)),
    ],
    ids=["zero", "flat", "not numbers", "3x3", "empty", "two sizes"],
)
def test_grid_without_a_box_is_refused(shape, affine):
    with pytest.raises(ValueError, match=r"affine|sizes"):
        Grid(shape, affine)


def test_grid_cannot_be_changed_from_outside():
    affine = np.eye(4)
    grid = Grid((2, 3, 4), affine)
    affine[0, 3] = 99
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 1


@given(grids())
@settings(max_examples=20)
def test_grid_equals_itself_and_not_one_a_little_beside(grid):
    moved = grid.affine.copy()
    moved[1, 3] += 0.01
    assert grid.same_as(Grid(grid.shape, grid.affine))
    assert not grid.same_as(Grid(grid.shape, moved))
    assert not grid.same_as(grid.pad((0, 0, 1), (0, 0, 0)))


def test_leaning_axes_are_noticed():
    grid = oblique_grid()
    affine = grid.affine.copy()
    affine[:3, 0] += 0.05 * affine[:3, 1]
    assert grid.is_orthogonal
    assert not Grid(grid.shape, affine).is_orthogonal


def test_token_weights_are_split_grid_by_grid():
    tokens = TokenMap((Grid((1, 2, 3), np.eye(4)), Grid((2, 1, 1), np.eye(4))))
    assert tokens.cells == 8
    first, second = tokens.split(np.arange(8))
    np.testing.assert_array_equal(first, [[[0, 1, 2], [3, 4, 5]]])
    np.testing.assert_array_equal(second.ravel(), [6, 7])
    with pytest.raises(ValueError, match="7 weights for 8 cells"):
        tokens.split(np.arange(7))


def test_cells_centred_outside_every_box_are_padding():
    box = Grid((4, 4, 4), np.eye(4))
    wider = TokenMap((box.pad((0, 2, 0), (0, 2, 0)),))
    inside = wider.inside((box,)).reshape(4, 8, 4)
    assert inside[:, 2:6].all()
    assert not inside[:, :2].any()
    assert not inside[:, 6:].any()
    assert wider.inside(()).all()
