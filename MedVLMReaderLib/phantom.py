"""Made studies with known truth: a simplified torso with findings, as a scanner might have acquired it, from a seed.

`made_truth` says what a study holds without rendering it; `made_study` renders it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from MedVLMReaderLib.anatomy import HALF_HEIGHT, LABELS, Anatomy, Paint, made_anatomy
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.planting import KINDS, Planted, acquired, planted, sided
from MedVLMReaderLib.shapes import Blob, Crescent, Shape
from MedVLMReaderLib.truth import STRUCTURES, Finding, Phase, Side, Truth, other_side
from MedVLMReaderLib.volume import PLANES, PlaneName, Volume

__all__ = ["LABELS", "Study", "made_outline", "made_study", "made_truth", "write"]


@dataclass(frozen=True, eq=False)
class Study:
    """A made study and all that is known of it."""

    volume: Volume
    """int16: Hounsfield units for CT, arbitrary positive units for MR; k runs along the slice normal."""
    truth: Truth
    labels: Array
    """(k, j, i) uint8 indices into LABELS."""
    masks: tuple[Array, ...]
    """A (k, j, i) bool array for each of truth.findings, never empty."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """A study before it is rendered; places are in the body frame."""

    truth: Truth
    """Without the world's offset."""
    anatomy: Anatomy
    grid: Grid
    offset: Array
    found: tuple[Planted, ...]
    """In the order of truth.findings."""
    extras: tuple[Paint, ...]
    """Cysts and calcified nodes, never in the truth."""
    values: dict[str, float]
    """Of each tissue."""
    noise: float
    blur: float
    """Standard deviation in pixels."""


def made_truth(seed: int, *, mirrored: bool = False) -> Truth:
    """The truth of `made_study(seed)`, without rendering it."""
    return made_outline(seed, mirrored=mirrored)[0]


def made_outline(seed: int, *, mirrored: bool = False) -> tuple[Truth, Grid]:
    """The truth of `made_study(seed)` and the box of its voxels, but for their order, without rendering it."""
    truth, _, grid = _placed(_planned(seed), mirrored)
    return truth, grid


def made_study(seed: int, *, mirrored: bool = False) -> Study:
    """A study from a seed. Mirrored: the same body with right and left exchanged, in the same place."""
    plan = _planned(seed)
    truth, order, grid = _placed(plan, mirrored)
    image, labels, masks = _rendered(plan)
    values = _scanned(plan, image, np.random.default_rng([seed, 1]))
    if mirrored:  # count the voxels in the patient's frame as before: only the contents change sides
        axis = int(np.argmax(np.abs(grid.directions[0])))
        values, labels, grid = np.flip(values, axis), np.flip(_MIRRORED_LABELS[labels], axis), grid.flip(axis)
        masks = [np.flip(mask, axis) for mask in masks]
    source = f"made-{seed}" + ("-mirrored" if mirrored else "")
    volume = Volume(np.ascontiguousarray(values), grid, truth.modality, source)
    return Study(volume, truth, np.ascontiguousarray(labels), tuple(np.ascontiguousarray(masks[n]) for n in order))


def write(study: Study, folder: Path) -> None:
    """volume.nii.gz, labels.nii.gz, mask-1.nii.gz and so on, and truth.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    study.volume.save(folder / "volume.nii.gz")
    replace(study.volume, values=study.labels).save(folder / "labels.nii.gz")
    for n, mask in enumerate(study.masks, start=1):
        replace(study.volume, values=mask.astype(np.uint8)).save(folder / f"mask-{n}.nii.gz")
    (folder / "truth.json").write_text(json.dumps(study.truth.to_json(), indent=1) + "\n", encoding="utf-8")


_MIRRORED_LABELS = np.array(
    [LABELS.index(other_side(name)) for name in LABELS],
    np.uint8,
)


def _placed(plan: _Plan, mirrored: bool) -> tuple[Truth, list[int], Grid]:
    """The truth in world coordinates, the findings' new order, and the grid. Mirrored: about the body's mid-plane."""
    sign = np.array([-1.0 if mirrored else 1.0, 1, 1])
    findings = []
    for f in plan.truth.findings:
        r, a, s = (float(x) for x in sign * f.ras + plan.offset)
        findings.append(replace(f, side=sided(f.side, mirrored), ras=(r, a, s)))
    order = sorted(range(len(findings)), key=lambda n: _rank(findings[n]))
    seen = {(organ, sided(side, mirrored)) for organ, side in plan.truth.in_view}
    in_view = tuple(structure for structure in STRUCTURES if structure in seen)
    affine = np.diag([*sign, 1.0]) @ plan.grid.affine
    affine[:3, 3] += plan.offset
    truth = replace(plan.truth, in_view=in_view, findings=tuple(findings[n] for n in order))
    return truth, order, Grid(plan.grid.shape, affine)


def _rank(finding: Finding) -> tuple[int, float]:
    return STRUCTURES.index((finding.organ, finding.side)), -finding.size_mm


# --- planning ---------------------------------------------------------------------------------------------------------


def _planned(seed: int) -> _Plan:
    rng = np.random.default_rng([seed, 0])
    modality: Literal["CT", "MR"] = "CT" if rng.random() < 0.6 else "MR"
    phase: Phase = "contrast" if rng.random() < 0.5 else "plain"
    plane = PLANES[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    oblique = bool(rng.random() < 0.2)
    offset, blur = rng.uniform(-100, 100, 3), rng.uniform(0.4, 0.9)
    values, noise = _tissues(rng, modality, phase)
    anatomy = made_anatomy(rng)
    extras, values = _extras(rng, anatomy, modality, values, noise)
    obstacles = [(p.shape.centre, float(p.shape.half.max())) for p in extras if isinstance(p.shape, Blob)]
    found, grid, in_view = _findings(rng, anatomy, plane, oblique, obstacles)
    found.sort(key=lambda planted: _rank(planted.finding))
    truth = Truth(seed, modality, phase, plane, in_view, tuple(f.finding for f in found))
    return _Plan(truth, anatomy, grid, offset, tuple(found), tuple(extras), values, noise, blur)


_WEIGHTS = np.array([3.0 if kind == "effusion" else 1.0 for kind in KINDS])
_ODDS = _WEIGHTS / _WEIGHTS.sum()  # an effusion needs a large field and comes once a side: tried more often


def _findings(
    rng: np.random.Generator, anatomy: Anatomy, plane: PlaneName, oblique: bool, obstacles: list[tuple[Array, float]]
) -> tuple[list[Planted], Grid, tuple[tuple[str, Side], ...]]:
    """What is found, a field of view that holds it, and the structures in view.

    The first finding is planted before the field is chosen: kinds stay balanced although small fields show few organs.
    """
    raster = _raster(anatomy)
    count = 0 if rng.random() < 0.3 else int(rng.choice([1, 2, 3, 4, 5], p=(0.35, 0.25, 0.2, 0.12, 0.08)))
    if not count:
        grid = acquired(rng, anatomy, plane, None, oblique)
        return [], grid, raster.in_view(grid)
    kind, first = KINDS[int(rng.integers(len(KINDS)))], None
    while first is None:
        first = planted(rng, anatomy, kind, [], obstacles, None)
    grid = acquired(rng, anatomy, plane, first.extent, oblique)
    while not (grid.contains(first.extent).all() and first.structure in raster.in_view(grid)):
        grid = acquired(rng, anatomy, plane, first.extent, False)  # a turned box may lose it
    found, in_view = [first], raster.in_view(grid)
    for _ in range(12 * (count - 1)):
        kind = kind if rng.random() < 0.3 else KINDS[int(rng.choice(len(KINDS), p=_ODDS))]
        another = planted(rng, anatomy, kind, found, obstacles, grid)
        found += [another] if another and another.structure in in_view else []
        if len(found) == count:
            break
    return found, grid, in_view


@dataclass(frozen=True, eq=False)
class _Raster:
    """The organs of a whole torso on an 8 mm raster."""

    places: Array
    """(n, 3), those within organs."""
    labels: Array
    """(n,)"""

    def in_view(self, grid: Grid) -> tuple[tuple[str, Side], ...]:
        """The structures of which at least a quarter lies in `grid`."""
        inside, shown = grid.contains(self.places), []
        for organ, side in STRUCTURES:
            organ_cells = inside[
                self.labels == LABELS.index(f"{'lung' if organ == 'pleura' else organ} {side}".strip())
            ]
            if organ_cells.size and organ_cells.mean() >= 0.25:
                shown.append((organ, side))
        return tuple(shown)


def _raster(anatomy: Anatomy) -> _Raster:
    half = np.array([*anatomy.half[:2], HALF_HEIGHT])
    steps = np.ceil(2 * half / 8).astype(int)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -4.0 * (steps - 1)
    grid = Grid((steps[0], steps[1], steps[2]), affine)
    canvas = _Canvas(grid, 1)
    for paint in anatomy.paints:
        if paint.label is not None:
            canvas.label(paint)
    places = np.argwhere(canvas.labels > 1)
    return _Raster(grid.to_world(places), canvas.labels[tuple(places.T)])


_CT = {
    "gas": -990, "lung": -850, "fat": -100, "muscle": 50, "mediastinum": 0, "heart muscle": 48, "blood": 45,
    "liver": 60, "liver vessel": 45, "spleen": 50, "kidney": 35, "bowel": 35, "cortex": 400, "marrow": 215, "disc": 80,
    "canal": 20,
    "fluid": 15, "outside": -1000,
}  # fmt: skip
_CT_SPREAD = {"lung": 30, "fat": 10, "cortex": 80, "marrow": 35, "bowel": 15}
_MR = {
    "gas": 0.03, "lung": 0.14, "fat": 1.45, "muscle": 0.7, "mediastinum": 1.1, "heart muscle": 0.75, "blood": 0.45,
    "liver": 1, "liver vessel": 0.6, "spleen": 0.72, "kidney": 0.8, "bowel": 0.65, "cortex": 0.2, "marrow": 1.1,
    "disc": 0.6, "canal": 0.45, "fluid": 0.4, "outside": 0,
}  # fmt: skip


def _tissues(rng: np.random.Generator, modality: str, phase: Phase) -> tuple[dict[str, float], float]:
    """The value of each tissue and the standard deviation of the noise."""
    if modality == "CT":
        values = {name: v + rng.uniform(-1, 1) * _CT_SPREAD.get(name, 4) for name, v in _CT.items()}
        if phase == "contrast":
            blood = rng.uniform(180, 260)
            values |= {"blood": blood, "heart muscle": 110, "liver": 110, "spleen": 125, "kidney": 190}
            values["liver vessel"] = 190
        return values, float(rng.uniform(10, 30))
    scale = rng.uniform(200, 2000)
    relative = {name: v * rng.uniform(0.94, 1.06) for name, v in _MR.items()} | {"liver": 1.0}
    if phase == "contrast":
        relative |= {"blood": 1.75, "heart muscle": 1.1, "liver": 1.15, "spleen": 1.15, "kidney": 1.6}
        relative["liver vessel"] = 1.7
    return {name: v * scale for name, v in relative.items()}, float(rng.uniform(0.03, 0.06) * scale * relative["liver"])


def _extras(rng: np.random.Generator, anatomy: Anatomy, modality: str, values: dict[str, float], noise: float
            ) -> tuple[list[Paint], dict[str, float]]:  # fmt: skip
    """Renal cysts and calcified nodes, with the values of their tissues, which make a study harder to read."""
    extras, kidney = [], values["kidney"]
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.3 else 0):
        organ = [p.shape for p in anatomy.paints if p.name.startswith("kidney")][int(rng.integers(2))]
        assert isinstance(organ, Blob)
        # stones are dark on MR too: only larger cysts there, so that size tells the two apart
        radius = rng.uniform(5, 15) if modality == "CT" else rng.uniform(9.5, 15)
        way = rng.normal(size=3) * np.array([1, 1, 0.7])
        spot = organ.centre + way / np.linalg.norm(way) * organ.half * 0.75
        side = "right" if organ.centre[0] > 0 else "left"
        extras.append(Paint(Blob(spot, np.full(3, radius)), "cyst", LABELS.index(f"kidney {side}")))
    middle = anatomy.mediastinum
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.3 else 0):
        spot = middle.centre + rng.uniform(-0.6, 0.6, 3) * middle.half * np.array([1, 0.6, 0.4])
        extras.append(Paint(Blob(spot, rng.uniform(1.5, 4, 3)), "calcium", None))
    calcium = values["mediastinum"] + rng.uniform(400, 900) if modality == "CT" else 0.05 * values["liver"]
    return extras, values | {"cyst": kidney - rng.uniform(4.5, 8) * noise, "calcium": float(calcium)}


# --- rendering --------------------------------------------------------------------------------------------------------


MOST_CELLS = 4e6


class _Canvas:
    """An image on `grid` with each slice cut into `cuts`, and labels of whole voxels."""

    def __init__(self, grid: Grid, cuts: int) -> None:
        self.cuts, self.fine = cuts, grid.resize((grid.shape[0] * cuts, *grid.shape[1:]))
        self.labels = np.zeros(grid.shape, np.uint8)
        self.soft = np.float32(self.fine.spacing.mean())  # width of an edge, mm
        affine = self.fine.affine
        index = np.ogrid[tuple(slice(0, n) for n in self.fine.shape)]
        self._places = [  # 1-D along the body's axes, 3-D for an oblique grid
            np.asarray(sum(affine[row, c] * index[c] for c in range(3) if abs(affine[row, c]) > 1e-9) + affine[row, 3])
            .astype(np.float32) for row in range(3)
        ]  # fmt: skip
        self._inverse = np.linalg.inv(affine)

    def coverage(self, shape: Shape) -> tuple[tuple[slice, ...], Array] | None:
        """The part of the fine grid around `shape`, whole voxels of it, and how much of each cell it fills."""
        part = self._around(*shape.box())
        if part is None:
            return None
        r, a, s = (self._along(row, part) for row in range(3))
        return part, np.clip(np.float32(0.5) - shape.distance(r, a, s) / self.soft, 0, 1)

    def label(self, paint: Paint, covered: tuple[tuple[slice, ...], Array] | None = None) -> None:
        """Labels of voxels half filled."""
        covered = covered or self.coverage(paint.shape)
        if covered is not None and paint.label is not None:
            part, share = covered
            whole = (slice(part[0].start // self.cuts, part[0].stop // self.cuts), *part[1:])
            np.copyto(self.labels[whole], np.uint8(paint.label), where=self.voxels(share) > 0.5)

    def voxels(self, share: Array) -> Array:
        """The mean over the cuts of each slice."""
        if self.cuts == 1 or share.shape[0] == 1:
            return share
        return np.asarray(sum(share[n :: self.cuts] for n in range(self.cuts)) / np.float32(self.cuts))

    def _along(self, row: int, part: tuple[slice, ...]) -> Array:
        """One body coordinate, broadcastable over `part`."""
        places = self._places[row]
        return places[tuple(p if n > 1 else slice(None) for p, n in zip(part, places.shape, strict=True))]

    def _around(self, low: Array, high: Array) -> tuple[slice, ...] | None:
        corners = np.array(np.meshgrid(*zip(low - self.soft, high + self.soft, strict=True), indexing="ij")).reshape(
            3, -1
        )
        index = self._inverse[:3, :3] @ corners + self._inverse[:3, 3:]
        first = np.clip(np.floor(index.min(1)), 0, self.fine.shape).astype(int)
        last = np.clip(np.ceil(index.max(1)) + 1, 0, self.fine.shape).astype(int)
        first[0], last[0] = first[0] // self.cuts * self.cuts, -(-last[0] // self.cuts) * self.cuts
        return tuple(slice(a, b) for a, b in zip(first, last, strict=True)) if (first < last).all() else None


def _rendered(plan: _Plan) -> tuple[Array, Array, list[Array]]:
    """Noiseless image, labels, and the findings' masks; all (k, j, i)."""
    thick = plan.grid.spacing[0] / plan.grid.spacing[1]
    cuts = 1 if thick < 1.6 else 2 if thick < 3 else 3
    canvas = _Canvas(plan.grid, min(cuts, max(1, int(MOST_CELLS / np.prod(plan.grid.shape)))))
    image = np.full(canvas.fine.shape, plan.values["outside"], np.float32)
    for paint, value in _painted(plan):
        covered = canvas.coverage(paint.shape)
        if covered is not None:
            part, share = covered
            image[part] += share * (np.float32(value) - image[part])
            canvas.label(paint, covered)
    return canvas.voxels(image), canvas.labels, [_mask(canvas, found) for found in plan.found]


def _painted(plan: _Plan) -> list[tuple[Paint, float]]:
    """All that is painted, in order, with its value."""
    fluid = {o.finding.side: o.shape for o in plan.found if isinstance(o.shape, Crescent)}
    broken = {p.name: o.paints for o in plan.found for p in o.paints}
    paints: list[Paint] = []
    for paint in plan.anatomy.paints:
        if paint.name in broken:
            paints += broken[paint.name] if paint.name.startswith("vertebra") else ()
            continue
        if paint.tissue == "mediastinum":  # fluid after both lungs, before all that rises into them
            paints += [Paint(shape, "fluid", LABELS.index(f"pleural fluid {side}")) for side, shape in fluid.items()]
        paints.append(paint)
    painted = [(paint, plan.values[paint.tissue]) for paint in (*paints, *plan.extras)]
    for found in plan.found:
        if found.finding.contrast_to_noise:
            painted.append((Paint(found.shape, found.finding.kind, None), _lesion(plan, found.finding)))
    return painted


def _lesion(plan: _Plan, finding: Finding) -> float:
    """The value of a focal lesion: its organ's, brighter or darker."""
    bright = finding.kind in ("nodule", "bright liver lesion") or (
        finding.kind == "stone" and plan.truth.modality == "CT"
    )
    return plan.values[finding.organ] + (1 if bright else -1) * finding.contrast_to_noise * plan.noise


def _mask(canvas: _Canvas, found: Planted) -> Array:
    """The voxels that a finding fills for the better part; the fullest ones where it is thinner than a slice."""
    if isinstance(found.shape, Crescent):
        return np.asarray(canvas.labels == LABELS.index(f"pleural fluid {found.finding.side}"))
    mask = np.zeros(canvas.labels.shape, bool)
    covered = canvas.coverage(found.shape)
    if covered is not None:
        part, share = covered
        share = canvas.voxels(share)
        whole = (slice(part[0].start // canvas.cuts, part[0].stop // canvas.cuts), *part[1:])
        mask[whole] = share > (0.5 if found.paints else min(0.35, 0.6 * float(share.max())))
    return mask


def _scanned(plan: _Plan, image: Array, rng: np.random.Generator) -> Array:
    """The image as acquired: blurred in the slice, with slow texture, the coils' bias (MR) and noise. int16."""
    noise = np.float32(plan.noise)
    image = ndimage.gaussian_filter1d(image, plan.blur, axis=1, truncate=3)
    image = ndimage.gaussian_filter1d(image, plan.blur, axis=2, truncate=3)
    if plan.truth.modality == "MR":
        image *= 1 + np.float32(0.1) * _slow(rng, plan.grid, 150)
    image += np.float32(0.3) * noise * _slow(rng, plan.grid, 25)
    image += noise * rng.standard_normal(image.shape, np.float32)
    if plan.truth.modality == "MR":  # magnitudes
        return np.rint(np.abs(image)).astype(np.int16)
    return np.rint(np.maximum(image, -1024)).astype(np.int16)


def _slow(rng: np.random.Generator, grid: Grid, knot_mm: float) -> Array:
    """(k, j, i) float32 between -1 and 1 that changes over `knot_mm`."""
    spans = [max(2, int(np.ceil(n * mm / knot_mm))) + 1 for n, mm in zip(grid.shape, grid.spacing, strict=True)]
    field = rng.uniform(-1, 1, spans).astype(np.float32)
    for axis, n in enumerate(grid.shape):
        field = np.moveaxis(np.tensordot(_smooth_steps(n, spans[axis]), field, (1, axis)), 0, axis)
    return field


def _smooth_steps(n: int, knots: int) -> Array:
    """(n, knots) weights of a curve through `knots` values without corners."""
    at = np.linspace(0, knots - 1, n)
    base = np.minimum(at.astype(int), knots - 2)
    t = at - base
    t = t * t * (3 - 2 * t)
    weights = np.zeros((n, knots), np.float32)
    weights[np.arange(n), base], weights[np.arange(n), base + 1] = 1 - t, t
    return weights
