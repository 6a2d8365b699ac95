"""Which heads of a model's decoder localise: found on made studies, kept beside the model's files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from MedVLMReaderLib import ReaderError

FILE = "calibration.json"
FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """The heads whose attention found what a sentence speaks of."""

    model: str
    revision: str
    heads: tuple[tuple[int, int], ...]
    """(layer, head), both counted from 0."""
    choice: str
    """In words, how they were chosen among others."""
    seeds: tuple[int, int]
    """The first and the last of the made studies."""
    findings: int
    """True sentences of the half of the studies on which the choices were compared."""
    pointing: float
    """Share of these whose peak lay in the mask grown by a cell."""
    weighed: bool = False
    """Words count as far as the image decides them, instead of all alike."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """The calibration in a file; ReaderError where it is damaged or newer than this version."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain.pop("format") > FORMAT:
                raise ReaderError(f"'{path}' is of a newer version. Update MedVLM Reader, or calibrate again.")
            heads = tuple((int(layer), int(head)) for layer, head in plain["heads"])
            first, last = (int(seed) for seed in plain["seeds"])
            if not heads:
                raise ValueError("no heads")
            return cls(**{**plain, "heads": heads, "seeds": (first, last), "weighed": bool(plain.get("weighed"))})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as wrong:
            raise ReaderError(
                f"'{path}' is damaged ({wrong}). Delete it, or run: medvlmreader calibrate --model NAME"
            ) from wrong


def found(folder: Path, revision: str) -> Calibration | None:
    """The calibration in a model's folder; None where there is none, or it is of other weights."""
    path = folder / FILE
    if not path.exists():
        return None
    calibration = Calibration.load(path)
    return calibration if calibration.revision == revision else None
