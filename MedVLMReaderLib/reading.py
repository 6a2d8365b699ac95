"""`Reading`: a model's answer and where it looked; its heatmaps in patient space; kept in a folder as plain files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid, TokenMap
from MedVLMReaderLib.heatmap import combined, effective_cells, softened
from MedVLMReaderLib.volume import Volume

__all__ = ["Reading", "Span", "Trace", "combined", "effective_cells", "sentence_spans", "write_whole"]

Span = tuple[int, int]
"""[start, stop) characters of a text."""

FORMAT = 1
MADE = "made.json"
"""When and how fast a reading was made, where that is kept apart from it."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Where the model looked for stretches of the text, one row each."""

    method: str
    """Either "relevance" or "attention"."""
    spans: tuple[Span, ...]
    """[start, stop) characters of `Reading.text`, one a row: words for attention, sentences for relevance."""
    weights: Array
    """(rows, cells) float16 or float32, 0 or more, cells in the order of the grids; rows have no common scale."""
    how: dict[str, Any] = field(default_factory=dict)
    """What else is known, as plain data. Of attention: which heads, and `image_share`, one a row, of all attention."""

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or len(self.weights) != len(self.spans):
            raise ValueError(f"Weights of shape {self.weights.shape} for {len(self.spans)} stretches of text.")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError(f"The weights of {self.method} must be finite and not negative.")


@dataclass(frozen=True, eq=False)
class Reading:
    """A model's answer to one question about a study. Carries no patient identity and no path."""

    question: str
    text: str
    complete: bool
    """False where the answer was stopped or ran into its longest length."""
    traces: tuple[Trace, ...]
    """The first one is the model's default method."""
    grids: tuple[Grid, ...]
    model: str
    revision: str
    options: dict[str, Any] = field(default_factory=dict)
    """How the answer was asked for, as plain data."""
    preparation: dict[str, Any] = field(default_factory=dict)
    """What was done to the voxels before the encoder, as plain data."""
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds."""
    boxes: tuple[Grid, ...] = ()
    """The scans' own grids."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """ISO 8601, UTC."""

    def __post_init__(self) -> None:
        for trace in self.traces:
            if trace.weights.shape[1] != self.cells:
                raise ValueError(f"{trace.method} has {trace.weights.shape[1]} weights a row for {self.cells} cells.")
            for start, stop in trace.spans:
                if not 0 <= start <= stop <= len(self.text):
                    raise ValueError(f"{trace.method} has a span {start, stop}; the text has {len(self.text)} letters.")

    @property
    def cells(self) -> int:
        """Cells of all grids together."""
        return TokenMap(self.grids).cells

    @cached_property
    def sentences(self) -> tuple[Span, ...]:
        """The text's sentences, see `sentence_spans`."""
        return sentence_spans(self.text)

    def span(self, words: str | Span | int | None) -> Span:
        """The stretch of text that `words` mean.

        A string is its first place in the text (as written, or else in any case); a number is a sentence's index; a
        pair is [start, stop) itself; None is the whole text. Raises ReaderError where the text has no such stretch.
        """
        if words is None:
            return 0, len(self.text)
        if isinstance(words, str):
            return _found(words, self.text)
        if isinstance(words, (int, np.integer)):
            if not 0 <= words < len(self.sentences):
                raise ReaderError(f"No sentence {words}: the answer has {len(self.sentences)}, counted from 0.")
            return self.sentences[words]
        start, stop = (int(letter) for letter in words)
        if not 0 <= start < stop <= len(self.text):
            raise ReaderError(f"The answer has no letters {start} to {stop}: it has {len(self.text)} letters.")
        return start, stop

    def heatmaps(self, words: str | Span | int | None = None, method: str | None = None) -> tuple[Volume, ...]:
        """Where the model looked for `words` (see `span`): one volume a grid, in the grid's own cells.

        Values are shares, float32: all cells of all volumes sum to 1. Rows of the trace that overlap the words are
        averaged, each counted by how many letters it shares with them. `method` None: the first that has such rows.
        Raises ReaderError where the text lacks the words or nothing was recorded for them.
        """
        span = self.span(words)
        trace, overlap = self._trace(span, method)
        rows = overlap > 0
        weights = overlap[rows] @ trace.weights[rows].astype(np.float64)
        if weights.sum() == 0:
            raise ReaderError(f"The {trace.method} for '{_shown(self.text[slice(*span)])}' is zero in the whole image.")
        parts = TokenMap(self.grids).split((weights / weights.sum()).astype(np.float32))
        notes = (f"{trace.method.capitalize()} of {self.model}, revision {self.revision}.", *_on_image(trace, overlap))
        return tuple(Volume(part, grid, notes=notes) for part, grid in zip(parts, self.grids, strict=True))

    def heatmap(self, words: str | Span | int | None = None, method: str | None = None) -> Volume:
        """`heatmaps` as one volume for display and saving, see `combined` and `softened`. Values sum to 1, none outside
        the scans."""
        heat = softened(combined(self.heatmaps(words, method)), self.grids)
        values = heat.values * TokenMap((heat.grid,)).inside(self.boxes).reshape(heat.grid.shape)
        return replace(heat, values=(values / values.sum()).astype(np.float32)) if values.any() else heat

    def _trace(self, span: Span, method: str | None) -> tuple[Trace, Array]:
        """The trace to use for a stretch of text, and how many letters each of its rows shares with it."""
        for trace in self.traces:
            if method in (None, trace.method):
                start, stop = np.array(trace.spans, dtype=np.int64).reshape(-1, 2).T
                overlap = np.clip(np.minimum(stop, span[1]) - np.maximum(start, span[0]), 0, None).astype(np.float64)
                if overlap.any():
                    return trace, overlap
        known = ", ".join(trace.method for trace in self.traces) or "nothing"
        raise ReaderError(
            f"No {method or 'attention'} was recorded for '{_shown(self.text[slice(*span)])}'. "
            f"Recorded with this answer: {known}. Choose other words, or ask again."
        )

    def plain(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The reading as JSON-ready data and the arrays that go with it; `from_plain` reads them back."""
        names = [f"weights_{n}" for n in range(len(self.traces))]
        traces = [
            {"method": trace.method, "spans": [list(span) for span in trace.spans], "weights": name, "how": trace.how}
            for name, trace in zip(names, self.traces, strict=True)
        ]
        content = {name: getattr(self, name) for name in _PLAIN} | {
            "format": FORMAT,
            "notes": list(self.notes),
            "grids": [_grid_plain(grid) for grid in self.grids],
            "boxes": [_grid_plain(grid) for grid in self.boxes],
            "traces": traces,
        }
        return content, {name: trace.weights for name, trace in zip(names, self.traces, strict=True)}

    @classmethod
    def from_plain(cls, content: dict[str, Any], arrays: dict[str, Array]) -> Reading:
        """The reading that `plain` wrote. Raises ReaderError for a newer format, or naming what is missing or wrong."""
        if int(content.get("format", 0)) > FORMAT:
            raise ReaderError(
                f"This reading has format {content['format']}; this version reads up to {FORMAT}. Update MedVLM Reader."
            )
        try:
            grids, boxes = (
                tuple(Grid(tuple(grid["shape"]), np.array(grid["affine"])) for grid in content[name])
                for name in ("grids", "boxes")
            )
            traces = tuple(_trace_from(trace, arrays, TokenMap(grids).cells) for trace in content["traces"])
            fields = {name: content[name] for name in _PLAIN}
            return cls(**fields, notes=tuple(content["notes"]), grids=grids, boxes=boxes, traces=traces)
        except KeyError as missing:
            raise ReaderError(f"The reading lacks {missing}. Ask again, or restore the file from a copy.") from missing
        except (TypeError, ValueError) as wrong:
            raise ReaderError(f"The reading is damaged: {wrong} Ask again, or restore it from a copy.") from wrong

    def save(self, folder: Path) -> None:
        """Write reading.json and arrays.npz into `folder`, which is made where missing; an older reading is replaced.

        Raises OSError where it cannot be written; then no half-written file stays.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({folder / name: content for name, content in self.files().items()})
        (folder / MADE).unlink(missing_ok=True)

    def files(self, apart: bool = False) -> dict[str, bytes]:
        """Name -> content of what `save` writes. `apart`: when it was made and how long it took go into made.json, so
        that the same reading of the same scan is the same bytes; `load` finds them there."""
        content, arrays = self.plain()
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        content["arrays_sha256"] = hashlib.sha256(packed.getvalue()).hexdigest()
        files = {"arrays.npz": packed.getvalue()}
        if apart:
            made = {"created": self.created, "timings": self.timings}
            files[MADE] = json.dumps(made, indent=1, allow_nan=False, default=_plain_number).encode()
            content |= {"created": "", "timings": {}}
        return files | {"reading.json": json.dumps(content, indent=1, allow_nan=False, default=_plain_number).encode()}

    @classmethod
    def load(cls, folder: Path) -> Reading:
        """The reading in `folder`. Raises ReaderError where a part is missing, newer than this version or damaged."""
        content, packed = _json(Path(folder) / "reading.json"), _bytes(Path(folder) / "arrays.npz")
        if not content.get("created") and (Path(folder) / MADE).is_file():
            made = _json(Path(folder) / MADE)
            content |= {name: made[name] for name in ("created", "timings") if name in made}
        try:
            with np.load(io.BytesIO(packed), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as damage:  # zipfile, zlib and numpy each raise their own
            raise ReaderError("arrays.npz is damaged. Ask again, or restore it from a copy.") from damage
        reading = cls.from_plain(content, arrays)
        if content.get("arrays_sha256") != hashlib.sha256(packed).hexdigest():
            raise ReaderError("arrays.npz is not the one saved with reading.json. Ask again, or restore both.")
        return reading


_PLAIN = ("question", "text", "complete", "model", "revision", "options", "preparation", "timings", "created")


def _grid_plain(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _trace_from(content: dict[str, Any], arrays: dict[str, Array], cells: int) -> Trace:
    name, spans = content["weights"], tuple((int(start), int(stop)) for start, stop in content["spans"])
    if name not in arrays:
        raise ReaderError(f"The reading lacks the array '{name}' ({content['method']}). Ask again, or restore it.")
    if arrays[name].shape != (len(spans), cells) or arrays[name].dtype.kind != "f":
        raise ReaderError(
            f"The array '{name}' ({content['method']}) has shape {arrays[name].shape} of {arrays[name].dtype}; "
            f"the reading needs {(len(spans), cells)} of float16 or float32. Ask again, or restore it."
        )
    return Trace(content["method"], spans, arrays[name], content.get("how", {}))


def _on_image(trace: Trace, overlap: Array) -> tuple[str, ...]:
    """How much of the attention lies on the image, where that is known: the heatmap shows how this part is shared."""
    shares = trace.how.get("image_share")
    if shares is None or len(shares) != len(overlap):
        return ()
    return (f"{np.average(shares, weights=overlap):.0%} of it lies on the image.",)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as missing:
        raise ReaderError(f"The folder holds no {path.name}. Choose the folder of a saved reading.") from missing


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_bytes(path))
    except ValueError as damage:
        raise ReaderError(f"{path.name} is damaged: {damage}. Restore it from a copy.") from damage
    if not isinstance(content, dict):
        raise ReaderError(f"{path.name} is not a reading. Choose the folder of a saved reading.")
    return content


def _plain_number(value: Any) -> Any:
    """numpy's numbers and arrays for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"A reading keeps plain data only, not {type(value).__name__}.")


def write_whole(contents: dict[Path, bytes]) -> None:
    """Write files that are whole or not there: all under temporary names first, then renamed in order."""
    temporary = {path: path.with_name(f".{uuid.uuid4().hex}.part") for path in contents}
    try:
        for path, content in contents.items():
            with temporary[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, part in temporary.items():
            os.replace(part, path)
    finally:
        for part in temporary.values():
            part.unlink(missing_ok=True)


# Words


_HEADING = re.compile(
    r"[\s*#_]*(findings|impressions?|conclusions?|summary|technique|comparison|indication|history)[*_]*\s*:[*_]*\s*",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"\s*(?:[-*•]|\(?\d{1,2}[.)])\s+")
_END = re.compile(r"[.!?]+[\"')\]*]*(?=\s)|[。！？]+|\n")
_SHORT = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|vs|cf|approx|incl|resp|al|dr|prof|fig|im|ser)\.$|\w\s+no\.$")
"""Abbreviations after which a sentence goes on, in lower case."""


def sentence_spans(text: str) -> tuple[Span, ...]:
    """[start, stop) of each sentence, without headings ("Findings:"), list marks and the space around it.

    A sentence ends at a full stop, question or exclamation mark before a space, or at the end of a line.
    """
    spans, start = [], 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        if end < len(text) and _goes_on(text, start, end):
            continue
        first = _after_marks(text, start, end)
        stop = first + len(text[first:end].rstrip(" \t\r\n*_#"))
        if any(letter.isalnum() for letter in text[first:stop]):
            spans.append((first, stop))
        start = end
    return tuple(spans)


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether the full stop before `end` belongs to an abbreviation or a list's number."""
    before = text[_after_marks(text, start, end) : end]
    return bool(not before or re.fullmatch(r"\(?\d{1,2}\.", before) or _SHORT.search(before.lower()))


def _after_marks(text: str, start: int, end: int) -> int:
    """Where the sentence's own words start, after headings, list marks and space."""
    while match := _HEADING.match(text, start, end) or _LIST_MARK.match(text, start, end):
        start = match.end()
    return end - len(text[start:end].lstrip())


def _found(words: str, text: str) -> Span:
    place = text.find(words)
    match = None if place >= 0 else re.search(re.escape(words), text, re.IGNORECASE)
    if not words.strip() or (place < 0 and match is None):
        raise ReaderError(f"The answer does not say '{_shown(words)}'. It starts: '{_shown(text)}'")
    return match.span() if match else (place, place + len(words))


def _shown(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
