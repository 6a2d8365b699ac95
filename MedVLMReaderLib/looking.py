"""Looking again: where a model looked for the words of a reading, or for words that somebody has put in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.attention import Head, Row, attention, relative
from MedVLMReaderLib.geometry import Array, TokenMap
from MedVLMReaderLib.prefix import Lent, Prefix
from MedVLMReaderLib.reading import Reading, Span, Trace, sentence_spans
from MedVLMReaderLib.relevance import decided, relevance
from MedVLMReaderLib.study import Message, Model, Seen

METHODS = "relevance", "attention"
EDITED = "The text was edited by hand; the heatmaps are those of the edited words."
GENERIC = "Write a general description of the image."
"""What attention is held against: arXiv 2502.17422's own words."""


def check_same(model: Model, seen: Seen, reading: Reading) -> None:
    """ReaderError where the reading is of another model, or the study was seen as another one."""
    if (reading.model, reading.revision) != (model.name, model.revision):
        raise ReaderError(
            f"This reading was written by {reading.model}, revision {reading.revision}; loaded is {model.name}, "
            f"revision {model.revision}. Load the model that wrote it, or ask again."
        )
    grids = seen.token_map.grids
    same = len(grids) == len(reading.grids) and all(a.same_as(b) for a, b in zip(grids, reading.grids, strict=True))
    if not same:
        raise ReaderError("This reading is of another scan, or of one that was prepared otherwise. Open the scan read.")


def check_method(method: str) -> None:
    """ReaderError for a method that is none."""
    if method not in METHODS:
        raise ReaderError(f"There is no method '{method}'. Known: {', '.join(METHODS)}.")


def stretches(text: str, token_map: TokenMap, method: str) -> tuple[Span, ...]:
    """What gets a row of its own: words for attention on tokens that are cells, sentences for everything else.

    Spreading mixed tokens over cells costs a pass through the projector a row.
    """
    if method == "attention" and token_map.spread is None:
        return tuple(match.span() for match in re.finditer(r"\S+", text))
    return sentence_spans(text)


def relevance_trace(
    model: Model,
    seen: Seen,
    messages: Sequence[Message],
    ids: Sequence[int],
    spans: Sequence[Span],
    rows: Sequence[Row],
) -> Trace:
    """Relevance for stretches of a text, tokens `rows` of `ids`."""
    return Trace("relevance", tuple(spans), relevance(model, seen, messages, ids, rows))


def attention_trace(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], spans: Sequence[Span],
    rows: Sequence[Row], heads: Sequence[Head], chosen: str, prefix: Prefix, *, to_generic: bool = False,
    weighed: bool = False,
) -> Trace:  # fmt: skip
    """Attention of `heads` for stretches of a text, at the cells; `chosen` says in words how the heads were.

    What `prefix` holds of the prompt is not read again. `weighed`: words count as far as the image decides them, which
    costs two passes more.
    """
    counts = decided(model, seen, messages, ids) if weighed else None
    found = attention(model, seen, messages, ids, rows, heads, _lent(model, seen, messages, prefix), counts)
    weights = relative(found.weights, generic(model, seen, heads, prefix)) if to_generic else found.weights
    how: dict[str, Any] = {
        "heads": [list(head) for head in heads], "chosen": chosen, "relative": to_generic, "weighed": weighed,
        "image_share": [round(float(share), 4) for share in found.share],
    }  # fmt: skip
    return Trace("attention", tuple(spans), on_cells(seen, weights), how)


def generic(model: Model, seen: Seen, heads: Sequence[Head], prefix: Prefix) -> Tensor:
    """(1, visual tokens) what `heads` pay to each token before the first word about nothing in particular."""
    messages = [Message("user", GENERIC)]
    return attention(model, seen, messages, [0], [(0, 1)], heads, _lent(model, seen, messages, prefix)).weights


@torch.no_grad()
def _lent(model: Model, seen: Seen, messages: Sequence[Message], prefix: Prefix) -> Lent | None:
    return prefix.lent(seen.key, model.prompt(seen, messages))


def on_cells(seen: Seen, weights: Tensor) -> Array:
    """(rows, cells) float32 of (rows, visual tokens): spread where tokens are mixed, 0 in the padding around scans."""
    tokens = weights.float().cpu().numpy()
    cells = tokens if seen.token_map.spread is None else seen.token_map.spread(tokens)
    return np.asarray(cells * seen.token_map.inside(seen.boxes), np.float32)


def with_trace(reading: Reading, text: str, trace: Trace) -> Reading:
    """The reading with one trace more, in the place of an older one of its method; of another text, with it alone."""
    if text != reading.text:
        notes = (*(note for note in reading.notes if note != EDITED), EDITED)
        return replace(reading, text=text, traces=(trace,), notes=notes, options={**reading.options, "edited": True})
    methods = [one.method for one in reading.traces]
    if trace.method in methods:
        at = methods.index(trace.method)
        return replace(reading, traces=(*reading.traces[:at], trace, *reading.traces[at + 1 :]))
    return replace(reading, traces=(*reading.traces, trace))
