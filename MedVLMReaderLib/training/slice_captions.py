"""Captions of slices, from any model that the reader can load: it is shown a slab around the slice and asked.

No mask and no label comes in here. Captions are kept as they come, one JSON object a line.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.block import BlockRecipe, block
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.training.prepared import volume_of
from MedVLMReaderLib.volume import PLANES, PlaneName, Volume

QUESTIONS = "Which organs are in the scan?", "Is this scan with or without contrast?"
"""What is asked of each slab: the answers, one after the other, are the caption."""
THICK_MM = 80.0
"""Of a slab: a model that learned from whole scans says the same of every thin one."""
Ask = Callable[[Volume], str]


@dataclass(frozen=True)
class Caption:
    """What a model said of one slice of a block."""

    volume: str
    plane: PlaneName
    slice: int
    """Index into the block's depth, rows or columns."""
    text: str


def picture_of(values: Array, plane: PlaneName, n: int) -> Array:
    """Slice n of a block (depth, rows, columns), the way a person looks at it."""
    return np.asarray(np.take(values, n, PLANES.index(plane)))


def slab(volume: Volume, shown: Grid, plane: PlaneName, n: int, thick_mm: float = THICK_MM) -> Volume:
    """The scan around slice n of a block of axial pictures that lies at `shown`, at least two samples thick."""
    pictures, axis = volume.as_seen("axial"), PLANES.index(plane)
    place = (np.array(shown.shape) - 1) / 2
    place[axis] = n
    at = float(pictures.grid.to_index(shown.to_world(place))[axis])
    half, most = thick_mm / 2 / float(pictures.grid.spacing[axis]), pictures.grid.shape[axis]
    start, stop = [0, 0, 0], list(pictures.grid.shape)
    start[axis] = min(max(int(np.floor(at - half + 0.5)), 0), most - 2)
    stop[axis] = min(max(int(np.floor(at + half + 0.5)), start[axis] + 2), most)
    return pictures.crop(start, stop)


def evenly(count: int, each: int, rng: np.random.Generator) -> list[int]:
    """`each` of `count` slices, one from each equal part of the middle nine tenths."""
    edges = np.linspace(0.05, 0.95, each + 1) * count
    return [int(rng.integers(int(low), max(int(low) + 1, int(high)))) for low, high in itertools.pairwise(edges)]


def captions(
    names: Sequence[str], recipe: BlockRecipe, ask: Callable[[], Ask], path: Path, *, each: int = 2, seed: int = 0,
    thick_mm: float = THICK_MM,
) -> Iterator[list[Caption]]:  # fmt: skip
    """For each volume the captions of `each` slices of every plane; `ask` loads the model where one is missing."""
    kept, ours = _kept(path), None
    for name in names:
        told = kept.get(name, [])
        if len(told) < each * len(PLANES):
            ours = ours or ask()
            told = list(_told(name, recipe, ours, each, seed, thick_mm))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(one)) + "\n" for one in told)
        yield told


def _told(name: str, recipe: BlockRecipe, ask: Ask, each: int, seed: int, thick_mm: float) -> Iterator[Caption]:
    volume = volume_of(name)
    shown = block(volume, recipe).grid
    rng = np.random.default_rng([seed, *name.encode()])
    for axis, plane in enumerate(PLANES):
        for n in evenly(shown.shape[axis], each, rng):
            yield Caption(name, plane, n, ask(slab(volume, shown, plane, n, thick_mm)))


def _kept(path: Path) -> dict[str, list[Caption]]:
    """What a file has; a line that a kill cut off is taken away."""
    found: dict[str, list[Caption]] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    for line in whole:
        one = Caption(**json.loads(line))
        found.setdefault(one.volume, []).append(one)
    return found


def asked_of(reader: Any, questions: Sequence[str] = QUESTIONS) -> Ask:
    """What asks a reader about a slab, which is encoded once."""
    from MedVLMReaderLib.reader import Options

    options = Options(heatmaps=False, longest=96)

    def ask(part: Volume) -> str:
        seen = reader.see(part)
        return " ".join(str([*reader.ask(seen, one, options=options)][-1].text) for one in questions)

    return ask
