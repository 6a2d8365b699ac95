"""`Place`: what on the screen a question is about, and how it is put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.volume import PLANES, PlaneName, Volume

Point = tuple[float, float, float]
_SIDES = (("right", "left"), ("anterior", "posterior"), ("superior", "inferior"))
_SLICES: dict[PlaneName, str] = {"axial": "head", "coronal": "front", "sagittal": "patient's right"}
"""From where the slices of each plane are counted."""


@dataclass(frozen=True)
class Place:
    """A point of a scan; a slice through it, where there is a plane; a box around it, where there is a size."""

    ras: Point
    """(r, a, s) mm: the cursor, or the middle of a region of interest."""
    plane: PlaneName | None = None
    size_mm: Point | None = None
    """From side to side, front to back, foot to head."""

    def __post_init__(self) -> None:
        numbers = np.array([*self.ras, *(self.size_mm or ())], np.float64)
        if len(self.ras) != 3 or len(numbers) not in (3, 6) or not np.isfinite(numbers).all():
            raise ReaderError(f"A place has three numbers in mm (R, A, S), and a region three more, not {numbers}.")
        if self.size_mm is not None and min(self.size_mm) <= 0:
            raise ReaderError(f"The region is {_by(self.size_mm)} mm large. Draw one with three sides above 0.")
        if self.plane not in (None, *PLANES):
            raise ReaderError(f"No plane '{self.plane}'. Planes: {', '.join(PLANES)}.")

    def about(self, volume: Volume) -> str:
        """What stands before a question about this place of a scan. ReaderError where it lies outside."""
        self._check(volume)
        where = _from_middle(np.array(self.ras) - volume.grid.centre)
        if self.size_mm is not None:
            size = f"{_by(self.size_mm)} mm (side to side, front to back, foot to head)"
            return f"About the region of {size} around the point {where}: "
        if self.plane is None:
            return f"About the point {where}: "
        number, count = _slice(volume, self.plane, self.ras)
        return (
            f"About {self.plane} slice {number} of {count}, counted from the {_SLICES[self.plane]}, "
            f"at the point {where}: "
        )

    def _check(self, volume: Volume) -> None:
        if volume.grid.contains(self._points()).any():
            return
        what, ras = "region" if self.size_mm else "cursor", ", ".join(f"{x:.1f}" for x in self.ras)
        size = f", {_by(self.size_mm)} mm large," if self.size_mm else ""
        raise ReaderError(f"The {what} at ({ras}) mm{size} lies outside the volume. Move it onto the scan.")

    def _points(self) -> Array:
        """(n, 3) points all over the region; the point itself where there is none."""
        if self.size_mm is None:
            return np.array([self.ras])
        steps = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 17)] * 3, indexing="ij"), -1).reshape(-1, 3)
        return np.asarray(self.ras + steps * self.size_mm)

    def plain(self) -> dict[str, Any]:
        """JSON-ready; `from_plain` reads it back."""
        return {"ras": list(self.ras), "plane": self.plane, "size_mm": self.size_mm and list(self.size_mm)}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Place:
        """What `plain` wrote. KeyError, TypeError, ValueError or ReaderError where it is damaged."""
        r, a, s = (float(x) for x in content["ras"])
        size = content["size_mm"]
        if size is not None:
            width, depth, height = (float(x) for x in size)
            size = width, depth, height
        return cls((r, a, s), content["plane"], size)


def _by(size_mm: Point) -> str:
    return " x ".join(f"{x:.0f}" for x in size_mm)


def _from_middle(way: Array) -> str:
    parts = [
        f"{abs(x):.0f} mm {names[0] if x > 0 else names[1]}"
        for x, names in zip(way, _SIDES, strict=True)
        if round(abs(float(x))) > 0
    ]
    if not parts:
        return "in the middle of the scan"
    return f"{' and '.join(filter(None, (', '.join(parts[:-1]), parts[-1])))} of the middle of the scan"


def _slice(volume: Volume, plane: PlaneName, ras: Point) -> tuple[int, int]:
    """Which of how many slices, counted from 1 as `_SLICES` says."""
    grid = volume.as_seen(plane).grid
    count = grid.shape[0]
    index = int(np.clip(np.rint(grid.to_index(ras)[0]), 0, count - 1))
    return (index + 1 if plane == "sagittal" else count - index), count
