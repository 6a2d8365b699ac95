"""Slices at measured places made into one box of voxels: evenly spaced, axes at right angles, patient frame kept."""

from __future__ import annotations

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import LPS, Array, Grid

SAME_PLACE_MM = 0.01
_COMMON = 0.2  # a gap counts as the scan's own where at least this share of the gaps has it
_LARGEST = 8  # times the cells: a real gantry tilts by 30 degrees at most
_NAMES = (("L", "R"), ("P", "A"), ("I", "S"))

Notes = tuple[str, ...]


def stacked(pictures: Array, positions: Array, down: Array, across: Array) -> tuple[Array, Grid, Notes]:
    """Voxels, their grid and what was done, of pictures in order along their normal.

    `pictures` (n, rows, columns), n at least 2; `positions` (n, 3) the (r, a, s) of each first pixel; `down` and
    `across` (3,) steps in mm from a pixel to the one below and the one to the right. Missing slices are filled
    linearly, a tilted stack is straightened. Raises ReaderError where most slices are missing or the slices do not
    follow one line.
    """
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    depths = (positions - positions[0]) @ normal
    line = (positions[-1] - positions[0]) / depths[-1]  # mm in space for a mm of depth
    _check_line(positions, depths, line, min(float(np.linalg.norm(down)), float(np.linalg.norm(across))))
    step, count, note = _even(depths, positions, normal)
    values = pictures if note == () else _interpolated(pictures, depths, step * np.arange(count))
    affine = np.eye(4)
    affine[:3] = np.stack([line * step, down, across, positions[0]], axis=1)
    values, grid, tilted = straightened(values, Grid(values.shape, affine))
    return values, grid, note + tilted


def _check_line(positions: Array, depths: Array, line: Array, pixel_mm: float) -> None:
    off = float(np.linalg.norm(positions - positions[0] - depths[:, None] * line, axis=1).max())
    if off > max(0.1, 0.5 * pixel_mm):
        raise ReaderError(
            f"The slices do not follow one straight line: one lies {off:.1f} mm beside it. "
            "The series holds more than one stack; export one stack as a series of its own."
        )


def _even(depths: Array, positions: Array, normal: Array) -> tuple[float, int, Notes]:
    """The even step in mm, how many slices it makes, and a note where these are not the slices that there are."""
    n = len(depths)
    mean = float(depths[-1]) / (n - 1)
    gaps = np.diff(depths)
    slack = _slack(mean)
    if np.abs(gaps - mean).max() <= slack and np.abs(depths - mean * np.arange(n)).max() <= slack:
        return mean, n, ()
    own = _own_gap(gaps)
    count = round(float(depths[-1]) / own) + 1
    if count - n > n:
        raise ReaderError(
            f"The slices lie {gaps.min():.1f} to {gaps.max():.1f} mm apart: about {count - n} of {count} are missing. "
            "Export the whole series again."
        )
    return float(depths[-1]) / (count - 1), count, (_gap_note(gaps, own, count, positions, normal),)


def _slack(step: float) -> float:
    """How far in mm a slice may lie from its even place and still count as there: 5 % of the step, or 0.1 mm."""
    return min(max(0.05 * step, 0.1), 0.25 * step)


def _own_gap(gaps: Array) -> float:
    """The smallest gap in mm that is common: a larger one would throw slices away."""
    for gap in np.sort(gaps):
        alike = np.abs(gaps - gap) <= _slack(float(gap))
        if alike.mean() >= _COMMON:
            return float(gaps[alike].mean())
    return float(np.median(gaps))


def _gap_note(gaps: Array, own: float, count: int, positions: Array, normal: Array) -> str:
    wide = np.flatnonzero(gaps > 1.5 * own)
    missing = count - len(positions)
    whole = np.abs(gaps / own - np.round(gaps / own)) * own <= 2 * _slack(own)
    if not (whole.all() and missing > 0 and missing <= count / 4 and len(wide)):
        return (
            f"The slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; "
            f"they were interpolated to an even {own:.2f} mm."
        )
    widest = int(wide[np.argmax(gaps[wide])])
    ends = " and ".join(_place(positions[n], normal) for n in (widest, widest + 1))
    where = f"between {ends} mm" if len(wide) == 1 else f"in {len(wide)} places, the widest between {ends} mm"
    verb, gap = ("is", "gap was") if missing == 1 else ("are", "gap was" if len(wide) == 1 else "gaps were")
    return f"{missing} of {count} slices {verb} missing {where}; the {gap} filled by interpolation."


def _place(position: Array, normal: Array) -> str:
    axis = int(np.argmax(np.abs(normal)))
    return f"{_NAMES[axis][int(position[axis] >= 0)]} {abs(position[axis]):.1f}"


def _interpolated(pictures: Array, depths: Array, wanted: Array) -> Array:
    """(wanted, rows, columns) linear between pictures; one that lies at a wanted depth comes through unchanged."""
    out = np.empty((len(wanted), *pictures.shape[1:]), pictures.dtype)
    for n, depth in enumerate(wanted):
        upper = int(np.clip(np.searchsorted(depths, depth), 1, len(depths) - 1))
        share = float(np.clip((depth - depths[upper - 1]) / (depths[upper] - depths[upper - 1]), 0, 1))
        share = round(share, 2)  # a hundredth of a gap off is there
        mixed = pictures[upper - 1] * np.float32(1 - share) + pictures[upper] * np.float32(share)
        out[n] = np.rint(mixed) if out.dtype.kind in "iu" else mixed
    return out


def straightened(values: Array, grid: Grid) -> tuple[Array, Grid, Notes]:
    """The voxels on axes at right angles, linear in between, each point kept at its place; untouched where they are so.

    Voxels that no slice reached get the lowest value.
    """
    if grid.is_orthogonal:
        return values, grid, ()
    leaning = _leaning_axis(grid)
    straight = _upright(grid, leaning)
    kept = grid.directions[:, leaning] @ straight.directions[:, leaning]
    angle = float(np.degrees(np.arccos(np.clip(kept, -1, 1))))
    note = f"The slices lean by {angle:.1f} degrees (a tilted gantry); they were resampled to straight axes."
    return _sampled(values, grid, straight), straight, (note,)


def _leaning_axis(grid: Grid) -> int:
    """The axis to be replaced: the other two stand nearest to a right angle. The slice axis of equals."""
    cosines = np.abs(grid.directions.T @ grid.directions)
    return min((0, 1, 2), key=lambda axis: round(float(cosines[(axis + 1) % 3, (axis + 2) % 3]), 6))


def _upright(grid: Grid, leaning: int) -> Grid:
    """The smallest box of axes at right angles around a leaning one, at about its spacing."""
    first, second = (axis for axis in (2, 1, 0) if axis != leaning)
    axes = np.empty((3, 3))
    axes[:, first] = grid.directions[:, first]
    rest = grid.directions[:, second] - (grid.directions[:, second] @ axes[:, first]) * axes[:, first]
    axes[:, second] = rest / np.linalg.norm(rest)
    normal = np.cross(axes[:, first], axes[:, second])
    axes[:, leaning] = normal * np.sign(normal @ grid.directions[:, leaning])
    spacing = np.abs(np.sum(axes * grid.affine[:3, :3], axis=0))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    along = (grid.to_world(corners) - grid.affine[:3, 3]) @ axes / spacing  # (8, 3) in new cells
    start, stop = np.floor(along.min(0) + 1e-6), np.ceil(along.max(0) - 1e-6)
    if np.prod(stop - start + 1) > _LARGEST * np.prod(grid.shape):
        raise ReaderError("The axes lean so far that the frame cannot be right. Export the scan again.")
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = grid.affine[:3, 3] + affine[:3, :3] @ start
    n = (stop - start).astype(int) + 1
    return Grid((int(n[0]), int(n[1]), int(n[2])), affine)


def _sampled(values: Array, grid: Grid, wanted: Grid) -> Array:
    """`values` read off linearly at the cells of another grid; the lowest value outside."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values))  # ITK sees indices as millimetres; the transform leans
    step = (LPS @ grid.lps_affine, LPS @ wanted.lps_affine)
    old_from_new = np.linalg.solve(*step)  # (i, j, k) to (i, j, k)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(x) for x in old_from_new[:3, :3].ravel()])
    transform.SetTranslation([float(x) for x in old_from_new[:3, 3]])
    size = [int(n) for n in wanted.shape[::-1]]
    lowest = float(values.min())
    unit = ((0.0,) * 3, (1.0,) * 3, np.eye(3).ravel().tolist())
    out = sitk.Resample(image, size, transform, sitk.sitkLinear, *unit, lowest)
    return np.asarray(sitk.GetArrayFromImage(out))
