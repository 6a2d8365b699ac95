"""`Volume`: voxels and the box they fill in patient space; `View`: what the screen shows of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid

Modality = Literal["CT", "MR", ""]
PlaneName = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[PlaneName, ...] = ("axial", "coronal", "sagittal")

_AS_SEEN: dict[PlaneName, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "axial": ((0, 1, 2), ()),  # slices to Superior; down the picture to Posterior; across it to patient Left
    "coronal": ((1, 0, 2), (0, 1)),  # slices to Anterior; down to Inferior; across to Left
    "sagittal": ((2, 0, 1), (1,)),  # slices to Left; down to Inferior; across to Posterior
}


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in patient space. Carries no patient identity."""

    values: Array
    """(k, j, i) numbers: Hounsfield units for CT, signal for MR, attention for a heatmap."""
    grid: Grid
    modality: Modality = ""
    """"" where the file does not say."""
    source: str = ""
    """An opaque key to where it came from; never a name or a path."""
    notes: tuple[str, ...] = field(default=())
    """What was done or assumed while reading, in sentences for the user."""

    def __post_init__(self) -> None:
        if self.values.shape != self.grid.shape:
            raise ValueError(f"Voxels of shape {self.values.shape} do not fill a grid of {self.grid.shape}.")

    @property
    def key(self) -> str:
        """Hash of the voxels and their place: equal for the same study, whatever file it came from."""
        digest = hashlib.sha256(np.ascontiguousarray(self.values).tobytes())
        digest.update(repr((self.values.dtype.str, self.grid.shape)).encode())
        digest.update(np.round(self.grid.affine, 4).tobytes())
        return digest.hexdigest()[:16]

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Volume:
        """The voxels from `start` up to `stop`, both inside the volume."""
        values = self.values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        return replace(self, values=values, grid=self.grid.crop(start, stop))

    def pad(self, before: Sequence[int], after: Sequence[int], value: float) -> Volume:
        """The volume grown by voxels of one value."""
        values = np.pad(self.values, list(zip(before, after, strict=True)), constant_values=value)
        return replace(self, values=values, grid=self.grid.pad(before, after))

    def flip(self, *axes: int) -> Volume:
        """The same voxels in the same places, counted from the other end of `axes`."""
        return replace(self, values=np.flip(self.values, axes), grid=self.grid.flip(*axes))

    def transpose(self, order: Sequence[int]) -> Volume:
        """The same voxels in the same places, axes in another order."""
        return replace(self, values=self.values.transpose(order), grid=self.grid.transpose(order))

    def anatomical(self) -> Volume:
        """The same voxels with k to Superior, j to Posterior, i to Left, nearest to the volume's own axes."""
        order, flipped = self.grid.anatomical()
        return self.transpose(order).flip(*flipped)

    def as_seen(self, plane: PlaneName) -> Volume:
        """The volume as a stack of pictures of one plane, each the way a radiologist looks at it.

        Axial and coronal: patient left on the right of the picture. Sagittal: anterior on the left.
        """
        order, flipped = _AS_SEEN[plane]
        return self.anatomical().transpose(order).flip(*flipped)

    def at(self, ras: ArrayLike) -> Array:
        """(...) values of the voxels nearest to (..., 3) places (r, a, s); NaN outside the volume."""
        index = np.rint(self.grid.to_index(ras)).astype(int)
        inside = np.all((index >= 0) & (index < self.grid.shape), axis=-1)
        k, j, i = np.moveaxis(np.clip(index, 0, np.array(self.grid.shape) - 1), -1, 0)
        return np.where(inside, self.values[k, j, i].astype(np.float64), np.nan)

    def peak(self) -> Array:
        """(r, a, s) of the centre of the largest voxel; of equals, the one nearest their middle."""
        largest = np.argwhere(self.values == np.nanmax(self.values))
        places = self.grid.to_world(largest)
        return np.asarray(places[np.linalg.norm(places - places.mean(0), axis=1).round(6).argmin()])

    def save(self, path: Path) -> None:
        """Write the voxels and their place as NIfTI, NRRD or MHA, by the ending of `path`."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(self.values))
        flat = self.grid.lps_affine
        image.SetSpacing([float(x) for x in self.grid.spacing[::-1]])
        image.SetOrigin([float(x) for x in flat[:3, 3]])
        image.SetDirection([float(x) for x in (flat[:3, :3] / self.grid.spacing[::-1]).ravel()])
        sitk.WriteImage(image, str(path), useCompression=True)

    @property
    def acquisition_plane(self) -> PlaneName:
        """The plane whose slices are thickest apart; axial where voxels are as deep as wide."""
        spacing = self.anatomical().grid.spacing
        across = {"axial": spacing[0], "coronal": spacing[1], "sagittal": spacing[2]}
        return max(PLANES, key=lambda plane: round(float(across[plane]), 3))


@dataclass(frozen=True)
class View:
    """What the screen shows of a volume: grey window and the point where the three planes cross."""

    window: float
    level: float
    cursor_ras: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Plane:
    """One displayed slice, as a person sees it."""

    name: PlaneName
    pixels: Array
    """(rows, columns) uint8 grey levels after the window."""
    grid: Grid
    """One slice: (1, rows, columns)."""


def default_view(volume: Volume) -> View:
    """Cursor in the middle; soft-tissue window for CT, 1st to 99th percentile otherwise."""
    r, a, s = (float(x) for x in volume.grid.centre)
    if volume.modality == "CT":
        return View(400.0, 40.0, (r, a, s))
    low, high = np.percentile(volume.values[::2, ::2, ::2], (1, 99))
    return View(max(float(high - low), 1e-6), float(high + low) / 2, (r, a, s))


def windowed(values: Array, window: float, level: float) -> Array:
    """Grey levels uint8, black at level - window / 2 and white at level + window / 2."""
    low = level - window / 2
    shares: Array = np.clip((np.asarray(values, np.float32) - low) / max(window, 1e-6), 0, 1)
    return np.round(shares * 255).astype(np.uint8)


def planes(volume: Volume, view: View | None = None) -> tuple[Plane, Plane, Plane]:
    """The axial, coronal and sagittal slices through the cursor, as a person sees them.

    Raises ReaderError where the cursor lies outside the volume.
    """
    view = view or default_view(volume)
    if not volume.grid.contains(view.cursor_ras):
        place = ", ".join(f"{x:.1f}" for x in view.cursor_ras)
        raise ReaderError(f"The cursor ({place}) mm lies outside the volume. Move it onto the scan.")
    axial, coronal, sagittal = (_plane(volume, name, view) for name in PLANES)
    return axial, coronal, sagittal


def _plane(volume: Volume, name: PlaneName, view: View) -> Plane:
    stack = volume.as_seen(name)
    index = int(np.clip(np.rint(stack.grid.to_index(view.cursor_ras)[0]), 0, stack.grid.shape[0] - 1))
    piece = stack.crop((index, 0, 0), (index + 1, *stack.grid.shape[1:]))
    return Plane(name, windowed(piece.values[0], view.window, view.level), piece.grid)


def resampled(volume: Volume, grid: Grid, fill: float) -> Volume:
    """The volume on another grid of the same axes, each cell the mean of what it covers; `fill` outside.

    Linear between centres where cells are smaller than voxels. Raises ValueError where the grids' axes differ.
    """
    step = np.linalg.solve(volume.grid.affine, grid.affine)
    if not np.allclose(step[:3, :3], np.diag(np.diag(step[:3, :3])), atol=1e-4):
        raise ValueError("The grids do not share their axes.")
    values = np.asarray(volume.values)
    order = sorted(range(3), key=lambda axis: grid.shape[axis] / values.shape[axis])  # shrink first: less to do
    for axis in order:
        weights, outside = _coverage(values.shape[axis], grid.shape[axis], step[axis, 3], step[axis, axis])
        values = _along(values, weights, outside, axis, fill)
    return replace(volume, values=values, grid=grid)


def _coverage(old: int, new: int, start: float, step: float) -> tuple[Array, Array]:
    """(new, old) float32 weights, the overlap of each new cell with the old ones, and (new,) which lie outside.

    A new cell counts as at least one old cell wide, which is linear interpolation between old centres.
    """
    centres = np.round(start + step * np.arange(new), 9)  # a border cell must not hang on an affine's last bit
    half = max(abs(round(step, 9)), 1.0) / 2
    edges = np.arange(old + 1) - 0.5
    overlap = np.diff(np.clip(edges[None], (centres - half)[:, None], (centres + half)[:, None]), axis=1)
    outside = (centres < -0.5) | (centres > old - 0.5)
    overlap[outside] = 0
    overlap[~outside] /= overlap[~outside].sum(1, keepdims=True)
    return overlap.astype(np.float32), outside


def _along(values: Array, weights: Array, outside: Array, axis: int, fill: float) -> Array:
    """`values` with one axis multiplied by `weights`; cells `outside` filled. Slice by slice, to save memory."""
    if axis == 0:
        out = (weights @ values.reshape(values.shape[0], -1).astype(np.float32)).reshape(-1, *values.shape[1:])
    elif axis == 1:
        out = np.stack([weights @ picture.astype(np.float32) for picture in values])
    else:
        out = np.stack([picture.astype(np.float32) @ weights.T for picture in values])
    np.moveaxis(out, axis, 0)[outside] = fill
    return out
