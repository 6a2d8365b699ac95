"""What a model that reads one block of voxels is shown: a stack of 8-bit pictures, cut and stretched to a fixed shape.

Med3DVLM and M3D-LaMed learned from pictures as they stand on a screen: a window's 256 grey levels, stretched over the
scan to 0 to 1, cut to what is not black, stretched to a fixed shape. No millimetres, no Hounsfield units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Shape
from MedVLMReaderLib.plain import Plain
from MedVLMReaderLib.volume import PLANES, PlaneName, View, Volume, windowed

LARGEST = 1024
"""No side of a block may be longer."""


@dataclass(frozen=True)
class BlockRecipe(Plain):
    """How a volume becomes a block."""

    shape: Shape
    """Pictures, rows, columns."""
    window_ct: tuple[float, float] = (-160.0, 240.0)
    """(black, white) in HU: soft tissue. The models learned from pictures at whatever window somebody chose."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Shares of the voxels below black and below white, for scans that are not in HU."""
    foreground: float = 0.0
    """The block is cut to the box around all that is brighter, on the scale of 0 to 1."""
    plane: PlaneName | None = None
    """The plane of the pictures; None: the one in which the scan was acquired."""

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or not all(1 <= n <= LARGEST for n in self.shape):
            raise ValueError(f"a block of shape {self.shape}")
        low, high = self.percentiles
        if not self.window_ct[0] < self.window_ct[1] or not 0 <= low < high <= 100:
            raise ValueError(f"window_ct {self.window_ct} with percentiles {self.percentiles}")
        if not 0 <= self.foreground < 1 or self.plane not in (None, *PLANES):
            raise ValueError(f"foreground {self.foreground} with plane {self.plane}")

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> BlockRecipe:
        """The recipe written by `to_json`; TypeError for a field that is not one of a recipe's."""
        lists: dict[str, Any] = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        return cls(**{**plain, **lists})


def on_screen(recipe: BlockRecipe, view: View | None) -> BlockRecipe:
    """The recipe with the window of the screen for CT: the models learned from what a radiologist had on the screen."""
    if view is None:
        return recipe
    half = max(view.window, 1e-6) / 2
    return replace(recipe, window_ct=(view.level - half, view.level + half))


def block(volume: Volume, recipe: BlockRecipe) -> Volume:
    """The volume as float32 of 0 to 1 in the recipe's shape; its grid says where its voxels lie in the patient.

    Pictures of one plane, each the way a radiologist looks at it. The same for the same scan in another storage order.
    Raises ReaderError where the volume has fewer than 2 slices.
    """
    if min(volume.grid.shape) < 2:
        raise ReaderError(
            f"The volume has {' x '.join(map(str, volume.grid.shape))} voxels; a model that reads a block needs at "
            "least 2 each way. Choose a series with more slices."
        )
    pictures = _grey(volume.as_seen(_plane(volume, recipe)), recipe)
    darkest, brightest = int(pictures.values.min()), int(pictures.values.max())
    span = max(brightest - darkest, 1)
    body = _cut(pictures, darkest + recipe.foreground * span)
    return _scaled(stretched(body, recipe.shape), darkest, span)


def notes(volume: Volume, recipe: BlockRecipe) -> tuple[str, ...]:
    """What was assumed, in sentences for the user."""
    plane, acquired = _plane(volume, recipe), volume.acquisition_plane
    size = " x ".join(map(str, recipe.shape))
    how = "in which it was acquired" if plane == acquired else f"though it was acquired as {acquired} ones"
    said = [
        f"The model read the scan as {plane} pictures, {how}, "
        f"stretched to {size} voxels: it cannot measure in millimetres."
    ]
    low, high = recipe.window_ct
    if volume.modality == "CT":
        said.append(f"CT was shown to the model at a window of {low:g} to {high:g} HU; it did not see beyond.")
    elif volume.modality == "":
        said.append("The file does not say whether this is CT or MR; its grey levels were scaled like MR.")
    return tuple(said)


def _plane(volume: Volume, recipe: BlockRecipe) -> PlaneName:
    return recipe.plane or volume.acquisition_plane


def _grey(pictures: Volume, recipe: BlockRecipe) -> Volume:
    """The volume in 256 grey levels. Picture by picture, to save memory."""
    low, high = recipe.window_ct if pictures.modality == "CT" else _range(pictures.values, recipe.percentiles)
    width, level = high - low, (low + high) / 2
    return replace(pictures, values=np.stack([windowed(picture, width, level) for picture in pictures.values]))


def _range(values: Array, percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = np.percentile(values[::2, ::2, ::2], percentiles)
    return float(low), max(float(high), float(low) + 1e-6)


def _cut(pictures: Volume, darker: float) -> Volume:
    """The box around all that is brighter than `darker`; all of it where nothing is."""
    bright = pictures.values > darker
    if not bright.any():
        return pictures
    along = [np.flatnonzero(bright.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return pictures.crop([int(found[0]) for found in along], [int(found[-1]) + 1 for found in along])


def stretched(volume: Volume, shape: Shape) -> Volume:
    """The same box cut into `shape` voxels, linear between old centres, float32.

    As torch's `interpolate(mode="trilinear", align_corners=False)`, with which the models' training data were made:
    where voxels become larger, those in between are skipped, not averaged.
    """
    (lower, upper, share), rows, columns = (
        _between(old, new) for old, new in zip(volume.grid.shape, shape, strict=True)
    )
    values = np.empty(shape, np.float32)
    for k in range(shape[0]):
        below, above = (volume.values[n[k]].astype(np.float32) for n in (lower, upper))
        picture = below + (above - below) * share[k]
        values[k] = _mixed(_mixed(picture, *rows).T, *columns).T
    return replace(volume, values=values, grid=volume.grid.resize(shape))


def _between(old: int, new: int) -> tuple[Array, Array, Array]:
    """For each of `new` cells the old ones before and after its centre, and the latter's share; 32 bits, as torch."""
    centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new))
    centres = np.maximum(centres - np.float32(0.5), 0)
    lower = np.minimum(centres.astype(int), old - 1)
    return lower, np.minimum(lower + 1, old - 1), (centres - lower).astype(np.float32)


def _mixed(picture: Array, lower: Array, upper: Array, share: Array) -> Array:
    """(new, columns) of a picture (old, columns)."""
    below = picture[lower]
    return np.asarray(below + (picture[upper] - below) * share[:, None])


def _scaled(levels: Volume, darkest: int, span: int) -> Volume:
    """Grey levels to 0 to 1."""
    return replace(levels, values=(levels.values - np.float32(darkest)) / np.float32(span))
