"""A panel without Qt, driven as a view's timer does."""

from __future__ import annotations

import time
from collections.abc import Callable

from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.reading import sentence_spans
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
