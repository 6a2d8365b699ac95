"""Scans as MS-VLM reads them, kept in a folder: stacks of pictures of three planes, a file each scan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.preparation import Recipe, stacks, windows
from MedVLMReaderLib.training.made_data import mapped
from MedVLMReaderLib.training.prepared import key_of, volume_of
from MedVLMReaderLib.volume import PLANES, Modality

MODALITIES: tuple[Modality, ...] = ("CT", "MR", "")
THOUSANDTHS = 1000.0
"""What is not in HU is kept as thousandths of the bright tissue."""


@dataclass(frozen=True, eq=False)
class KeptStack:
    """The pictures of one plane of a scan."""

    plane: int
    """Index into PLANES."""
    values: Array
    """(slices, size, size) int16: HU, or thousandths of the bright tissue."""
    modality: Modality
    affine: Array
    acquired_mm: float

    @property
    def grid(self) -> Grid:
        depth, rows, columns = self.values.shape
        return Grid((depth, rows, columns), self.affine)

    def channels(self, recipe: Recipe, at: slice | Sequence[int] = slice(None)) -> Array:
        """(slices, windows, size, size) float32 of 0 to 1, of the slices `at`."""
        scale = np.float32(1.0 if self.modality == "CT" else THOUSANDTHS)
        return windows(self.values[at] / scale, self.modality, recipe)


@dataclass
class Stacks:
    """Stacks of scans, made where they are not there yet, the same file for the same scan and recipe."""

    folder: Path
    recipe: Recipe

    def of(self, name: str) -> tuple[KeptStack, ...]:
        """The axial, coronal and sagittal stack of a case's volume. ReaderError where it cannot be read."""
        path = self.folder / f"{key_of(name, self.recipe.key)}.npz"
        if not path.exists():
            self._make(name, path)
        kept = mapped(path)
        modality = MODALITIES[int(kept["modality"][0])]
        return tuple(
            KeptStack(n, kept[f"values_{n}"], modality, np.array(kept[f"affine_{n}"]), float(kept["acquired_mm"][n]))
            for n in range(len(PLANES))
        )

    def _make(self, name: str, path: Path) -> None:
        volume = volume_of(name)
        scale = 1.0 if volume.modality == "CT" else THOUSANDTHS
        found = stacks(volume, self.recipe)
        arrays: dict[str, Any] = {
            f"values_{n}": np.clip(np.rint(stack.volume.values * scale), -32000, 32000).astype(np.int16)
            for n, stack in enumerate(found)
        }
        arrays |= {f"affine_{n}": np.array(stack.volume.grid.affine) for n, stack in enumerate(found)}
        arrays |= {
            "modality": np.array([MODALITIES.index(volume.modality)]),
            "acquired_mm": np.array([stack.acquired_mm for stack in found]),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)


class Slices:
    """Rows of a training: every slice of one plane, or of all three, of each scan, with its neighbours."""

    def __init__(self, kept: Stacks, names: Sequence[str], planes: Sequence[int] = (0, 1, 2), context: int = 0) -> None:
        self.recipe, self.context, self.names = kept.recipe, context, names
        self.stacks = [stack for name in names for stack in kept.of(name) if stack.plane in planes]
        self.ends = np.cumsum([len(stack.values) for stack in self.stacks])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, n: int) -> dict[str, Any]:
        which = int(np.searchsorted(self.ends, n, "right"))
        stack = self.stacks[which]
        at = n - int(self.ends[which]) + len(stack.values)
        near = np.clip(np.arange(at - self.context, at + self.context + 1), 0, len(stack.values) - 1)
        pictures = stack.channels(self.recipe, near.tolist())
        name = f"slice {at} of stack {which}"
        return {"name": name, "pictures": torch.from_numpy(pictures.reshape(-1, *pictures.shape[2:]))}


def pictures_together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of slices: (slices, channels, size, size)."""
    pictures: Tensor = torch.stack([row["pictures"] for row in rows])
    return {"name": [row["name"] for row in rows], "pictures": pictures}
