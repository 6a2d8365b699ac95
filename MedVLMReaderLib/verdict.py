"""`Verdict`: whether the image supports some words, and the numbers. Torch is needed to reach it, not to keep it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

REGIONS = 16
"""Regions that the highlighted one is compared with."""
RARE, COMMON = 0.1, 0.5
"""Below the one, a drop as large elsewhere is rare; from the other on, it is usual."""
LEAST = 0.1
"""Nats: a smaller margin counts as none, however rare."""

Said = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """Whether the image supports some words, and the numbers."""

    likelihood: float
    """Natural logarithm of the chance of these words after the ones before them."""
    drop: float
    """What painting over the highlighted region takes from it."""
    elsewhere: tuple[float, ...]
    """What painting over each of the other regions takes from it."""
    region_ml: float
    centre_ras_mm: tuple[float, float, float]

    @property
    def margin(self) -> float:
        """The drop less the mean of those elsewhere; NaN where no other region fits into the body."""
        return self.drop - float(np.mean(self.elsewhere)) if self.elsewhere else float("nan")

    @property
    def chance(self) -> float:
        """Chance of a drop as large at a place that means nothing: (1 + those as large) / (1 + all of them)."""
        return (1 + sum(other >= self.drop for other in self.elsewhere)) / (1 + len(self.elsewhere))

    @property
    def said(self) -> Said:
        """Supported: hardly a region elsewhere matters as much. Not supported: it matters no more than usual."""
        if self.chance <= RARE and self.margin >= LEAST:
            return "supported"
        if len(self.elsewhere) >= REGIONS / 2 and (self.chance >= COMMON or self.margin < LEAST):
            return "not supported"
        return "undecided"

    def to_json(self) -> dict[str, Any]:
        """Plain data, with what follows from the numbers."""
        margin = None if np.isnan(self.margin) else self.margin
        return {"verdict": self.said, "margin": margin, "chance": self.chance, **asdict(self)}

    def __str__(self) -> str:
        """A line for the user."""
        place = ", ".join(f"{x:.1f}" for x in self.centre_ras_mm)
        return (
            f"{self.said.capitalize()} by the image: painting over {self.region_ml:.1f} ml at R, A, S ({place}) mm "
            f"takes {self.drop:.2f} nats from these words, the same elsewhere {np.mean(self.elsewhere or [0]):.2f} "
            f"on average ({len(self.elsewhere)} regions; chance of as much {self.chance:.2f})."
        )
