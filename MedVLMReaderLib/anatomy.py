"""A simplified torso: shapes painted one over the other.

Body frame: (r, a, s) in mm, patient Right, Anterior and Superior positive, origin on the mid-plane half way between the
lung apices and the lower end of the modelled torso.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.shapes import Blob, Ribs, Shape, Tube

LABELS: tuple[str, ...] = (
    "background", "body", "lung right", "lung left", "heart", "liver", "spleen", "kidney right", "kidney left", "spine",
    "vessel", "pleural fluid right", "pleural fluid left",
)  # fmt: skip
"""The name of each value of a study's labels."""

HALF_HEIGHT = 210.0
"""Of the modelled torso, mm."""

SIGN = {"right": 1.0, "left": -1.0}


@dataclass(frozen=True, eq=False)
class Paint:
    """A shape of one tissue, over all that was painted before it."""

    shape: Shape
    tissue: str
    label: int | None = 1
    """Index into LABELS; None keeps the label underneath."""
    name: str = ""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One torso."""

    half: Array
    """(3,) half width, half depth and half height of the body."""
    paints: tuple[Paint, ...]
    """In order."""
    lungs: dict[str, Blob]
    domes: dict[str, float]
    """s of the top of each half of the diaphragm."""
    vertebrae: tuple[Blob, ...]
    """From above."""
    mediastinum: Blob

    def labels_at(self, places: Array) -> Array:
        """(n,) labels at (n, 3) places."""
        labels = np.zeros(len(places), np.uint8)
        r, a, s = places.astype(np.float32).T
        first, last = places.min(0), places.max(0)
        for paint in self.paints:
            low, high = paint.shape.box()
            if paint.label is not None and np.all(low < last) and np.all(high > first):
                labels[np.broadcast_to(paint.shape.distance(r, a, s) < 0, labels.shape)] = paint.label
        return labels

    def organ_box(self, label: int) -> tuple[Array, Array]:
        """The box around all that is painted with `label`."""
        boxes = [paint.shape.box() for paint in self.paints if paint.label == label]
        return np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)


def made_anatomy(rng: np.random.Generator) -> Anatomy:
    """A torso drawn at random: sizes and places of the organs vary by about a tenth."""
    half = np.array([rng.uniform(150, 200), rng.uniform(100, 130), HALF_HEIGHT])
    draw = _Drawing(rng, np.array([half[0] / 175, half[1] / 115, rng.uniform(0.95, 1.04)]))
    lungs = {
        "right": draw.blob((80, -4, 78), (64, 82, 128), 3, taper=-0.28),
        "left": draw.blob((-78, -4, 80), (58, 80, 124), 3, taper=-0.28),
    }
    mediastinum = draw.blob((0, 4, 90), (30, 70, 135), 3)
    vertebrae = _vertebrae(draw)
    liver = draw.blob((76, 2, -45), (68, 76, 64))
    stomach_side = draw.blob((-74, 2, -58), (64, 74, 62))
    domes = {
        "right": float(liver.centre[2] + liver.half[2]),
        "left": float(stomach_side.centre[2] + stomach_side.half[2]),
    }
    paints = [*_wall(draw, half), *_chest(draw, lungs, mediastinum), *_abdomen(draw, liver, stomach_side)]
    paints += [*_midline(draw), *_spine(vertebrae)]
    return Anatomy(half, tuple(paints), lungs, domes, vertebrae, mediastinum)


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Draws shapes near where an average torso (half width 175 mm, half depth 115 mm) has them."""

    rng: np.random.Generator
    scale: Array

    def place(self, centre: tuple[float, float, float], jitter: float = 4.0) -> Array:
        return np.asarray(np.array(centre) * self.scale + self.rng.uniform(-jitter, jitter, 3))

    def blob(
        self, centre: tuple[float, float, float], half: tuple[float, float, float], power: int = 2, taper: float = 0.0
    ) -> Blob:
        return Blob(self.place(centre), np.array(half) * self.scale * self.rng.uniform(0.92, 1.08, 3), power, taper)

    def tree(self, root: Array, within: Blob, radius: float, reach: float, depth: int, twigs: int) -> list[Tube]:
        """Tubes from `root` that fork `depth` times and end inside `within`."""
        tubes: list[Tube] = []
        for _ in range(twigs):
            out = self.rng.normal(size=3) * within.half + 0.6 * (within.centre - root)
            end = root + out / np.linalg.norm(out) * reach * self.rng.uniform(0.7, 1.2)
            if within.distance(*end.astype(np.float32)) > -6:
                continue
            tubes.append(Tube(root, end, radius * self.rng.uniform(0.85, 1.15)))
            if depth:
                tubes += self.tree(end, within, max(radius * 0.72, 1.5), reach * 0.75, depth - 1, 2)
        return tubes


def _wall(draw: _Drawing, half: Array) -> list[Paint]:
    """Skin and fat, muscle, ribs, breast bone, and the fat of the abdomen."""
    fat = draw.rng.uniform(6, 16)
    tall = np.array([1, 1, 50])  # ENDLESS
    skin = Blob(np.zeros(3), half * tall, 3)
    muscle = Blob(np.zeros(3), (half - np.array([fat, fat * 0.9, 0])) * tall, 3)
    cage = draw.blob((0, -3, 62), (152, 95, 165), 3, taper=-0.22)
    ribs = Ribs(cage, draw.rng.uniform(27, 33), draw.rng.uniform(0.3, 0.5), draw.rng.uniform(4, 5.5))
    belly = draw.blob((0, 8, -135), (138, 84, 140), 3)
    sternum = draw.blob((0, 88, 95), (17, 6, 75), 3)
    return [
        Paint(skin, "fat"), Paint(muscle, "muscle"), Paint(belly, "fat"), Paint(ribs, "cortex"),
        Paint(sternum, "cortex"), Paint(Blob(sternum.centre, sternum.half - 2.5, 3), "marrow"),
    ]  # fmt: skip


def _chest(draw: _Drawing, lungs: dict[str, Blob], mediastinum: Blob) -> list[Paint]:
    """Lungs with their vessels, mediastinum, airways, heart."""
    paints = []
    for side, lung in lungs.items():
        paints.append(Paint(lung, "lung", LABELS.index(f"lung {side}"), f"lung {side}"))
        root = draw.place((SIGN[side] * 40, -8, 72))
        paints += [Paint(tube, "blood", None) for tube in draw.tree(root, lung, 4.2, 42, 3, 7)]
    paints += [Paint(mediastinum, "mediastinum"), Paint(draw.blob((0, 12, 205), (60, 60, 50)), "muscle")]
    carina = draw.place((0, -12, 105))
    paints.append(Paint(Tube(draw.place((0, -6, 230)), carina, draw.rng.uniform(7, 9)), "gas"))
    for side, sign in SIGN.items():
        paints.append(Paint(Tube(carina, draw.place((sign * 38, -16, 80)), 5.5), "gas", name=f"bronchus {side}"))
    heart = LABELS.index("heart")
    return [
        *paints,
        Paint(draw.blob((-22, 28, 46), (56, 46, 52)), "heart muscle", heart),
        Paint(draw.blob((-32, 22, 44), (30, 28, 34)), "blood", heart),
        Paint(draw.blob((12, 30, 50), (22, 26, 34)), "blood", heart),
    ]


def _abdomen(draw: _Drawing, liver: Blob, dome: Blob) -> list[Paint]:
    """Diaphragm, liver with its vessels, stomach, spleen, kidneys, psoas and bowel."""
    rng = draw.rng
    paints = [Paint(dome, "fat"), Paint(Blob(liver.centre, liver.half + 3), "muscle")]
    paints += _bowel(draw)
    left_lobe = draw.blob((8, 38, -38), (62, 32, 34))
    paints += [Paint(liver, "liver", LABELS.index("liver")), Paint(left_lobe, "liver", LABELS.index("liver"))]
    for root in (draw.place((45, 0, -58)), draw.place((42, -10, -15))):
        paints += [Paint(tube, "liver vessel", None) for tube in draw.tree(root, liver, 4.6, 34, 2, 4)]
    stomach = draw.blob((-62, 32, -42), (40, 38, 42))
    gas = stomach.half * rng.uniform(0.35, 0.65, 3)
    bubble = Blob(stomach.centre + np.array([0, 0.9 * (stomach.half[1] - gas[1]), rng.uniform(-5, 5)]), gas)
    paints += [Paint(stomach, "bowel"), Paint(bubble, "gas")]
    paints.append(Paint(draw.blob((-106, -36, -48), (27, 42, 46)), "spleen", LABELS.index("spleen")))
    for side, centre in (("right", (65, -50, -114)), ("left", (-63, -48, -94))):
        kidney = draw.blob(centre, (26, 24, 52))
        hilum = kidney.centre - np.array([SIGN[side] * kidney.half[0] * 0.85, 0, 0])
        paints.append(Paint(Blob(kidney.centre, kidney.half + rng.uniform(2, 5)), "fat"))
        paints.append(Paint(kidney, "kidney", LABELS.index(f"kidney {side}"), f"kidney {side}"))
        paints.append(Paint(Blob(hilum, kidney.half * np.array([0.4, 0.45, 0.4])), "fat"))
        paints.append(Paint(draw.blob((SIGN[side] * 38, -60, -165), (19, 20, 70)), "muscle"))
    return paints


def _bowel(draw: _Drawing) -> list[Paint]:
    paints = []
    for _ in range(int(draw.rng.integers(9, 16))):
        centre = (draw.rng.uniform(-100, 100), draw.rng.uniform(15, 60), draw.rng.uniform(-205, -95))
        loop = draw.blob(centre, tuple(draw.rng.uniform(13, 28, 3)))
        paints.append(Paint(loop, "bowel"))
        if draw.rng.random() < 0.35:
            top = loop.centre + np.array([0, loop.half[1] * 0.35, 0])
            paints.append(Paint(Blob(top, loop.half * draw.rng.uniform(0.3, 0.6, 3)), "gas"))
    return paints


def _midline(draw: _Drawing) -> list[Paint]:
    """Aorta with its arch, and both cavae."""
    vessel, radius = LABELS.index("vessel"), draw.rng.uniform(10, 13)
    low, descending, arch = draw.place((-14, -30, -225)), draw.place((-22, -42, 95)), draw.place((-4, -12, 122))
    ascending, root = draw.place((14, 14, 105)), draw.place((6, 18, 60))
    course = (low, draw.place((-16, -34, -60)), descending, arch, ascending, root)
    tubes = [Tube(p, q, radius * (0.85 if n == 0 else 1)) for n, (p, q) in enumerate(itertools.pairwise(course))]
    tubes.append(Tube(draw.place((22, -24, -225)), draw.place((24, -8, 8)), draw.rng.uniform(9, 12)))
    tubes.append(Tube(draw.place((24, 12, 60)), draw.place((26, 8, 160)), draw.rng.uniform(7, 10)))
    return [Paint(tube, "blood", vessel) for tube in tubes]


def _vertebrae(draw: _Drawing) -> tuple[Blob, ...]:
    """Bodies from above: taller and wider downwards, along a gentle curve."""
    bodies, top = [], HALF_HEIGHT + draw.rng.uniform(-10, 15)
    widest, bend, phase = draw.rng.uniform(0.9, 1.1), draw.rng.uniform(3, 8), draw.rng.uniform(-0.5, 0.5)
    while top > -HALF_HEIGHT - 10:
        low = (HALF_HEIGHT - top) / (2 * HALF_HEIGHT)
        half = np.array([16 + 8 * low, 13 + 5 * low, 10.5 + 3.5 * low]) * widest
        middle = top - half[2]
        forward = -58 * draw.scale[1] + bend * np.sin(np.pi * (low * 2 + phase)) + 10 * low
        bodies.append(Blob(np.array([0.0, forward, middle]), half, 4))
        top = middle - half[2] - (4 + 4 * low)
    return tuple(bodies)


def _spine(vertebrae: tuple[Blob, ...]) -> list[Paint]:
    """Discs, bodies (named "vertebra n" and "marrow n") and posterior arches with the canal in them."""
    spine, paints = LABELS.index("spine"), []
    for above, below in itertools.pairwise(vertebrae):
        paints.append(
            Paint(Blob((above.centre + below.centre) / 2, above.half * np.array([0.95, 0.95, 0.7]), 3), "disc", spine)
        )
    for n, body in enumerate(vertebrae):
        behind, (wide, _, tall) = body.centre[1] - body.half[1], body.half
        arch = np.array([0, behind - 9, body.centre[2]])
        paints.append(Paint(Blob(arch, np.array([wide * 0.8, 12, tall * 0.75]), 3), "cortex", spine))
        wing = np.array([wide * 1.7, 0, 0])
        paints.append(Paint(Tube(arch - wing, arch + wing, 4.0), "cortex", spine))
        paints.append(Paint(Tube(arch, arch - np.array([0, 26, 8]), 3.2), "cortex", spine))
        paints.append(Paint(body, "cortex", spine, f"vertebra {n}"))
        paints.append(Paint(Blob(body.centre, body.half - 2.2, 4), "marrow", spine, f"marrow {n}"))
    for upper, lower in itertools.pairwise(vertebrae):
        ends = [b.centre - np.array([0, b.half[1] + 8.5, 0]) for b in (upper, lower)]
        paints.append(Paint(Tube(ends[0], ends[1], 7.0), "canal", spine))
    return paints
