"""Heatmaps in patient space: how concentrated they are, and several grids put into one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.volume import Volume

MOST_CELLS = 2_000_000
"""A combined heatmap is not cut finer than this."""
TWICE = 1.75
"""Grids that fill the box around them so many times hold the same places."""

REACH = 3.0
"""Standard deviations, as far as a Gaussian goes."""


def effective_cells(heats: Volume | Sequence[Volume]) -> float:
    """exp of the entropy of the shares of all cells: 1 where one cell has all, all cells where all are even."""
    volumes = [heats] if isinstance(heats, Volume) else heats
    share = np.concatenate([heat.values.ravel() for heat in volumes]).astype(np.float64)
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def combined(heats: Sequence[Volume]) -> Volume:
    """Heatmaps of several grids as one, values float32 that sum to 1. A single one stays as it is.

    The cells follow the first grid's axes, cut so that none is wider than a cell of any grid, up to MOST_CELLS. Each
    holds the density of `densities` at its centre: nothing is interpolated, and places outside all boxes hold 0.
    The peak is the place of the largest density, the middle of the cell where several grids agree most.
    """
    if len(heats) == 1:
        return heats[0]
    grid = _common([heat.grid for heat in heats])
    density, _ = densities(heats, grid)
    return Volume((density / density.sum()).astype(np.float32), grid, notes=heats[0].notes)


def softened(heat: Volume, grids: Sequence[Grid]) -> Volume:
    """A combined heatmap, each place averaged with those around it: a Gaussian of half a cell of the finest grid.

    The sum stays. Only where several grids hold the same places, as the planes of one scan do: there a lone thin cell
    of one would outweigh a place on which the others agree. Slices side by side stay as they are: nothing was seen
    between them.
    """
    cells_mm3, sizes = [abs(float(np.linalg.det(grid.affine[:3, :3]))) for grid in grids], [g.shape for g in grids]
    filled = sum(cell * float(np.prod(shape)) for cell, shape in zip(cells_mm3, sizes, strict=True))
    box = abs(float(np.linalg.det(heat.grid.affine[:3, :3]))) * heat.values.size
    if len(grids) < 2 or filled < TWICE * box or not heat.values.any():
        return heat
    sigma_mm = min(cells_mm3) ** (1 / 3) / 2
    across = [_gaussian(count, sigma_mm / step) for count, step in zip(heat.grid.shape, heat.grid.spacing, strict=True)]
    values = np.tensordot(across[0], across[1] @ (heat.values.astype(np.float64) @ across[2]), 1)
    return replace(heat, values=(values * (heat.values.sum() / values.sum())).astype(np.float32))


def _gaussian(count: int, sigma: float) -> Array:
    """(count, count), symmetric: what the cells of a line give each other, `sigma` in cells. Outside lies 0.

    Three products with such matrices are the Gaussian of `scipy.ndimage`, whose import would hold up a window.
    """
    away, reach = np.abs(np.subtract.outer(np.arange(count), np.arange(count))), int(REACH * sigma + 0.5)
    shares = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.where(away <= reach, np.exp(-0.5 * (away / sigma) ** 2), 0) / shares.sum()


def peak(heats: Sequence[Volume]) -> Array:
    """(r, a, s) of the place to which heatmaps of several grids point together."""
    return softened(combined(heats), [heat.grid for heat in heats]).peak()


def densities(heats: Sequence[Volume], grid: Grid) -> tuple[Array, Array]:
    """Two arrays on `grid`: share per mm3 at each cell's centre, and the same if all cells had equal shares.

    The mean over the heatmaps whose box holds the centre, of the nearest cell's share by that cell's size, so that
    coarse and fine cells mix fairly. 0 outside all boxes. A box thinner than a cell of `grid` counts as thick as that.
    """
    density, even, count = (np.zeros(grid.shape) for _ in range(3))
    cells = sum(heat.values.size for heat in heats)
    for heat in heats:
        size_mm3 = abs(float(np.linalg.det(heat.grid.affine[:3, :3])))
        region, nearest, inside = shared(heat.grid, grid)
        density[region] += np.where(inside, heat.values[nearest] / size_mm3, 0)
        even[region] += inside / (size_mm3 * cells)
        count[region] += inside
    count = np.maximum(count, 1)
    return density / count, even / count


def shared(box: Grid, grid: Grid) -> tuple[tuple[slice, ...], tuple[Array, ...], Array]:
    """The region of `grid` around `box`; there, the nearest cells of `box`, and whether the place lies in it."""
    step = np.linalg.solve(box.affine, grid.affine)
    middle = (np.array(box.shape) - 1) / 2
    half = np.maximum(box.shape, np.abs(step[:3, :3]).sum(1)) / 2 + 1e-6
    corners = box.to_world(middle + half * (np.indices((2, 2, 2)).reshape(3, -1).T * 2 - 1))
    reach = grid.to_index(corners)
    start = np.clip(np.ceil(reach.min(0) - 1e-6), 0, grid.shape).astype(int)
    stop = np.maximum(np.clip(np.floor(reach.max(0) + 1e-6) + 1, 0, grid.shape).astype(int), start)
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    nearest, inside = [], np.ones(tuple(stop - start), bool)
    for row, centre, most, size in zip(step[:3], middle, half, box.shape, strict=True):
        index = sum(factor * axis for factor, axis in zip(row[:3], axes, strict=True)) + row[3]
        inside &= np.abs(index - centre) <= most
        nearest.append(np.clip(np.floor(index + 0.5), 0, size - 1).astype(np.intp))
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)), tuple(nearest), inside


def _common(grids: Sequence[Grid]) -> Grid:
    """Along the first grid's axes, a box around all grids, fine enough that every cell of theirs holds a centre."""
    first = grids[0]
    moves = np.concatenate([np.abs(np.linalg.solve(grid.affine, first.affine))[:3, :3] for grid in grids])
    parts = np.ceil(np.maximum(moves.max(0), 1) - 1e-3)  # of a cell of the first grid, along each of its axes
    while ((moves / parts).sum(1) > 1 + 1e-3).any():  # oblique grids: a step moves along several of their axes
        worst = moves[(moves / parts).sum(1).argmax()] / parts
        parts[worst.argmax()] += 1
    corners = np.indices((2, 2, 2)).reshape(3, -1).T
    ends = first.to_index(np.concatenate([grid.to_world(corners * grid.shape - 0.5) for grid in grids]))
    start, shape = _cut(ends, parts)
    while np.prod(shape) > MOST_CELLS:
        parts *= 0.9
        start, shape = _cut(ends, parts)
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = np.diag(1 / parts), (start + 0.5) / parts - 0.5
    return Grid(tuple(shape), first.affine @ move)


def _cut(ends: Array, parts: Array) -> tuple[Array, Array]:
    """(first index, cells) along each axis of the box around `ends`, every unit cut into `parts`."""
    edges = (ends + 0.5) * parts
    start = np.floor(edges.min(0) + 1e-3)
    return start, np.maximum(np.ceil(edges.max(0) - 1e-3) - start, 1).astype(int)
