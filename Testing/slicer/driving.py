"""A panel without Qt, driven as a view's timer does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.reading import Reading, Trace, sentence_spans
from MedVLMReaderLib.results import Kept
from MedVLMReaderLib.scene import grid_of
from MedVLMReaderLib.session import Turn
from MedVLMReaderLib.worker.client import Client


def until(client: Client, done: Callable[[], bool], seconds: float = 1500) -> None:
    """What a view's timer does, until something holds."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        client.running.program.transport.poll(0.01)
        client.advance()


def settled(panel: Panel) -> None:
    until(panel.client, lambda: not panel.client.busy)


def read(panel: Panel) -> Panel:
    panel.read()
    settled(panel)
    assert panel.message == ""
    return panel


def sentence(panel: Panel, number: int, turn: int = 0) -> str:
    start, stop = sentence_spans(panel.case.kept[turn].text)[number]
    return f"sentence:{turn}/{start}-{stop}"


def drafted(panel: Panel) -> Kept:
    """A report of the chosen scan without any worker: two sentences, both methods, cells along three planes."""
    box = grid_of(panel.scan)
    grids = tuple(box.transpose(axes).resize((7, 3, 4)) for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)))
    text = "Findings: A stone lies in the kidney.\nImpression: Renal calculus."
    empty, rng = (
        Reading("", text, True, (), grids, "m", "1", {"precision": "fp32"}, boxes=(box,)),
        np.random.default_rng(3),
    )
    traces = tuple(
        Trace(method, empty.sentences, rng.random((len(empty.sentences), empty.cells)).astype(np.float32) ** 8)
        for method in ("relevance", "attention")
    )
    kept = Kept(Turn("", replace(empty, traces=traces)), np.eye(4), is_report=True)
    assert panel.case is not None
    panel.case.take(0, kept)
    panel.changed()
    return kept
