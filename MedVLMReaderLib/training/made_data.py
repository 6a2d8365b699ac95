"""Made studies as training reads them: prepared once, kept in a folder, one file a seed."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.phantom import LABELS, Study, made_outline, made_study
from MedVLMReaderLib.planting import KINDS
from MedVLMReaderLib.preparation import Recipe, Stack, stacks
from MedVLMReaderLib.truth import Truth
from MedVLMReaderLib.volume import PLANES, Volume

FIRST_TRAINING_SEED = 1_000_000
"""Training takes seeds from here up; anything below is unseen."""
FIRST_TEXT_SEED = 2_000_000
"""Studies from here up are never rendered: their truth alone teaches the decoder to write."""
MIRRORED_EVERY = 3
"""Every third body has its organs on the other side, so that sides are read from the picture, not from the liver."""

CLASSES: tuple[str, ...] = (*LABELS, *KINDS)
"""What a place can be."""
FINE = 2
"""Pixels along the side of a place that is labelled: 6.4 mm."""


@dataclass(frozen=True, eq=False)
class PreparedPlane:
    """One stack of a made study, with what is true of each place."""

    plane: int
    values: Array
    """(slices, size, size) int16: HU, or a thousandth of the bright tissue."""
    organs: Array
    """(slices, size / FINE, size / FINE) uint8 index into LABELS."""
    lesions: Array
    """The same shape, uint8: 1 + index into the truth's findings; 0 where there is none."""
    affine: Array
    acquired_mm: float

    @property
    def grid(self) -> Grid:
        shape = self.values.shape
        return Grid((shape[0], shape[1], shape[2]), self.affine)


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    truth: Truth
    planes: tuple[PreparedPlane, ...]

    def save(self, path: Path) -> None:
        """Write one .npz, whole or not at all."""
        arrays = {
            f"{name}_{n}": getattr(plane, name)
            for n, plane in enumerate(self.planes)
            for name in ("values", "organs", "lesions", "affine")
        }
        arrays["acquired_mm"] = np.array([plane.acquired_mm for plane in self.planes])
        arrays["truth"] = np.frombuffer(json.dumps(self.truth.to_json()).encode(), np.uint8)
        part = path.with_suffix(f".part{os.getpid()}")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> PreparedStudy:
        """The study written by `save`; voxels are read from the file when they are used."""
        kept = mapped(path)
        truth = Truth.from_json(json.loads(kept["truth"].tobytes()))
        names = ("values", "organs", "lesions", "affine")
        planes = tuple(
            PreparedPlane(plane=n, acquired_mm=float(mm), **{name: kept[f"{name}_{n}"] for name in names})
            for n, mm in enumerate(kept["acquired_mm"])
        )
        return cls(truth, planes)


def mapped(path: Path) -> dict[str, Array]:
    """The arrays of an uncompressed .npz, not read yet: an epoch needs few slices of each study."""
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(path) as kept, path.open("rb") as file:
        for member in kept.infolist():
            file.seek(member.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2")
            file.seek(int(name) + int(extra), os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            array = np.memmap(path, kind, "r", file.tell(), shape)
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def prepared(study: Study, recipe: Recipe) -> PreparedStudy:
    """A made study cut into stacks, its truth sampled at the middle of every labelled place."""
    return PreparedStudy(study.truth, tuple(_plane(study, stack) for stack in stacks(study.volume, recipe)))


def _plane(study: Study, stack: Stack) -> PreparedPlane:
    scale = 1.0 if stack.volume.modality == "CT" else 1000.0
    values = np.clip(np.round(stack.volume.values * scale), -2000, 8000).astype(np.int16)
    count, rows, columns = values.shape
    fine = stack.volume.grid.resize((count, rows // FINE, columns // FINE))
    organs = _nearest(Volume(study.labels, study.volume.grid), fine)
    lesions = np.zeros(fine.shape, np.uint8)
    for n, mask in enumerate(study.masks):
        lesions[_covered(mask, study.volume.grid, fine)] = n + 1
        lesions[_nearest(Volume(mask, study.volume.grid), fine)] = n + 1  # voxels wider than the places leave no holes
    return PreparedPlane(
        PLANES.index(stack.plane), values, organs, lesions, np.array(stack.volume.grid.affine), stack.acquired_mm
    )


def _nearest(volume: Volume, fine: Grid) -> Array:
    """(k, j, i) of `fine`: the value of the nearest voxel, 0 outside. The grids share their axes."""
    step = np.linalg.solve(volume.grid.affine, fine.affine)
    picks, inside = [], []
    axes = [int(np.argmax(np.abs(step[:3, column]))) for column in range(3)]
    for column, axis in enumerate(axes):
        index = np.rint(step[axis, 3] + step[axis, column] * np.arange(fine.shape[column])).astype(int)
        inside.append((index >= 0) & (index < volume.grid.shape[axis]))
        picks.append(np.clip(index, 0, volume.grid.shape[axis] - 1))
    order = np.argsort(axes)
    values = volume.values[np.ix_(*(picks[column] for column in order))].transpose(axes)
    return values * (inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :])


def _covered(mask: Array, grid: Grid, fine: Grid) -> tuple[Array, ...]:
    """Cells of `fine` that the mask fills by 30 %, or by 60 % of its best-filled cell where it is small."""
    found = np.argwhere(mask)
    index = np.rint(fine.to_index(grid.to_world(found))).astype(int)
    index = index[np.all((index >= 0) & (index < fine.shape), axis=1)]
    cells, counts = np.unique(index, axis=0, return_counts=True)
    share = counts * abs(np.linalg.det(grid.affine[:3, :3])) / abs(np.linalg.det(fine.affine[:3, :3]))
    best = share >= min(0.3, 0.6 * float(share.max(initial=0)))
    return tuple(cells[best].T)


def make(folder: Path, seeds: Iterable[int], recipe: Recipe) -> Iterator[Path]:
    """Prepare studies into `folder`, skipping those that are there; yields each path."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"{seed}.npz"
        if not path.exists():
            prepared(made_study(seed, mirrored=seed % MIRRORED_EVERY == 0), recipe).save(path)
        yield path


@dataclass(frozen=True, eq=False)
class Outline:
    """What is true of a made study, and the middle of its scan (r, a, s), from which places are measured."""

    truth: Truth
    centre: Array


def outlines(path: Path, seeds: Iterable[int]) -> list[Outline]:
    """Outlines of made studies that are never rendered, kept in a file of one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    done = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be cut off
    kept = {one["truth"]["seed"]: one for one in done}
    if len(done) < len(lines):
        path.write_text("".join(lines[: len(done)]))
    with path.open("a") as file:
        for seed in seeds:
            if seed not in kept:
                truth, grid = made_outline(seed, mirrored=seed % MIRRORED_EVERY == 0)
                kept[seed] = {"truth": truth.to_json(), "centre": grid.centre.tolist()}
                print(json.dumps(kept[seed]), file=file, flush=True)
    return [Outline(Truth.from_json(kept[seed]["truth"]), np.array(kept[seed]["centre"])) for seed in seeds]
