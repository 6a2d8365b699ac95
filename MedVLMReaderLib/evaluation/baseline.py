"""What can be found without any learning: thresholds, places and connected pieces. The floor for every reader.

The organs are guessed from where they lie beside the body's mid-line and below the lungs, and from the values found
there; findings are holes in an organ, a layer behind a lung, and a body of the spine lower than its neighbours. Places
and thresholds were chosen by hand on made studies (seeds 900000 to 900119), so on made studies this is a strong floor.
Lengths are in cells unless a name says millimetres; k runs to Superior, j to Posterior, i to Left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from MedVLMReaderLib.evaluation.findings import Said
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.truth import Side
from MedVLMReaderLib.volume import Volume, resampled

CELL_MM = 3.0
MOST_CELLS = 3e6  # a larger box is cut into larger cells
WIDE = 1.5  # a body's width over its depth
SIDES: tuple[Side, Side] = ("right", "left")

Place = tuple[tuple[float, float, float], tuple[float, float, float]]
ORGANS: dict[tuple[str, Side], Place] = {
    ("liver", ""): ((40, -0.1, -0.4), (62, 0.66, 0.38)),
    ("spleen", ""): ((43, 0.3, 0.6), (46, 0.36, 0.16)),
    ("kidney", "right"): ((104, 0.42, -0.37), (50, 0.21, 0.15)),
    ("kidney", "left"): ((87, 0.4, 0.36), (50, 0.21, 0.15)),
}  # fmt: skip
"""Centre and half size of an ellipsoid: mm below the lungs' base; half depths to Posterior; half widths to Left."""


@dataclass(frozen=True, eq=False)
class _Scan:
    """A study as the search sees it."""

    values: Array
    """(k, j, i) float32: Hounsfield units, or for MR shares of the median of the body."""
    smooth: Array
    """Medians of their neighbourhoods: keeps edges, loses noise and thin vessels."""
    cell: float
    """Edge of a cell, mm."""
    ct: bool
    lungs: Array
    """(k, j, i) bool."""
    middle: tuple[float, float]
    """(j, i) of the body's axis."""
    half: tuple[float, float]
    """Half depth and half width of the body."""
    base: float
    """k where the lungs end."""
    fine: Array
    """The study in its own slices along k, cells along j and i; not smoothed."""
    slice_mm: float


@dataclass(frozen=True)
class _Blob:
    """A compact piece that differs from the organ around it."""

    size_mm: float
    away: float
    """Its mean difference from the organ, in standard deviations of the organ's values."""
    uneven: float
    """Standard deviation of its values before smoothing."""


def thresholded(volume: Volume) -> list[Said]:
    """The findings guessed by thresholds. Empty where nothing like a body is seen."""
    scan = _scanned(volume)
    found = [one for side in SIDES for look in (_nodules, _effusion) for one in look(scan, side)]
    found += [one for organ, side in ORGANS for one in _lesions(scan, organ, side)]
    return found + _fractures(scan)


def _scanned(volume: Volume) -> _Scan:
    volume = volume.anatomical()
    extent = np.array(volume.grid.shape) * volume.grid.spacing
    cell = max(CELL_MM, float(np.prod(extent) / MOST_CELLS) ** (1 / 3))
    shape = np.maximum(np.rint(extent / cell), 1).astype(int)
    plain = np.clip(np.nan_to_num(np.asarray(volume.values, np.float64)), -1e6, 1e6).astype(np.float32)
    fine = resampled(replace(volume, values=plain), volume.grid.resize((volume.grid.shape[0], *shape[1:])), 0)
    ct, values = volume.modality == "CT", resampled(fine, volume.grid.resize(shape), 0).values
    if not ct:
        bright = values[values > 0.3 * np.percentile(values, 95)]
        values = values / max(float(np.median(bright)) if bright.size else 1.0, 1e-6)
    smooth = ndimage.median_filter(values, 3)
    air, soft = (-930, -500) if ct else (0.1, 0.4)  # lungs lie between: they hold more than the air around the body
    body = _largest(ndimage.binary_opening(smooth > air, iterations=2))
    lungs = ndimage.binary_opening(body & (smooth < soft), iterations=2)
    j, i, depth, width = _axis(body)
    areas = lungs.sum((1, 2))
    base = float(np.flatnonzero(areas > areas.max() / 2)[0]) if areas.max() > 0.1 * depth * width else len(areas) - 1.0
    slice_mm = float(volume.grid.spacing[0])
    return _Scan(values, smooth, cell, ct, lungs, (j, i), (depth, width), base, fine.values, slice_mm)


def _axis(body: Array) -> tuple[float, float, float, float]:
    """(j, i, half depth, half width) of the body; what the field of view cuts off follows from what it does not."""
    (front, back, depth), (right, left, width) = (_edges(body, axis) for axis in (1, 2))
    if depth and not width:
        width = WIDE * depth
    elif width and not depth:
        depth = width / WIDE
    j, i = (n / 2 for n in body.shape[1:])
    j = front + depth if front >= 0 else back - depth if back >= 0 else j
    i = right + width if right >= 0 else left - width if left >= 0 else i
    return j, i, depth or j, width or i


def _edges(body: Array, axis: int) -> tuple[float, float, float]:
    """First and last cell of the body along an axis, -1 where the field of view cuts it; half extent, 0 if cut."""
    areas = body.mean(tuple({0, 1, 2} - {axis}))
    seen = np.flatnonzero(areas >= areas.max() / 4)
    first, last = float(seen[0]), float(seen[-1])
    first, last = first if first > 0 else -1, last if last < len(areas) - 1 else -1
    return first, last, (last - first + 1) / 2 if min(first, last) >= 0 else 0


def _half(scan: _Scan, mask: Array, side: Side) -> Array:
    """The part of a mask on one side of the mid-line."""
    left = np.arange(mask.shape[2]) > scan.middle[1]
    return np.asarray(mask & (left if side == "left" else ~left))


def _nodules(scan: _Scan, side: Side) -> list[Said]:
    """Pieces of a lung that are denser than it, but neither as dense nor as uneven as a vessel."""
    lung = _half(scan, scan.lungs, side)
    if lung.sum() < 1000:
        return []
    vessels = ndimage.binary_dilation(scan.values > (-600 if scan.ct else 0.45), iterations=2)
    noise = 1.48 * float(np.median(np.abs(scan.values - scan.smooth)[lung]))
    evenness = (3.3 if scan.ct else 2.0) * noise
    found = [b for b in _blobs(scan, lung, lung & ~vessels, 5.0) if b.away > 0 and b.uneven < evenness]
    return [Said("nodule", "lung", side, b.size_mm) for b in found if b.size_mm > 10.5]  # smaller: mostly vessels


def _effusion(scan: _Scan, side: Side) -> list[Said]:
    """A layer with the values of fluid behind a lung, where muscle should be next to it."""
    lung = _half(scan, scan.lungs, side)
    if lung.sum() < 1000:
        return []
    wall = np.roll(lung, 3, 1) & ~ndimage.binary_dilation(lung, iterations=2)
    muscle = float(np.median(scan.smooth[wall])) if wall.any() else 0.0
    low, high = (-15, 33) if scan.ct else (0.42 * muscle, 0.72 * muscle)
    deep = np.arange(lung.shape[1])[:, None]
    back = np.where(lung.any(1), lung.shape[1] - 1 - np.argmax(lung[:, ::-1], axis=1), lung.shape[1])[:, None]
    behind = (deep > np.maximum(back, scan.middle[0])) & (deep < back + 50 / scan.cell)
    layer = _largest(ndimage.binary_opening(behind & (scan.smooth > low) & (scan.smooth < high)))
    if layer.sum() * scan.cell**3 < 5000:
        return []
    depth = layer.sum(1)
    return [Said("effusion", "pleura", side, float(np.percentile(depth[depth > 0], 95)) * scan.cell)]


def _fractures(scan: _Scan) -> list[Said]:
    """Bodies of the spine that are lower than the two on either side, along the straight line that shows them best."""
    (j, i), (depth, _) = scan.middle, scan.half
    best: Array = np.zeros(0)
    most_even = 0.12
    for behind in (0.32, 0.38, 0.44, 0.5):
        front = slice(max(int(j + behind * depth), 0), max(int(j + (behind + 0.12) * depth), 0) + 1)
        heights = _heights(scan.fine[:, front, max(int(i) - 3, 0) : max(int(i), 0) + 4], scan.slice_mm)
        if len(heights) >= 4 and (spread := float(np.median(np.abs(heights / np.median(heights) - 1)))) < most_even:
            best, most_even = heights, spread
    found = []
    for n in range(1, len(best) - 1):
        beside = float(np.median(np.delete(best[max(n - 2, 0) : n + 3], min(n, 2))))
        if 5 < beside - best[n] < 0.75 * beside < 30:
            found.append(Said("fracture", "spine", "", beside - float(best[n])))
    return found if len(found) <= 2 else []


def _heights(column: Array, slice_mm: float) -> Array:
    """Heights in mm of the bright stretches along the first axis that both begin and end in it."""
    if not column.size:
        return np.zeros(0)
    step_mm = 0.5
    places = np.arange(len(column)) * slice_mm
    line = np.interp(np.arange(0, places[-1], step_mm), places, column.mean((1, 2)))
    if len(line) < 50 / step_mm:
        return np.zeros(0)
    low, high = (look(line, int(50 / step_mm)) for look in (ndimage.minimum_filter1d, ndimage.maximum_filter1d))
    bone = (line > (low + high) / 2) & (high - low > 0.25 * high)
    turns = np.flatnonzero(np.diff(bone.astype(int)))
    turns = turns[int(not bone[turns[0] + 1]) :] if turns.size else turns
    return np.diff(turns)[::2] * step_mm


def _lesions(scan: _Scan, organ: str, side: Side) -> list[Said]:
    """Pieces of an organ that differ from it: dark ones, in the liver bright ones too; stones."""
    mask = _organ(scan, organ, side)
    found = []
    for blob in _blobs(scan, mask, None, 4.0) if mask.sum() > 100 else ():
        if organ == "liver" and blob.size_mm > 9.5:  # smaller: mostly vessels
            kind = "bright liver lesion" if blob.away > 0 else "dark liver lesion"
            found.append(Said(kind, organ, side, blob.size_mm))
        elif organ == "spleen" and blob.away < 0:
            found.append(Said("splenic lesion", organ, side, blob.size_mm))
        elif organ == "kidney" and (blob.away > 0) == scan.ct and blob.size_mm < 20:  # MR: stones are dark
            found.append(Said("stone", organ, side, blob.size_mm))
    return found


def _organ(scan: _Scan, organ: str, side: Side) -> Array:
    """What lies where the organ should, and has the values of its middle."""
    centre, half = (np.array(three) for three in ORGANS[organ, side])
    scale = np.array([-1 / scan.cell, *scan.half])
    k, j, i = np.ogrid[tuple(slice(0, n) for n in scan.smooth.shape)]
    origin = (scan.base, *scan.middle) + centre * scale
    apart = sum(((axis - c) / h) ** 2 for axis, c, h in zip((k, j, i), origin, half * np.abs(scale), strict=True))
    inside = scan.smooth[apart < 0.3]
    if inside.size < 50 or scan.base <= 1:
        return np.zeros(scan.smooth.shape, bool)
    middle = float(np.median(inside))
    spread = max(1.48 * float(np.median(np.abs(inside - middle))), 6.0 if scan.ct else 0.04)
    return _largest(ndimage.binary_opening((apart < 1.2) & (np.abs(scan.smooth - middle) < 3 * spread)))


def _blobs(scan: _Scan, organ: Array, hull: Array | None, threshold: float) -> list[_Blob]:
    """The compact pieces of `hull` (None: of the organ and its gaps) that differ from the organ around them."""
    part = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in ndimage.find_objects(organ.astype(int))[0])
    organ, values = organ[part], scan.smooth[part]
    hull = _closed(organ, 5) if hull is None else hull[part]
    values = values - _trend(values, organ)
    spread = max(1.48 * float(np.median(np.abs(values[organ]))), 1e-6)
    found = []
    for sign in (1, -1):
        labels, _ = ndimage.label(hull & (sign * values > threshold * spread))
        for n, box in enumerate(ndimage.find_objects(labels), start=1):
            piece = np.pad(labels[box] == n, 2)
            if piece.sum() < 4:
                continue
            ring = ndimage.binary_dilation(piece, iterations=2) & ~ndimage.binary_dilation(piece)
            around = tuple(slice(s.start, s.stop + 4) for s in box)
            size, compact = _extent(piece)
            if compact > 0.35 and np.pad(organ, 2)[around][ring].mean() > 0.6:
                away = float(values[labels == n].mean()) / spread
                found.append(_Blob(size * scan.cell, away, float(scan.values[part][labels == n].std())))
    return found


def _extent(piece: Array) -> tuple[float, float]:
    """Largest diameter of a piece, and the share it fills of the ball of that diameter."""
    places = np.argwhere(piece).astype(float)
    places -= places.mean(0)
    _, directions = np.linalg.eigh(places.T @ places)
    size = float(np.ptp(places @ directions, axis=0).max()) + 1
    return size, len(places) / (np.pi / 6 * size**3)


def _trend(values: Array, organ: Array) -> Array:
    """A plane through the values of the organ."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in values.shape)]
    ones = np.ones_like(values)
    terms = np.stack([ones, *(ones * axis for axis in axes)], -1)
    off = np.abs(values - np.median(values[organ]))
    typical = organ & (off <= 4 * np.median(off[organ]))
    fit, *_ = np.linalg.lstsq(terms[typical], values[typical], rcond=None)
    return np.asarray(terms @ fit)


def _closed(mask: Array, radius: int) -> Array:
    """The mask with gaps narrower than `2 * radius` closed and holes filled."""
    padded = np.pad(mask, radius)
    near = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(near) > radius
    inner = tuple(slice(radius, -radius) for _ in range(3))
    return np.asarray(ndimage.binary_fill_holes(closed | padded)[inner])


def _largest(mask: Array) -> Array:
    """The largest connected piece."""
    labels, count = ndimage.label(mask)
    return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])) if count else mask
