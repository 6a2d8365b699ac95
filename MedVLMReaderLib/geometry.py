"""Where things lie: `Grid`, a box of cells in patient space; `TokenMap`, the cells that visual tokens stand for.

Indices are (k, j, i), the order of the array; places are (r, a, s) in millimetres, patient Right, Anterior and Superior
positive (3D Slicer's and NIfTI's frame). ITK and DICOM use (l, p, s): `Grid.lps_affine` gives theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shape = tuple[int, int, int]
Array = NDArray[Any]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Flips (r, a, s) to (l, p, s) and back."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of cells in patient space."""

    shape: Shape
    """Cells along k, j, i."""
    affine: Array = field(repr=False)
    """(4, 4) float64: cell-centre index (k, j, i, 1) -> (r, a, s, 1) in millimetres."""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"An affine is a finite 4x4 matrix, not {affine.tolist()}.")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError(f"The affine {affine[:3, :3].tolist()} cannot be inverted: the voxels have no volume.")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"A grid has three positive sizes, not {self.shape}.")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1]), int(self.shape[2])))

    @property
    def spacing(self) -> Array:
        """(3,) distance between neighbouring cell centres along k, j, i, in mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def directions(self) -> Array:
        """(3, 3) unit vectors in (r, a, s), one column for each of k, j, i."""
        return self.affine[:3, :3] / self.spacing

    @property
    def centre(self) -> Array:
        """(r, a, s) of the middle of the box."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    @property
    def lps_affine(self) -> Array:
        """(4, 4): index (i, j, k, 1) -> (l, p, s, 1), as ITK and DICOM write it."""
        return LPS @ self.affine[:, [2, 1, 0, 3]]

    @property
    def is_orthogonal(self) -> bool:
        """Whether the three axes stand at right angles (to a part in a thousand)."""
        return bool(np.allclose(self.directions.T @ self.directions, np.eye(3), atol=1e-3))

    def to_world(self, index: ArrayLike) -> Array:
        """(..., 3) places (r, a, s) in mm of (..., 3) indices (k, j, i)."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, ras: ArrayLike) -> Array:
        """(..., 3) fractional indices (k, j, i) of (..., 3) places (r, a, s) in mm."""
        index: Array = (np.asarray(ras, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return index

    def contains(self, ras: ArrayLike) -> Array:
        """(...) whether each place lies inside the box, cell borders included."""
        index = self.to_index(ras)
        return np.asarray(np.all((index >= -0.5 - 1e-6) & (index <= np.array(self.shape) - 0.5 + 1e-6), axis=-1))

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The cells from `start` up to, not including, `stop`; beyond the box is padding."""
        shape = tuple(int(b - a) for a, b in zip(start, stop, strict=True))
        return Grid(shape, self._moved(np.asarray(start, np.float64), np.eye(3)))  # type: ignore[arg-type]

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """The box grown by so many cells on either side of each axis."""
        return self.crop([-b for b in before], [n + a for n, a in zip(self.shape, after, strict=True)])

    def resize(self, shape: Sequence[int]) -> Grid:
        """The same box cut into `shape` cells. Patching and pooling are this too."""
        scale = np.array(self.shape) / np.array(shape)
        return Grid(tuple(shape), self._moved((scale - 1) / 2, np.diag(scale)))  # type: ignore[arg-type]

    def flip(self, *axes: int) -> Grid:
        """The same cells counted from the other end of `axes`."""
        sign, start = np.ones(3), np.zeros(3)
        for axis in axes:
            sign[axis], start[axis] = -1.0, self.shape[axis] - 1
        return Grid(self.shape, self._moved(start, np.diag(sign)))

    def transpose(self, order: Sequence[int]) -> Grid:
        """The same cells with the axes in another order, as numpy.transpose."""
        shape = tuple(self.shape[axis] for axis in order)
        return Grid(shape, self._moved(np.zeros(3), np.eye(3)[:, list(order)]))  # type: ignore[arg-type]

    def _moved(self, start: Array, matrix: Array) -> Array:
        """The affine after indices of a new grid map to ours by start + matrix @ index."""
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = matrix, start
        return np.asarray(self.affine @ step)

    def anatomical(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """(order, flipped) that make k run to Superior, j to Posterior and i to Left, nearest to the grid's own axes.

        Transpose by `order`, then flip the axes `flipped`. Without resampling: an oblique grid stays oblique.
        """
        towards = self.directions * np.array([[-1.0], [-1.0], [1.0]])  # rows: how far to Left, Posterior, Superior
        order = _best_axes(np.abs(towards)[::-1])  # for Superior, Posterior, Left in turn
        flipped = tuple(n for n, axis in enumerate(order) if towards[2 - n, axis] < 0)
        return order, flipped

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether the two have the same cells in the same places."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return self.shape == other.shape and bool(
            np.allclose(self.to_world(corners), other.to_world(corners), atol=tolerance_mm)
        )


def _best_axes(alignment: Array) -> tuple[int, int, int]:
    """The order of columns that puts the largest total of alignment on the diagonal; ties go to the first order."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(orders, key=lambda order: round(sum(float(alignment[n, a]) for n, a in enumerate(order)), 9))


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Which cells the visual tokens stand for: grids in order, and how token weights spread over cells."""

    grids: tuple[Grid, ...]
    spread: Callable[[Array], Array] | None = None
    """(..., tokens) -> (..., cells); None: token n is cell n."""

    @property
    def cells(self) -> int:
        """Cells of all grids together."""
        return sum(int(np.prod(grid.shape)) for grid in self.grids)

    def inside(self, boxes: Sequence[Grid]) -> Array:
        """(cells,) bool: whether each cell's centre lies in one of `boxes`; without any box, all do."""
        centres = [
            grid.to_world(np.stack(np.unravel_index(np.arange(np.prod(grid.shape)), grid.shape), -1))
            for grid in self.grids
        ]
        places = np.concatenate(centres)
        return np.any([box.contains(places) for box in boxes], axis=0) if boxes else np.ones(len(places), bool)

    def split(self, weights: Array) -> list[Array]:
        """(cells,) weights as one (k, j, i) array a grid."""
        if weights.shape[-1] != self.cells:
            raise ValueError(f"{weights.shape[-1]} weights for {self.cells} cells.")
        ends = np.cumsum([int(np.prod(grid.shape)) for grid in self.grids])[:-1]
        return [part.reshape(grid.shape) for part, grid in zip(np.split(weights, ends), self.grids, strict=True)]
