"""Whether the image supports a sentence: what paints over the highlighted region does to the sentence's likelihood.

Painting over anything changes a likelihood a little, so the drop is held against those of regions of the same shape and
size elsewhere in the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.attention import Row
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.heatmap import shared
from MedVLMReaderLib.relevance import log_likelihood
from MedVLMReaderLib.study import Message, Model, Seen
from MedVLMReaderLib.verdict import REGIONS as REGIONS
from MedVLMReaderLib.verdict import Verdict as Verdict
from MedVLMReaderLib.volume import View, Volume

SHARE = 0.2
"""Cells around the peak with this share of it belong to the region: a smaller one would leave a rim of what is to be
painted over, and take the paint from it."""
MOST = 0.05
"""A region is no larger than this share of the scan: of a flat map, its highest cells."""


def verified(
    model: Model, volumes: Sequence[Volume], seen: Seen, messages: Sequence[Message], ids: Sequence[int], row: Row,
    heat: Volume, *, view: View | None = None, regions: int = REGIONS, seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Verdict:  # fmt: skip
    """The verdict on tokens [start, stop) of the answer `ids`, whose heatmap is `heat`.

    The study is encoded once for each region; models that can (`see_again`) encode what differs alone. Raises
    ReaderError where the heatmap lies outside the scan.
    """
    region = highlighted(heat, volumes)
    likelihood = _likelihood(model, seen, messages, ids, row)
    places = [region, *elsewhere(region, volumes[0], regions, np.random.default_rng(seed))]
    drops = []
    for n, place in enumerate(places):
        without = [painted_over(volume, mask_of(place, volume.grid)) for volume in volumes]
        drops.append(likelihood - _likelihood(model, _seen(model, seen, without, view), messages, ids, row))
        progress(n + 1, len(places))
    r, a, s = (float(x) for x in _centres(region).mean(0))
    return Verdict(likelihood, drops[0], tuple(drops[1:]), _volume_ml(region), (r, a, s))


def _seen(model: Model, seen: Seen, volumes: Sequence[Volume], view: View | None) -> Seen:
    again: Callable[..., Seen] | None = getattr(model, "see_again", None)
    return again(seen, volumes, view) if again else model.see(volumes, view)


@torch.no_grad()
def _likelihood(model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], row: Row) -> float:
    return float(log_likelihood(model, seen, messages, ids)[slice(*row)].sum())


# ---- Regions --------------------------------------------------------------------------------------------------------


def highlighted(heat: Volume, volumes: Sequence[Volume]) -> Volume:
    """The cells around the heatmap's peak that hold at least SHARE of it, as a small volume of 0 and 1.

    At most MOST of the scan. Raises ReaderError where none of them lies in the scan.
    """
    values = np.where(np.isfinite(heat.values), heat.values, 0)
    most = max(1, int(MOST * sum(_volume_ml(v, everything=True) for v in volumes) / _cell_ml(heat.grid)))
    limit = np.partition(values.ravel(), -most)[-most] if most < values.size else 0.0
    high = values >= max(float(values.max()) * SHARE, float(limit), 1e-12)
    labels, _ = ndimage.label(high, np.ones((3, 3, 3)))
    peak = np.rint(heat.grid.to_index(heat.peak())).astype(int)
    chosen = labels == labels[tuple(peak)]
    if not chosen[tuple(peak)] or not any(mask_of(Volume(chosen, heat.grid), v.grid).any() for v in volumes):
        raise ReaderError("The heatmap has no region in the scan that could be painted over. Choose other words.")
    start, stop = np.argwhere(chosen).min(0), np.argwhere(chosen).max(0) + 1
    return Volume(chosen.astype(np.uint8), heat.grid).crop(start, stop)


def mask_of(region: Volume, grid: Grid) -> Array:
    """(k, j, i) bool on `grid`: the voxels whose centres lie in the region."""
    mask = np.zeros(grid.shape, bool)
    place, nearest, inside = shared(region.grid, grid)
    mask[place] = inside & (region.values[nearest] > 0)
    return mask


def elsewhere(region: Volume, scan: Volume, count: int, rng: np.random.Generator) -> Iterator[Volume]:
    """The region moved to random places: nine tenths within the body, no more than a quarter over itself.

    Fewer than `count` where hardly any place is free.
    """
    inside, itself = body(scan), mask_of(region, scan.grid)
    free, voxels = np.argwhere(inside), np.argwhere(itself)
    found = 0
    for _ in range(60 * count if len(free) and len(voxels) else 0):
        step = np.rint(free[rng.integers(len(free))] - voxels.mean(0)).astype(int)  # whole voxels: equal size
        there = voxels + step
        if (there < 0).any() or (there >= inside.shape).any():
            continue
        at = tuple(there.T)
        if inside[at].mean() < 0.9 or itself[at].mean() > 0.25:
            continue
        move = scan.grid.affine[:3, :3] @ step
        yield replace(region, grid=_moved(region.grid, move))
        found += 1
        if found == count:
            return


def body(scan: Volume) -> Array:
    """(k, j, i) bool: what is more than air, and what it encloses within a slice."""
    values = np.asarray(scan.values)
    air = -500.0 if scan.modality == "CT" else 0.1 * float(np.percentile(values[::2, ::2, ::2], 99))
    return np.stack([ndimage.binary_fill_holes(part) for part in values > air])


def painted_over(volume: Volume, mask: Array) -> Volume:
    """The volume with smooth values in the mask, from what surrounds it: near the border from near it.

    Weighted means of the surroundings, in ever smaller neighbourhoods; what is too far inside keeps the larger one's.
    """
    if not mask.any() or mask.all():
        return volume
    box = _around(mask)
    part, hole = volume.values[box].astype(np.float32), mask[box]
    known = (~hole).astype(np.float32)
    size_mm = (float(mask.sum()) * 1e3 * _cell_ml(volume.grid)) ** (1 / 3)
    fill = np.full(part.shape, float((part * known).sum() / max(known.sum(), 1)), np.float32)
    for share in (1.0, 0.5, 0.25, 0.125):
        sigma = share * size_mm / volume.grid.spacing
        weight = ndimage.gaussian_filter(known, sigma, mode="nearest", truncate=3)
        mean = ndimage.gaussian_filter(part * known, sigma, mode="nearest", truncate=3) / np.maximum(weight, 1e-6)
        fill += np.clip(weight / 0.2, 0, 1) * (mean - fill)
    whole = np.issubdtype(volume.values.dtype, np.integer)
    values = volume.values.copy()
    values[box] = np.where(hole, np.rint(fill) if whole else fill, volume.values[box]).astype(values.dtype)
    return replace(volume, values=values)


def _around(mask: Array) -> tuple[slice, ...]:
    """The mask's box with as much around it again."""
    found = np.argwhere(mask)
    low, high = found.min(0), found.max(0) + 1
    margin = (high - low) // 2 + 3
    ends = zip(np.maximum(low - margin, 0), np.minimum(high + margin, mask.shape), strict=True)
    return tuple(slice(int(a), int(b)) for a, b in ends)


def _centres(region: Volume) -> Array:
    """(n, 3) places of the region's cells."""
    return region.grid.to_world(np.argwhere(region.values))


def _moved(grid: Grid, move: Array) -> Grid:
    step = np.eye(4)
    step[:3, 3] = move
    return Grid(grid.shape, step @ grid.affine)


def _cell_ml(grid: Grid) -> float:
    return abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1e3


def _volume_ml(region: Volume, *, everything: bool = False) -> float:
    cells = region.values.size if everything else int((region.values > 0).sum())
    return cells * _cell_ml(region.grid)
