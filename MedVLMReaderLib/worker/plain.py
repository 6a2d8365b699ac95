"""What goes out as plain data, and the events of what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.session import ChatSession, Turn, told
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.verdict import Verdict
from MedVLMReaderLib.worker.events import Heatmap, Loaded, Needs, Saw
from MedVLMReaderLib.worker.protocol import grids_from

Words = str | Span | int | None
"""See `Reading.span`."""


def turn_number(session: ChatSession, number: int | None) -> int:
    """Where an answer goes. ReaderError where the session has no such place."""
    at = len(session.turns) if number is None else number
    if not 0 <= at <= len(session.turns):
        raise ReaderError(f"The chat has no question {at + 1}: it has {len(session.turns)}.")
    return at


def turn_plain(turn: Turn) -> dict[str, Any]:
    """What the worker must know of an earlier turn."""
    reading = turn.reading
    return {
        "question": reading.question, "text": reading.text, "complete": reading.complete, "model": reading.model,
        "revision": reading.revision,
    }  # fmt: skip


def history_of(session: ChatSession, number: int) -> tuple[Message, ...]:
    """What the model was told before turn `number`, for `Client.heatmap` and `verify`."""
    return told(session.turns[min(session.first_told, number) : number])


def recorded(reading: Reading, words: Words, method: str | None) -> bool:
    """Whether a reading holds where the model looked for some words."""
    span = reading.span(words)
    return any(
        start < span[1] and span[0] < stop
        for trace in reading.traces
        if method in (None, "", trace.method)
        for start, stop in trace.spans
    )


def heatmap(reading: Reading, words: Words, method: str | None) -> Heatmap:
    """The event. ReaderError as `Reading.heatmap`."""
    span = reading.span(words)
    volume = reading.heatmap(span, method or None)
    used = method or next(trace.method for trace in reading.traces if recorded(reading, span, trace.method))
    return Heatmap(volume, reading, span, used)


def needs_from(said: Mapping[str, Any]) -> Needs:
    """The event."""
    sizes = {str(name): int(size) for name, size in said["sizes"].items()}
    return Needs(str(said["model"]), str(said["device"]), int(said["free"]), sizes, str(said["chosen"]))


def verdict_from(said: Mapping[str, Any]) -> Verdict:
    """A verdict of plain data."""
    r, a, s = (float(x) for x in said["centre_ras_mm"])
    others = tuple(float(x) for x in said["elsewhere"])
    return Verdict(float(said["likelihood"]), float(said["drop"]), others, float(said["region_ml"]), (r, a, s))


def loaded_from(said: Mapping[str, Any]) -> Loaded:
    """The event."""
    return Loaded(
        str(said["name"]), str(said["revision"]), str(said["precision"]), str(said["device"]), int(said["context"]),
        str(said["request"]), tuple(said["notes"]),
    )  # fmt: skip


def saw_from(study: int, said: Mapping[str, Any]) -> Saw:
    """The event."""
    return Saw(
        study, tuple(str(key) for key in said["volume_keys"]), str(said["key"]), tuple(said["notes"]),
        dict(said["preparation"]), grids_from(said["grids"]), grids_from(said["boxes"]),
    )  # fmt: skip
