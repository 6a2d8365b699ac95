"""What a model is shown: a volume cut into stacks of pictures, one a plane, by a recipe that is plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.plain import Plain
from MedVLMReaderLib.volume import PLANES, Modality, PlaneName, Volume, resampled

AIR_HU = -1024.0
LARGEST_PICTURE, SMALLEST_MM = 4096, 0.1


@dataclass(frozen=True)
class Recipe(Plain):
    """How a volume becomes stacks of square pictures, each plane the way a person looks at it."""

    size: int
    """Rows and columns of a picture."""
    pixel_mm: float | None
    """Width of a pixel; the picture is centred on the volume, trimmed or padded. None: slices are stretched to fit."""
    slice_mm: tuple[float | None, float | None, float | None]
    """Thickness of the axial, coronal and sagittal slices; None: the volume's own."""
    windows_ct: tuple[tuple[float, float], ...]
    """(lowest, highest) HU of each channel; shown as 0 to 1."""
    windows_mr: tuple[tuple[float, float], ...]
    """The same for MR, in units of the scan's bright tissue."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_PICTURE:
            raise ValueError(f"pictures of size {self.size}")
        lengths = [mm for mm in (self.pixel_mm, *self.slice_mm) if mm is not None]
        if len(self.slice_mm) != 3 or not all(mm >= SMALLEST_MM for mm in lengths):
            raise ValueError(f"pixel_mm {self.pixel_mm} with slice_mm {self.slice_mm}")
        if not self.windows_ct or len(self.windows_ct) != len(self.windows_mr):
            raise ValueError(f"{len(self.windows_ct)} windows_ct with {len(self.windows_mr)} windows_mr")
        if not all(low < high for low, high in (*self.windows_ct, *self.windows_mr)):
            raise ValueError("a window that ends before it begins")

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Recipe:
        """The recipe written by `to_json`; TypeError for a field that is not one of a recipe's."""
        pairs = {name: tuple((float(a), float(b)) for a, b in plain[name]) for name in ("windows_ct", "windows_mr")}
        return cls(**{**plain, **pairs, "slice_mm": tuple(plain["slice_mm"])})


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one plane, ready for an encoder."""

    plane: PlaneName
    volume: Volume
    """(slices, size, size) float32: HU for CT; multiples of the bright tissue otherwise."""
    acquired_mm: float
    """Distance of the scan's own samples across this plane: tells the plane in which it was acquired."""

    def channels(self, recipe: Recipe) -> Array:
        """(slices, windows, size, size) float32 in 0 to 1."""
        return windows(self.volume.values, self.volume.modality, recipe)


def windows(values: Array, modality: Modality, recipe: Recipe) -> Array:
    """(..., rows, columns) grey values through each window of the recipe: (..., windows, rows, columns) in 0 to 1."""
    limits = recipe.windows_ct if modality == "CT" else recipe.windows_mr
    low, high = np.array(limits, np.float32).T[:, :, None, None]
    return np.clip((values.astype(np.float32)[..., None, :, :] - low) / (high - low), 0, 1)


def stacks(volume: Volume, recipe: Recipe) -> tuple[Stack, ...]:
    """The axial, coronal and sagittal stacks of a volume. The same for the same scan in another storage order.

    Raises ReaderError where the volume has fewer than 2 slices.
    """
    if min(volume.grid.shape) < 2:
        raise ReaderError(
            f"The volume has {' x '.join(map(str, volume.grid.shape))} voxels; a model that reads three planes needs "
            "at least 2 each way. Choose a series with more slices."
        )
    volume = volume.anatomical()
    scaled, fill = _scaled(volume)
    return tuple(_stack(scaled, plane, recipe, fill) for plane in PLANES)


def notes(volume: Volume, recipe: Recipe) -> tuple[str, ...]:
    """What was assumed or left out, in sentences for the user."""
    said = []
    if volume.modality == "":
        said.append("The file does not say whether this is CT or MR; its grey levels were scaled like MR.")
    if recipe.pixel_mm:
        trimmed = float(np.max(np.array(volume.grid.shape) * volume.grid.spacing)) - recipe.size * recipe.pixel_mm
        if trimmed > recipe.pixel_mm:
            said.append(f"Pictures show the middle {recipe.size * recipe.pixel_mm:.0f} mm; up to {trimmed / 2:.0f} mm "
                        "were trimmed from either side.")  # fmt: skip
    return tuple(said)


def _scaled(volume: Volume) -> tuple[Volume, float]:
    """The volume in HU, or in multiples of its bright tissue; and the value of the air around it."""
    if volume.modality == "CT":
        return volume, AIR_HU
    sample = volume.values[::2, ::2, ::2].astype(np.float32)
    low = float(np.percentile(sample, 0.5))
    tissue = sample[sample > sample.mean()]
    high = float(np.percentile(tissue, 95)) if tissue.size else low + 1.0
    scale = max(high - low, 1e-6)
    return replace(volume, values=(volume.values.astype(np.float32) - np.float32(low)) / np.float32(scale)), 0.0


def _stack(volume: Volume, plane: PlaneName, recipe: Recipe, fill: float) -> Stack:
    seen = volume.as_seen(plane)
    grid = _pictures(seen.grid, recipe.slice_mm[PLANES.index(plane)], recipe)
    return Stack(plane, resampled(seen, grid, fill), float(seen.grid.spacing[0]))


def _pictures(box: Grid, slice_mm: float | None, recipe: Recipe) -> Grid:
    """A grid of square pictures over a box of the same axes, with the same centre."""
    extent = np.array(box.shape) * box.spacing
    spacing = np.array([slice_mm or box.spacing[0], *(extent[1:] / recipe.size)])
    if recipe.pixel_mm:
        spacing[1:] = recipe.pixel_mm
    count = max(2, math.ceil(extent[0] / spacing[0] - 1e-6))
    affine = np.eye(4)
    affine[:3, :3] = box.directions * spacing
    affine[:3, 3] = box.centre - affine[:3, :3] @ ((np.array([count, recipe.size, recipe.size]) - 1) / 2)
    return Grid((count, recipe.size, recipe.size), affine)
