"""Pictures to keep: a heatmap over three planes of a scan, and a sheet of what a model was shown."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.heatmap import densities, effective_cells
from MedVLMReaderLib.heatmap import peak as common_peak
from MedVLMReaderLib.reading import write_whole
from MedVLMReaderLib.volume import Plane, View, Volume, default_view, planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WARNING = "Attention, not a finding. Not for clinical use."
LARGEST = 32.0
"""Times uniform that gets the last colour. The same for every map, so that a flat one looks flat."""
OPACITY = 0.75
INFERNO = np.array(  # from 0.3 to 1: the first third is too dark on a scan
    [
        (106, 23, 110), (143, 36, 105), (177, 50, 90), (210, 70, 68), (234, 99, 42),
        (248, 135, 14), (252, 178, 22), (244, 221, 79), (252, 255, 164),
    ]
)  # fmt: skip
"""(9, 3) steps of matplotlib's inferno, which people who see colours differently can order by lightness."""

_DPI = 100
_BOX = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "edgecolor": "none"}


def colours(times: Array) -> Array:
    """(..., 4) uint8 red, green, blue and opacity of (...) shares given as times uniform.

    Clear at 1 (where an even spread over all cells would be) and below; colour and opacity grow with the logarithm
    up to LARGEST, whatever the map's own largest value is.
    """
    part = np.clip(np.log2(np.maximum(times, 1)) / np.log2(LARGEST), 0, 1)
    steps = np.linspace(0, 1, len(INFERNO))
    rgb = [np.interp(part, steps, INFERNO[:, n]) for n in range(3)]
    return np.stack([*rgb, part * OPACITY * 255], axis=-1).round().astype(np.uint8)


def times_uniform(heats: Sequence[Volume], grid: Grid) -> Array:
    """What each cell of `grid` holds, by what it would if all cells of the heatmaps had equal shares; 0 outside."""
    density, even = densities(heats, grid)
    total = sum(float(heat.values.sum(dtype=np.float64)) for heat in heats)
    return np.divide(density, even * total, out=np.zeros_like(density), where=even > 0)


def overlay(
    volume: Volume,
    heat: Sequence[Volume] | Volume,
    *,
    title: str = "",
    view: View | None = None,
    path: Path | None = None,
) -> Array:
    """Three planes through the heatmap's peak, as a person sees them: (480, 1200, 3) uint8, saved as PNG at `path`.

    `heat`: a reading's `heatmaps` (exact) or its `heatmap`; its notes (method, model, revision) stand below.
    `view` gives the grey window only. A peak outside the scan, in what the model was padded with, is moved to the
    scan's nearest voxel and said so. Raises OSError where `path` cannot be written.
    """
    heats = [heat] if isinstance(heat, Volume) else list(heat)
    peak = common_peak(heats)
    cursor = _onto(volume.grid, peak)
    figure = _figure(1200, 480)
    for slot, plane in enumerate(planes(volume, replace(view or default_view(volume), cursor_ras=cursor))):
        place = _place(plane, 20 + slot * 358, 84, 342, 326)
        _draw(figure, place, plane, times_uniform(heats, plane.grid), cursor)
    largest = float(times_uniform(heats, _point(peak))[0, 0, 0])
    _bar(figure, largest)
    _title(figure, title)
    _captions(figure, heats, peak, largest, bool(volume.grid.contains(peak)))
    return _drawn(figure, path)


def _onto(grid: Grid, ras: Array) -> tuple[float, float, float]:
    """(r, a, s) of the voxel centre nearest to a place."""
    index = np.clip(np.rint(grid.to_index(ras)), 0, np.array(grid.shape) - 1)
    r, a, s = (float(x) for x in (ras if grid.contains(ras) else grid.to_world(index)))
    return r, a, s


def _point(ras: Array) -> Grid:
    """One cell of a micrometre at a place."""
    affine = np.diag([1e-3, 1e-3, 1e-3, 1.0])
    affine[:3, 3] = ras
    return Grid((1, 1, 1), affine)


def _figure(width: int, height: int) -> Figure:
    """A white picture of so many pixels, drawn without a window and without matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Figure, path: Path | None) -> Array:
    """(rows, columns, 3) uint8, also saved as PNG where a path is given."""
    from matplotlib.image import imsave

    canvas: Any = figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        packed = io.BytesIO()
        imsave(packed, pixels, format="png", metadata={"Software": "MedVLM Reader"})
        write_whole({Path(path): packed.getvalue()})
    return pixels


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the lower left."""
    across, up = figure.get_size_inches() * _DPI
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _write(figure: Figure, left: float, bottom: float, text: str, size: float, **style: Any) -> None:
    """Text at a place in pixels from the lower left; dollar signs are dollar signs."""
    across, up = figure.get_size_inches() * _DPI
    figure.text(left / across, bottom / up, text, fontsize=size, parse_math=False, **{"color": "black"} | style)


def _place(plane: Plane, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    """The plane's place in a slot, in pixels: as large as fits, millimetres as long down as across."""
    down_mm, across_mm = np.array(plane.grid.shape[1:]) * plane.grid.spacing[1:]
    scale = min(width / across_mm, height / down_mm)
    wide, tall = max(across_mm * scale, 2.0), max(down_mm * scale, 2.0)
    return left + (width - wide) / 2, bottom + (height - tall) / 2, wide, tall


def _draw(figure: Figure, place: tuple[float, float, float, float], plane: Plane, times: Array, cursor: Any) -> None:
    rgba = colours(times[0])
    opacity = rgba[..., 3:] / np.float32(255)
    mixed = plane.pixels[..., None] * (1 - opacity) + rgba[..., :3] * opacity
    axes = _axes(figure, *place)
    axes.imshow(mixed.round().astype(np.uint8), aspect="auto")
    axes.set_axis_off()
    _crosshair(axes, plane, cursor, place)
    _letters(axes, plane.grid)
    name = f"{plane.name}, {_position(plane.grid.directions[:, 0], np.array(cursor))} mm"
    _write(figure, place[0] + place[2] / 2, 66, name, 9, ha="center", color="0.3")


def _position(across: Array, ras: Array) -> str:
    """Where a slice lies, in mm: the patient coordinate, of a place in it, that changes most from slice to slice."""
    axis = int(np.argmax(np.abs(across)))
    sign = 1.0 if ras[axis] >= 0 else -1.0
    return f"{letters(np.eye(3)[axis] * sign)} {abs(ras[axis]):.1f}"


def _crosshair(axes: Axes, plane: Plane, cursor: Any, place: tuple[float, float, float, float]) -> None:
    """Thin lines that leave the peak itself free."""
    _, row, column = plane.grid.to_index(cursor)
    rows, columns = plane.pixels.shape
    gap_rows, gap_columns = 14 * rows / place[3], 14 * columns / place[2]  # 14 pixels of the picture
    style: dict[str, Any] = {"colors": "#2fa8ff", "linewidth": 0.8, "alpha": 0.9}
    axes.hlines([row, row], [-0.5, column + gap_columns], [column - gap_columns, columns - 0.5], **style)
    axes.vlines([column, column], [-0.5, row + gap_rows], [row - gap_rows, rows - 0.5], **style)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)


def letters(direction: Array) -> str:
    """Where a direction in (r, a, s) points: R or L, A or P, H or F (head, feet); two letters where it is oblique."""
    order = np.argsort(-np.abs(direction))
    names = [("LR", "PA", "FH")[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > 0.35]
    return "".join(names[:2])


def _letters(axes: Axes, grid: Grid) -> None:
    """Patient directions at the four borders."""
    down, across = grid.directions[:, 1], grid.directions[:, 2]
    style: dict[str, Any] = {"color": "#ffe08a", "fontsize": 11, "fontweight": "bold", "transform": axes.transAxes}
    axes.text(0.015, 0.5, letters(-across), ha="left", va="center", bbox=_BOX, **style)
    axes.text(0.985, 0.5, letters(across), ha="right", va="center", bbox=_BOX, **style)
    axes.text(0.5, 0.985, letters(-down), ha="center", va="top", bbox=_BOX, **style)
    axes.text(0.5, 0.015, letters(down), ha="center", va="bottom", bbox=_BOX, **style)


def _bar(figure: Figure, largest: float) -> None:
    """The colour scale on mid grey, from half of uniform to LARGEST, with this map's largest value marked."""
    top = np.log2(LARGEST)
    rgba = colours(2.0 ** np.linspace(-1, top, 240))[:, None]
    opacity = rgba[..., 3:] / np.float32(255)
    axes = _axes(figure, 1094, 100, 18, 290)
    mixed = 70 * (1 - opacity) + rgba[..., :3] * opacity
    axes.imshow(mixed / 255, extent=(0, 1, -1, top), origin="lower", aspect="auto")
    axes.axhline(0, color="white", linewidth=1.5)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    ticks = range(int(top) + 1)
    labels = ["1 (uniform)", *(f"{2**n}" for n in ticks[1:-1]), f"{2 ** ticks[-1]} or more"]
    axes.set_yticks(list(ticks), labels, fontsize=9, color="black")
    mark = float(np.clip(np.log2(max(largest, 0.5)), -1, top))
    axes.plot([-0.45], [mark], marker=">", color="black", markersize=7, clip_on=False)
    axes.set_xlim(0, 1)
    _write(figure, 1138, 398, "times uniform", 9, ha="center")
    _write(figure, 1138, 66, f"peak {largest:.1f}", 9, ha="center", color="0.3")


def _title(figure: Figure, title: str) -> None:
    lines = textwrap.wrap(" ".join(title.split()), 118, max_lines=2, placeholder=" …")
    _write(figure, 20, 470, "\n".join(lines), 13, va="top", linespacing=1.25)


def _captions(figure: Figure, heats: Sequence[Volume], peak: Array, largest: float, inside: bool) -> None:
    cells = sum(heat.values.size for heat in heats)
    place = ", ".join(f"{x:.1f}" for x in peak)
    many = effective_cells(heats)
    spread = f"Spread over {many:.{0 if many >= 100 else 1}f} of {cells} cells."
    where = "" if inside else ", outside the scan, in what the model was padded with"
    _write(figure, 20, 38, f"{spread}  Peak {largest:.1f} times uniform at R, A, S ({place}) mm{where}.", 10)
    _write(figure, 20, 14, " ".join(heats[0].notes), 10, color="0.3")
    _write(figure, 1180, 14, WARNING, 10, ha="right", fontweight="bold")


# What the model was shown


def sheet(
    stacks: Sequence[Volume], path: Path | None = None, titles: Sequence[str] = (), *, most: int = 24, columns: int = 8
) -> Array:
    """What a model was shown after preparation, slices as they went in: (rows, 1200, 3) uint8, saved as PNG at `path`.

    `stacks`: a model's `prepared`, pictures (j, i) along k, grey levels 0 to 1. Of each stack `most` slices, evenly
    chosen, each with its place in the patient; `titles` one a stack. Stacks of a single slice that follow each other
    under one title share a row. Raises OSError where `path` cannot be written.
    """
    if not stacks:
        raise ValueError("A sheet needs at least one stack.")
    groups = [_tiles(name, group, most) for name, group in _groups(stacks, titles)]
    sizes = [_tile_size(tiles, columns) for _, tiles in groups]
    heights = [30 + -(-len(tiles) // columns) * tall for (_, tiles), (_, tall) in zip(groups, sizes, strict=True)]
    top = sum(heights) + 10
    figure = _figure(1200, top)
    for (name, tiles), size, height in zip(groups, sizes, heights, strict=True):
        _write(figure, 10, top - 22, name, 11)
        for n, tile in enumerate(tiles):
            row, column = divmod(n, columns)
            _tile(figure, 10 + column * size[0], top - 30 - (row + 1) * size[1], size, tile, named=n == 0)
        top -= height
    return _drawn(figure, path)


def _groups(stacks: Sequence[Volume], titles: Sequence[str]) -> list[tuple[str, list[Volume]]]:
    """Stacks under their titles; single slices that follow each other under one title go together."""
    groups: list[tuple[str, list[Volume]]] = []
    for n, stack in enumerate(stacks):
        title = titles[n] if n < len(titles) else ""
        single = len(stack.values) == 1
        if groups and single and groups[-1][0] == title and len(groups[-1][1][-1].values) == 1:
            groups[-1][1].append(stack)
        else:
            groups.append((title, [stack]))
    return groups


def _tiles(title: str, stacks: Sequence[Volume], most: int) -> tuple[str, list[Volume]]:
    """A line of text, and the slices to show, each a volume of one slice."""
    slices = [(stack, k) for stack in stacks for k in range(len(stack.values))]
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(most, len(slices))).round().astype(int))
    rows, columns = stacks[0].grid.shape[1:]
    down_mm, across_mm = stacks[0].grid.spacing[1:]
    shown = f"{len(chosen)} of {len(slices)} slices" if len(chosen) < len(slices) else f"{len(slices)} slices"
    line = f"{shown}, {rows} x {columns} pixels of {down_mm:.2f} x {across_mm:.2f} mm; places in mm"
    tiles = [stack.crop((k, 0, 0), (k + 1, *stack.grid.shape[1:])) for stack, k in (slices[n] for n in chosen)]
    return (f"{title}: {line}" if title else line), tiles


def _tile_size(tiles: Sequence[Volume], columns: int) -> tuple[int, int]:
    """(width, height) in pixels of a slice on the sheet, millimetres as long down as across."""
    width = 1180 // columns
    down_mm, across_mm = np.max([np.array(tile.grid.shape[1:]) * tile.grid.spacing[1:] for tile in tiles], axis=0)
    return width, int(np.clip(width * down_mm / across_mm, 24, 2 * width))


def _tile(figure: Figure, left: float, bottom: float, size: tuple[int, int], tile: Volume, *, named: bool) -> None:
    """One slice and its place; with patient directions where it is the first of its stack."""
    grey = np.round(np.clip(tile.values[0].astype(np.float32), 0, 1) * 255).astype(np.uint8)
    place = _place(Plane("axial", grey, tile.grid), left + 1, bottom + 1, size[0] - 2, size[1] - 2)
    axes = _axes(figure, *place)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, aspect="auto")
    axes.set_axis_off()
    if named:
        _letters(axes, tile.grid)
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "transform": axes.transAxes, "bbox": _BOX}
    axes.text(0.03, 0.03, _position(tile.grid.directions[:, 0], tile.grid.centre), ha="left", va="bottom", **style)
