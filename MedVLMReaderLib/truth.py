"""What is known of a made study: its findings, their places, and what lies in the field of view. Plain data."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

Side = Literal["right", "left", ""]
Phase = Literal["plain", "contrast"]
Kind = Literal[
    "nodule", "effusion", "dark liver lesion", "bright liver lesion", "stone", "splenic lesion", "fracture",
]  # fmt: skip

STRUCTURES: tuple[tuple[str, Side], ...] = (
    ("lung", "right"), ("lung", "left"), ("pleura", "right"), ("pleura", "left"), ("heart", ""), ("liver", ""),
    ("spleen", ""), ("kidney", "right"), ("kidney", "left"), ("spine", ""),
)  # fmt: skip
"""(organ, side) in the order of a report."""

ORGAN_OF: dict[Kind, str] = {
    "nodule": "lung", "effusion": "pleura", "dark liver lesion": "liver", "bright liver lesion": "liver",
    "stone": "kidney", "splenic lesion": "spleen", "fracture": "spine",
}  # fmt: skip
"""The organ in which each kind of finding lies."""


def other_side(text: str) -> str:
    """A text with the words right and left exchanged; punctuation may follow them."""
    return re.sub(r"\b(right|left)\b", lambda found: "left" if found[1] == "right" else "right", text)


@dataclass(frozen=True)
class Finding:
    """One finding of a made study."""

    kind: Kind
    organ: str
    side: Side
    size_mm: float
    """Largest diameter; depth of an effusion; lost height of a fractured vertebra."""
    ras: tuple[float, float, float]
    """Centre of its mask in mm."""
    contrast_to_noise: float
    """|contrast to its organ| over the standard deviation of the noise; 0 where shape alone makes the finding."""


@dataclass(frozen=True)
class Truth:
    """All that is known of a made study, but its masks."""

    seed: int
    modality: Literal["CT", "MR"]
    phase: Phase
    plane: Literal["axial", "coronal", "sagittal"]
    """In which the slices were acquired."""
    in_view: tuple[tuple[str, Side], ...]
    """The structures of which at least a quarter lies in the volume, in the order of STRUCTURES."""
    findings: tuple[Finding, ...]
    """In the order of STRUCTURES, larger ones first within one."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Truth:
        """The truth written by `to_json`."""
        findings = tuple(Finding(**{**f, "ras": tuple(f["ras"])}) for f in plain["findings"])
        return cls(**{**plain, "in_view": tuple((o, s) for o, s in plain["in_view"]), "findings": findings})
