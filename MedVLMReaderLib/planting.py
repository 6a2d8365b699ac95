"""Where a made study's findings lie, and the box of voxels in which it was acquired. Nothing is rendered here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast, get_args

import numpy as np

from MedVLMReaderLib.anatomy import LABELS, Anatomy, Paint
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.shapes import Blob, Collapsed, Crescent, Lump, Shape
from MedVLMReaderLib.truth import ORGAN_OF, Finding, Kind, Side, other_side
from MedVLMReaderLib.volume import PlaneName

KINDS: tuple[Kind, ...] = get_args(Kind)

SIZES_MM: dict[Kind, tuple[float, float]] = {
    "nodule": (6, 30), "dark liver lesion": (6, 45), "bright liver lesion": (6, 45), "stone": (6, 16),
    "splenic lesion": (6, 25), "effusion": (8, 40), "fracture": (6, 14),
}  # fmt: skip
"""Sizes are uniform in these ranges (those of fractures and effusions as far as their place leaves room)."""

CONTRAST_TO_NOISE = 1.5, 6.0
APART_MM = 8.0

ACROSS: dict[PlaneName, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Index into (r, a, s) of the slice normal."""

# in-plane j and i axes, as indices into (r, a, s)
_IN_PLANE: dict[PlaneName, tuple[int, int]] = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}
MOST_VOXELS = 2.6e6


def _directions() -> Array:
    """(96, 3) unit vectors spread evenly over the sphere."""
    n = np.arange(96)
    z, turn = 1 - (2 * n + 1) / 96, n * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)


DIRECTIONS = _directions()


@dataclass(frozen=True, eq=False)
class Planted:
    """A finding and what it is painted with, in the body frame."""

    finding: Finding
    shape: Shape
    """All that the finding's mask covers."""
    extent: Array
    """(n, 3) places on its surface or within it."""
    reach: float
    """Radius of a ball around its centre that holds it, mm."""
    paints: tuple[Paint, ...] = ()
    """For a fracture: what takes the vertebra's place."""

    @property
    def structure(self) -> tuple[str, Side]:
        """Where it lies, as in STRUCTURES."""
        return self.finding.organ, self.finding.side


def planted(
    rng: np.random.Generator,
    anatomy: Anatomy,
    kind: Kind,
    others: list[Planted],
    obstacles: list[tuple[Array, float]],
    grid: Grid | None,
) -> Planted | None:
    """A new finding clear of the `others` and `obstacles` (centre, radius), within `grid`; None without room."""
    sides: tuple[Side, ...] = ("right", "left") if ORGAN_OF[kind] in ("lung", "pleura", "kidney") else ("",)
    side = sides[int(rng.integers(len(sides)))]
    if kind == "effusion":
        found = _effusion(rng, anatomy, side, others)
    elif kind == "fracture":
        found = _fracture(rng, anatomy, others, grid)
    else:
        found = _focal(rng, anatomy, kind, side, others, obstacles, grid)
    if found is None or (grid is not None and grid.contains(found.extent).mean() < (0.97 if kind == "effusion" else 1)):
        return None
    return found


def _focal(rng: np.random.Generator, anatomy: Anatomy, kind: Kind, side: Side, others: list[Planted],
           obstacles: list[tuple[Array, float]], grid: Grid | None) -> Planted | None:  # fmt: skip
    """A lump wholly within the organ, at least APART_MM from other lumps."""
    label = LABELS.index(f"{ORGAN_OF[kind]} {side}".strip())
    lump, size = _lump(rng, rng.uniform(*SIZES_MM[kind]))
    cnr = rng.uniform(*CONTRAST_TO_NOISE)
    low, high = anatomy.organ_box(label)
    centres = rng.uniform(low, high, (400, 3))
    surface = lump.surface(DIRECTIONS)
    clear = np.ones(len(centres), bool) if grid is None else grid.contains(centres)
    taken = [(np.array(o.finding.ras), o.reach + APART_MM) for o in others] + [(c, r + 4) for c, r in obstacles]
    for centre, radius in taken:
        clear &= np.linalg.norm(centres - centre, axis=1) > radius + size * 0.55
    centres = centres[clear]
    centres = centres[anatomy.labels_at(centres) == label][:40] if len(centres) else centres
    if not len(centres):
        return None
    shells = centres[:, None] + surface * (1 + 2.5 / size)  # a little room between the lump and the organ's border
    inside = (anatomy.labels_at(shells.reshape(-1, 3)) == label).reshape(shells.shape[:2]).all(1)
    for o in others:  # fluid takes the lung's place
        if isinstance(o.shape, Crescent):
            inside &= (o.shape.distance(*np.moveaxis(shells, -1, 0).astype(np.float32)) > 2).all(1)
    if grid is not None:
        inside &= grid.contains(shells).all(1)
    if not inside.any():
        return None
    lump = replace(lump, centre=centres[int(np.argmax(inside))])
    r, a, s = (float(x) for x in lump.middle(DIRECTIONS))
    finding = Finding(kind, ORGAN_OF[kind], side, size, (r, a, s), float(cnr))
    return Planted(finding, lump, lump.surface(DIRECTIONS), size * 0.55)


def _lump(rng: np.random.Generator, size: float) -> tuple[Lump, float]:
    """A lump at the origin whose largest diameter is `size` mm, and that size."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lump = Lump(np.zeros(3), np.array([1, rng.uniform(0.75, 1), rng.uniform(0.75, 1)]), turn, rng.uniform(0, 6.3, 3))
    surface = lump.surface(DIRECTIONS)
    widest = np.linalg.norm(surface[:, None] - surface[None], axis=2).max()
    return replace(lump, half=lump.half * size / widest), float(size)


def _effusion(rng: np.random.Generator, anatomy: Anatomy, side: Side, others: list[Planted]) -> Planted | None:
    """Fluid behind and below one lung; at most one a side."""
    if any(o.finding.kind == "effusion" and o.finding.side == side for o in others):
        return None
    depth, lung = rng.uniform(*SIZES_MM["effusion"]), anatomy.lungs[side]
    fade = rng.uniform(30, 60)
    top = min(anatomy.domes[side] + 15 + fade + 0.8 * depth * rng.uniform(0, 1), lung.centre[2] + 0.6 * lung.half[2])
    shape = Crescent(lung, depth, top, fade)
    low, high = shape.box()
    places = np.stack(
        np.meshgrid(*[np.arange(p, q, 4.0) for p, q in zip(low, high, strict=True)], indexing="ij"), -1
    ).reshape(-1, 3)
    places = places[shape.distance(*places.T.astype(np.float32)) < 0]
    places = places[anatomy.labels_at(places) == LABELS.index(f"lung {side}")]
    for o in others:  # a nodule that would drown
        if o.finding.kind == "nodule" and (shape.distance(*o.extent.T.astype(np.float32)) < 2).any():
            return None
    r, a, s = (float(x) for x in places.mean(0))
    return Planted(Finding("effusion", "pleura", side, float(depth), (r, a, s), 0.0), shape, places, -APART_MM)


def _fracture(rng: np.random.Generator, anatomy: Anatomy, others: list[Planted], grid: Grid | None) -> Planted | None:
    """A vertebral body that lost height; those next to it stay whole."""
    broken = [o.finding.ras[2] for o in others if o.finding.kind == "fracture"]
    able = []
    for n, body in enumerate(anatomy.vertebrae):
        apart = all(abs(body.centre[2] - s) > 5 * body.half[2] for s in broken)
        inside = abs(body.centre[2]) + body.half[2] < anatomy.half[2] and (
            grid is None or grid.contains(_corners(body)).all()
        )
        if apart and inside:
            able.append(n)
    if not able:
        return None
    n = able[int(rng.integers(len(able)))]
    body, wedge = anatomy.vertebrae[n], bool(rng.random() < 0.6)
    loss = rng.uniform(SIZES_MM["fracture"][0], min(SIZES_MM["fracture"][1], 1.3 * body.half[2]))
    spine = LABELS.index("spine")
    paints = (
        Paint(body, "disc", spine, f"gap {n}"), Paint(Collapsed(body, loss, wedge), "cortex", spine, f"vertebra {n}"),
        Paint(Collapsed(body, loss, wedge, 2.0), "marrow", spine, f"marrow {n}"),
    )  # fmt: skip
    r, a, s = (float(x) for x in body.centre)
    return Planted(
        Finding("fracture", "spine", "", float(loss), (r, a, s), 0.0), body, _corners(body), -APART_MM, paints
    )


def _corners(body: Blob) -> Array:
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3, indexing="ij")).reshape(3, -1).T
    return np.asarray(body.centre + signs * body.half)


def acquired(rng: np.random.Generator, anatomy: Anatomy, plane: PlaneName, need: Array | None, oblique: bool) -> Grid:
    """A box of voxels in the body frame that covers at least the (n, 3) places `need`.

    Slices are contiguous and at least 1.15 times as thick as pixels are wide; k runs along their normal.
    """
    while True:
        low, high = _field(rng, anatomy, plane, need)
        extent, across, (j, i) = high - low, ACROSS[plane], _IN_PLANE[plane]
        finest = max(1.0, max(extent[j], extent[i]) / 224)
        pixel = rng.uniform(finest, 2.2)
        thinnest, thickest = max(1.5, 1.16 * pixel, extent[across] / 160), min(6.5, extent[across] / 20)
        if finest > 2.2 or thinnest > thickest:
            continue
        spacing = rng.uniform(thinnest, thickest)
        axes, steps = (across, j, i), np.array([spacing, pixel, pixel])
        shape = tuple(int(np.clip(extent[axis] / step, 20, 224)) for axis, step in zip(axes, steps, strict=True))
        if np.prod(shape) <= MOST_VOXELS and shape[0] <= 160:
            break
    columns = np.eye(3)[:, axes] * steps * rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = (_turn(rng) if oblique else np.eye(3)) @ columns
    affine[:3, 3] = (low + high) / 2 - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)  # type: ignore[arg-type]


def _field(rng: np.random.Generator, anatomy: Anatomy, plane: PlaneName, need: Array | None) -> tuple[Array, Array]:
    """Lowest and highest (r, a, s) of the field of view."""
    half, across = anatomy.half, ACROSS[plane]
    low, high = -half - rng.uniform(4, 15, 3), half + rng.uniform(4, 15, 3)
    for axis in {across, 2}:  # the other axes show the whole body
        least = 0.0 if need is None else float(np.ptp(need[:, axis])) + 14
        extent = max(rng.uniform(100 if axis == across else 220, 2 * half[axis]), least)
        first, last = -half[axis], half[axis] - extent
        if need is not None:
            first, last = max(first, need[:, axis].max() + 7 - extent), min(last, need[:, axis].min() - 7)
        low[axis] = rng.uniform(first, last) if first < last else (first + last) / 2
        high[axis] = low[axis] + extent
    return low, high


def _turn(rng: np.random.Generator) -> Array:
    """(3, 3) rotation by 2 to 8 degrees about any axis."""
    x, y, z = (lambda v: v / np.linalg.norm(v))(rng.normal(size=3)) * np.deg2rad(rng.uniform(2, 8))
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.sqrt(x * x + y * y + z * z)
    return np.asarray(np.eye(3) + np.sin(angle) / angle * skew + (1 - np.cos(angle)) / angle**2 * skew @ skew)


def sided(side: Side, mirrored: bool) -> Side:
    """The side as it is called in the mirrored body."""
    return cast(Side, other_side(side)) if mirrored else side
