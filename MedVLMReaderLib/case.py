"""A scan with its chat, and what the panel says of it: free of qt, slicer and torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.heatmap import effective_cells
from MedVLMReaderLib.models import CARDS, Card
from MedVLMReaderLib.pictures import LARGEST, times_uniform
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.results import Kept
from MedVLMReaderLib.session import ChatSession
from MedVLMReaderLib.slices import Curve, slice_curves
from MedVLMReaderLib.volume import View, Volume

WARNING = "Attention, not a finding."


@dataclass(eq=False)
class Case:
    """A scan of the scene with its chat."""

    scan: str
    """The volume node's ID."""
    session: ChatSession = field(default_factory=lambda: ChatSession(()))
    kept: list[Kept] = field(default_factory=list)
    """One a turn of the session."""
    study: int | None = None
    """By which the worker knows it; None where it does not."""
    moved: Array = field(default_factory=lambda: np.eye(4))
    """(4, 4) the transform above the scan when it was shown to the worker."""
    view: View | None = None
    stamp: tuple[int, bytes] = (0, b"")
    """When its voxels were changed last, and where it lay, when it was shown to the worker."""
    key: str = ""
    asking: list[tuple[int, str]] = field(default_factory=list)
    """Number and question of each request that waits for an answer, the oldest first."""
    words: str = ""
    """Of the answer that is being written."""
    looked: dict[tuple[int, str], Reading] = field(default_factory=dict)
    """Readings that were looked at again, by turn and text."""
    heat: Heat | None = None
    verdict: str = ""
    locked: str = ""
    """Why nothing may be changed: the scene holds what this version cannot read."""
    gone: bool = False

    @property
    def report(self) -> int | None:
        """Which turn is the draft report."""
        return next((n for n, kept in enumerate(self.kept) if kept.is_report), None)

    def take(self, number: int, kept: Kept) -> None:
        """A turn in the place of that of the same number; those after it go, as in the session."""
        self.kept[number:] = [kept]
        self.looked = {at: reading for at, reading in self.looked.items() if at[0] < number}
        if self.heat is not None and self.heat.turn >= number:
            self.heat = None

    def to_look_at(self, turn: int, span: Span) -> tuple[Reading, Span, str | None]:
        """The reading that knows most of a stretch of a turn's text, the stretch in it, and the text where it is new.

        A sentence that the radiologist left as it was is looked up in what the model wrote.
        """
        kept = self.kept[turn]
        reading = self.looked.get((turn, kept.text), kept.turn.reading)
        if kept.text == reading.text:
            return reading, span, None
        words = kept.text[slice(*span)]
        at = kept.turn.reading.text.find(words)
        if at >= 0:
            return kept.turn.reading, (at, at + len(words)), None
        return reading, span, kept.text


@dataclass(frozen=True, eq=False)
class Heat:
    """A heatmap that is shown."""

    turn: int
    span: Span
    """Of the turn's text as it is now."""
    reading: Reading
    words: Span
    """Of the reading's text."""
    method: str
    times: Volume
    """As times an even spread over all cells."""
    peak: Array
    """(r, a, s) as it was read."""
    line: str
    """What there is to say of it."""
    curves: tuple[Curve, Curve, Curve]


def heat_of(turn: int, span: Span, reading: Reading, words: Span, method: str, whole: Volume) -> Heat:
    """What is shown of a heatmap. `whole`: the reading's `heatmap`, 0 outside the scan."""
    parts = reading.heatmaps(words, method)
    times = (times_uniform(parts, whole.grid) * (whole.values > 0)).astype(np.float32)
    peak, cells = whole.peak(), sum(part.values.size for part in parts)
    place = ", ".join(f"{x:.0f}" for x in peak)
    notes = " ".join(whole.notes[1:])
    line = (
        f"{method.capitalize()} of “{_short(reading.text[slice(*words)])}”: peak {times.max():.0f} times even (colours "
        f"end at {LARGEST:.0f}) at R, A, S ({place}) mm; spread over {effective_cells(parts):.0f} of {cells} cells. "
        f"{notes} {WARNING}"
    )
    return Heat(turn, span, reading, words, method, Volume(times, whole.grid), peak, line, slice_curves(whole))


def _short(text: str, most: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


# Models


def readers() -> list[Card]:
    """The models that write answers."""
    return [card for card in CARDS.values() if "answer" in card.can]


# Pictures


def montage(stacks: Sequence[Volume], columns: int = 8, height: int = 72) -> Array:
    """(rows, columns, 3) uint8: of each stack that a model was shown, slices evenly chosen, side by side."""
    rows = [_row(stack, columns, height) for stack in stacks[:6]]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 2), (0, width - row.shape[1]))) for row in rows]
    return np.repeat(np.concatenate(padded)[..., None], 3, axis=2)


def _row(stack: Volume, columns: int, height: int) -> Array:
    count, tall, wide = stack.values.shape[:3]
    down, across = stack.grid.spacing[1:]
    width = max(8, min(2 * height, round(height * wide * across / (tall * down))))
    picked = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    j, i = (np.linspace(0, n - 1, size).round().astype(int) for n, size in ((tall, height), (wide, width)))
    tiles = stack.values[np.ix_(picked, j, i)].astype(np.float32)
    grey = np.round(np.clip(tiles, 0, 1) * 255).astype(np.uint8)
    return np.concatenate(list(grey), axis=1)
