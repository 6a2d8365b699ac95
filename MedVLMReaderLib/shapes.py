"""Solids in millimetres, each with its box and an approximate signed distance, negative inside.

Coordinates may be of any shapes that broadcast together: on a grid along the body's axes most of the work stays 1-D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from MedVLMReaderLib.geometry import Array

ENDLESS = 5000.0
"""A half height (mm) beyond which a shape counts as cut open at both ends of the torso."""


class Shape(Protocol):
    """Something solid."""

    def box(self) -> tuple[Array, Array]:
        """Lowest and highest (r, a, s) of its bounding box."""

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        """About how far each place lies outside (negative: inside), in mm."""


@dataclass(frozen=True, eq=False)
class Blob:
    """|x|^power + |y|^power + |z|^power < 1: an ellipsoid (2) up to a rounded box (4); a cylinder where ENDLESS."""

    centre: Array
    half: Array
    power: int = 2
    taper: float = 0.0
    """By how much its r and a widths change from the centre to the upper end (and the other way below)."""

    def box(self) -> tuple[Array, Array]:
        wide = self.half * np.array([1 + abs(self.taper), 1 + abs(self.taper), 1])
        return self.centre - wide, self.centre + wide

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        x, y, z = (
            (p - np.float32(c)) * np.float32(1 / h) for p, c, h in zip((r, a, s), self.centre, self.half, strict=True)
        )
        if self.taper:
            along = np.clip((s - np.float32(self.centre[2])) * np.float32(1 / self.half[2]), -1, 1)
            scale = 1 / (1 + np.float32(self.taper) * along)
            x, y = x * scale, y * scale
        return _implicit((x, y) if self.half[2] > ENDLESS else (x, y, z), self.half, self.power)


def _implicit(unit: tuple[Array, ...], half: Array, power: int) -> Array:
    """First-order distance to the surface where the powers of the `unit` coordinates add up to one."""
    level: Array = np.full(1, -1, np.float32)
    slope: Array = np.full(1, 1e-9, np.float32)
    for u, h in zip(unit, half, strict=False):  # axis by axis: sums of 1-D terms stay small until the last
        squared = u * u
        steep = u if power == 2 else u * squared if power == 4 else squared
        level = level + (np.abs(u) * squared if power == 3 else steep * u)
        slope = slope + (steep * np.float32(power / h)) ** 2
    return np.asarray(level / np.sqrt(slope))


@dataclass(frozen=True, eq=False)
class Tube:
    """A straight round tube between two points."""

    start: Array
    end: Array
    radius: float

    def box(self) -> tuple[Array, Array]:
        return np.minimum(self.start, self.end) - self.radius, np.maximum(self.start, self.end) + self.radius

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        along = (self.end - self.start).astype(np.float32)
        x, y, z = (p - np.float32(c) for p, c in zip((r, a, s), self.start, strict=True))
        step = along / max(float(along @ along), 1e-6)
        t = np.clip(x * step[0] + y * step[1] + z * step[2], 0, 1)
        off = (x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2
        return np.asarray(np.sqrt(off) - np.float32(self.radius))


@dataclass(frozen=True, eq=False)
class Ribs:
    """Arcs on the surface of `cage`, lower in front than behind."""

    cage: Blob
    pitch: float
    slope: float
    thickness: float = 4.5

    def box(self) -> tuple[Array, Array]:
        low, high = self.cage.box()
        return low - self.thickness, high + self.thickness

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        across = np.mod(s + np.float32(self.slope) * a, np.float32(self.pitch)) - np.float32(self.pitch / 2)
        tube = np.sqrt(self.cage.distance(r, a, s) ** 2 * np.float32(1.6) + across**2) - np.float32(self.thickness)
        gap = np.where(a > 0, np.float32(30), np.float32(-1)) - np.abs(r)  # cartilage beside the breast bone
        end = np.float32(self.cage.centre[2] - 0.75 * self.cage.half[2]) - s  # where the cage would close below
        return np.asarray(np.maximum(np.maximum(tube, gap), end))


@dataclass(frozen=True, eq=False)
class Crescent:
    """Fluid behind a lung: what the lung leaves when it is pushed forward, less and less towards `top`."""

    lung: Blob
    depth: float
    top: float
    fade: float
    """Height over which the layer thins out below `top`."""

    def box(self) -> tuple[Array, Array]:
        low, high = self.lung.box()
        return low, np.array([high[0], high[1], min(high[2], self.top)])

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        pushed = np.float32(self.depth) * np.clip((np.float32(self.top) - s) / np.float32(self.fade), 0, 1)
        return np.asarray(np.maximum(self.lung.distance(r, a, s), -self.lung.distance(r, a - pushed, s)))


@dataclass(frozen=True, eq=False)
class Collapsed:
    """A vertebral body that lost `loss` mm of height: in front (wedge) or in the middle of both plates."""

    body: Blob
    loss: float
    wedge: bool
    inset: float = 0.0
    """How far its surface lies inside, for the marrow within the cortex."""

    def box(self) -> tuple[Array, Array]:
        return self.body.box()

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        width, depth, height = (float(h) for h in self.body.half)
        x, y, z = (p - np.float32(c) for p, c in zip((r, a, s), self.body.centre, strict=True))
        x, y = x / np.float32(width), y / np.float32(depth)
        if self.wedge:
            above = (self.loss * np.clip((y + 1) / 2, 0, 1)).astype(np.float32)
            below = np.zeros_like(above)
        else:
            above = below = (self.loss / 2 * np.clip(1 - 0.4 * (x * x + y * y), 0, 1)).astype(np.float32)
        tall = np.maximum(height - (above + below) / 2, 1.0)
        unit = x, y, np.asarray((z + (above - below) / 2) / tall)
        half = np.array([width, depth, height - self.loss / 2])
        return _implicit(unit, half, 4) + np.float32(self.inset)


@dataclass(frozen=True, eq=False)
class Lump:
    """A slightly irregular ellipsoid in any direction."""

    centre: Array
    half: Array
    turn: Array
    """(3, 3) rotation from the body's axes to its own."""
    phases: Array
    bumps: float = 0.12

    def box(self) -> tuple[Array, Array]:
        reach = float(self.half.max()) * (1 + self.bumps)
        return self.centre - reach, self.centre + reach

    def distance(self, r: Array, a: Array, s: Array) -> Array:
        x, y, z = (p - np.float32(c) for p, c in zip((r, a, s), self.centre, strict=True))
        own = (self.turn / self.half[:, None]).astype(np.float32)
        u = [row[0] * x + row[1] * y + row[2] * z for row in own]
        waves = sum(np.sin(np.float32(2.5) * v + np.float32(p)) for v, p in zip(u, self.phases, strict=True))
        bump = waves * np.float32(self.bumps / 3)
        return np.asarray((np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2) - 1 - bump) * np.float32(self.half.mean()))

    def surface(self, directions: Array) -> Array:
        """(n, 3) places on its surface, seen from its centre along (n, 3) unit vectors of its own axes."""
        return np.asarray(self.centre + (self.radii(directions)[:, None] * directions * self.half) @ self.turn)

    def radii(self, directions: Array) -> Array:
        """(n,) distances of the surface from the centre, in units of `half`."""
        radius = np.ones(len(directions))
        for _ in range(8):
            radius = 1 + self.bumps * np.sin(2.5 * radius[:, None] * directions + self.phases).mean(1)
        return radius

    def middle(self, directions: Array) -> Array:
        """(r, a, s) of its centre of mass."""
        radius = self.radii(directions)
        own = 0.75 * (radius**4 @ directions) / (radius**3).sum()
        return np.asarray(self.centre + (own * self.half) @ self.turn)
