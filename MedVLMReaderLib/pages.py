"""What a model that reads ordinary pictures is shown: slices of a scan and the displayed planes as 8-bit RGB pictures.

Vision-language models of the general kind know photographs. A slice becomes one: the way a person looks at it, square
pixels, three grey windows as red, green and blue for CT (as MedGemma 1.5 learned it), grey for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.plain import Plain
from MedVLMReaderLib.volume import PLANES, PlaneName, View, Volume, planes, resampled

MEDGEMMA_WINDOWS = ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))
"""(black, full) in HU for red, green, blue: all of the body, soft tissue, brain; published with MedGemma 1.5."""
MOST_SLICES, LARGEST_SIDE = 1000, 4096


@dataclass(frozen=True)
class PageRecipe(Plain):
    """How a study becomes pictures."""

    most: int = 85
    """Slices at most, over all series; evenly chosen, the first and the last among them."""
    plane: PlaneName = "axial"
    """The plane of the slices; axial ones go from head to feet."""
    windows_ct: tuple[tuple[float, float], ...] = MEDGEMMA_WINDOWS
    """(black, full) in HU of red, green and blue."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Shares of the voxels below black and below white, for scans that are not in HU; grey."""
    square: bool = True
    """Pictures are padded with black to a square: for models that stretch whatever they get to one."""
    side: int = 1024
    """Pixels of the longer side at most; larger pictures are averaged down."""
    displayed: bool = True
    """The three planes on the screen follow the slices, at the screen's window."""

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST_SLICES or not 1 <= self.side <= LARGEST_SIDE:
            raise ValueError(f"most {self.most} with side {self.side}")
        low, high = self.percentiles
        if self.plane not in PLANES or not 0 <= low < high <= 100:
            raise ValueError(f"plane {self.plane} with percentiles {self.percentiles}")
        if len(self.windows_ct) != 3 or not all(black < full for black, full in self.windows_ct):
            raise ValueError(f"windows_ct {self.windows_ct}: three windows, each (black, full) with black below full")

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> PageRecipe:
        """The recipe written by `to_json`; TypeError for a field that is not one of a recipe's."""
        tuples: dict[str, Any] = {
            name: tuple(tuple(one) if isinstance(one, list) else one for one in value)
            for name, value in plain.items()
            if isinstance(value, list)
        }
        return cls(**{**plain, **tuples})


@dataclass(frozen=True, eq=False)
class Page:
    """One picture and where it lies."""

    label: str
    """What the model is told that it is."""
    pixels: Array
    """(rows, columns, 3) uint8."""
    grid: Grid
    """(1, rows, columns). Where slices are skipped it is as thick as the stretch for which it stands."""


def pages(volumes: Sequence[Volume], recipe: PageRecipe, view: View | None = None) -> tuple[Page, ...]:
    """The slices of every series, then the three displayed planes where there is a view.

    The same for the same scan in another storage order. Raises ReaderError without a volume, with more series than
    slices may be shown, or where the view's cursor lies outside.
    """
    if not volumes:
        raise ReaderError("No volume was given. Choose a scan first.")
    if len(volumes) > recipe.most:
        raise ReaderError(
            f"The study has {len(volumes)} series; this model can be shown {recipe.most} slices. Choose fewer series."
        )
    share = recipe.most // len(volumes)
    found = [page for n, volume in enumerate(volumes) for page in _slices(volume, recipe, share, n, len(volumes))]
    return (*found, *(_displayed(volumes, recipe, view) if view and recipe.displayed else ()))


def notes(volumes: Sequence[Volume], recipe: PageRecipe) -> tuple[str, ...]:
    """What was assumed or left out, in sentences for the user."""
    said = []
    share = recipe.most // max(len(volumes), 1)
    for volume in volumes:
        said += list(_notes(volume, recipe, share))
    return tuple(dict.fromkeys(said))


def _notes(volume: Volume, recipe: PageRecipe, share: int) -> list[str]:
    said, count = [], volume.as_seen(recipe.plane).grid.shape[0]
    if count > share:
        said.append(
            f"The model was shown {share} of {count} {recipe.plane} slices, evenly chosen; it saw nothing in between, "
            "and heatmaps show the nearest slice that it saw."
        )
    if volume.acquisition_plane != recipe.plane:
        said.append(
            f"The scan was acquired as {volume.acquisition_plane} slices; the model was shown {recipe.plane} ones, "
            "cut through them."
        )
    if volume.modality == "CT":
        colours = ("red", "green", "blue")
        windows = ", ".join(
            f"{c} {low:g} to {high:g}" for c, (low, high) in zip(colours, recipe.windows_ct, strict=True)
        )
        said.append(f"CT was shown as colours, HU: {windows}.")
    elif volume.modality == "":
        said.append("The file does not say whether this is CT or MR; its grey levels were scaled like MR.")
    return said


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of `count` slices, evenly spread from the first to the last; of one, the middle."""
    if most == 1:
        return [(count - 1) // 2]
    return sorted({round(n) for n in np.linspace(0, count - 1, min(most, count))})


def _slices(volume: Volume, recipe: PageRecipe, share: int, series: int, of: int) -> list[Page]:
    stack = volume.as_seen(recipe.plane)
    if recipe.plane == "axial":
        stack = stack.flip(0)  # from head to feet
    indices = chosen(stack.grid.shape[0], share)
    limits = _limits(volume, recipe)
    before = f"SERIES {series + 1}, " if of > 1 else ""
    found = []
    for n, (index, thick) in enumerate(zip(indices, _thickness(indices, stack.grid.shape[0]), strict=True), start=1):
        slice_ = stack.crop((index, 0, 0), (index + 1, *stack.grid.shape[1:]))
        pixels, grid = _picture(slice_, limits, recipe)
        found.append(Page(f"{before}SLICE {n}", pixels, _thicker(grid, thick)))
    return found


def _limits(volume: Volume, recipe: PageRecipe) -> tuple[tuple[float, float], ...]:
    """(black, full) of red, green and blue, in the volume's own numbers."""
    if volume.modality == "CT":
        return recipe.windows_ct
    low, high = (float(x) for x in np.percentile(volume.anatomical().values[:, ::2, ::2], recipe.percentiles))
    return ((low, max(high, low + 1e-6)),) * 3


def _thickness(indices: Sequence[int], count: int) -> list[float]:
    """How many slices each chosen one stands for: up to halfway to the farther neighbour; one where none is skipped."""
    if len(indices) == 1:
        return [float(count)]
    gaps = [float(gap) for gap in np.diff(indices)]
    return [max(pair) for pair in zip([gaps[0], *gaps], [*gaps, gaps[-1]], strict=True)]


def _thicker(grid: Grid, times: float) -> Grid:
    """The same slice in the same place, so many times as thick."""
    affine = grid.affine.copy()
    affine[:3, 0] *= times
    return Grid(grid.shape, affine)


def _displayed(volumes: Sequence[Volume], recipe: PageRecipe, view: View) -> list[Page]:
    """The axial, coronal and sagittal slices on the screen, of the first series in which the cursor lies."""
    shown = next((volume for volume in volumes if volume.grid.contains(view.cursor_ras)), volumes[0])
    found = []
    for plane in planes(shown, view):
        slice_ = replace(shown, values=plane.pixels[None], grid=plane.grid)
        pixels, grid = _picture(slice_, ((0.0, 255.0),) * 3, recipe)
        found.append(Page(f"DISPLAYED {plane.name.upper()} PLANE", pixels, grid))
    return found


def _picture(slice_: Volume, limits: Sequence[tuple[float, float]], recipe: PageRecipe) -> tuple[Array, Grid]:
    """(rows, columns, 3) uint8 with square pixels, of a volume of one slice, and where they lie."""
    grid = _square_pixels(slice_.grid, recipe.side)
    values = slice_.values if grid.shape == slice_.grid.shape else resampled(slice_, grid, 0.0).values
    low, high = np.array(limits, np.float32).T
    shares = np.clip((values[0].astype(np.float32)[..., None] - low) / (high - low), 0, 1)
    pixels = np.round(shares * 255).astype(np.uint8)
    return _padded(pixels, grid) if recipe.square else (pixels, grid)


def _square_pixels(grid: Grid, side: int) -> Grid:
    """The same slice cut into pixels as wide as high (within a whole pixel a side), `side` of them at most."""
    extent = np.array(grid.shape[1:]) * grid.spacing[1:]
    pixel_mm = max(float(grid.spacing[1:].min()), float(extent.max()) / side)
    rows, columns = (max(1, round(length / pixel_mm)) for length in extent)
    return grid.resize((1, rows, columns))


def _padded(pixels: Array, grid: Grid) -> tuple[Array, Grid]:
    """The picture in the middle of a black square."""
    rows, columns = pixels.shape[:2]
    down, across = max(columns - rows, 0), max(rows - columns, 0)
    before = (down // 2, across // 2)
    after = (down - before[0], across - before[1])
    wide = ((before[0], after[0]), (before[1], after[1]), (0, 0))
    return np.pad(pixels, wide), grid.pad((0, *before), (0, *after))
