"""What the worker costs beside the reader in the same program, and how long its client keeps a view busy: JSON.

`python -m Testing.benchmarks.worker`. The built-in model on the shipped sample; the largest study is 300 x 512 x 512 of
noise. Slots are calls of the client out of a view's loop, in CPU time of the asking thread. Exits with 1 where a target
is missed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from MedVLMReaderLib.files import read
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.options import Options
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.resources import resource
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import FINAL, Event, Heatmap, Word
from MedVLMReaderLib.worker.transport import SubprocessTransport

TURNS, QUICK = 5, Options(heatmaps=False)
EXTRA, SLOT, HEATMAP, CRASH = 0.05, 0.05, 0.15, 1.0
"""Seconds: the first word may come later by so much; a slot; one that shows a heatmap; a message after a crash."""


class Timed:
    """A client whose every call is timed."""

    def __init__(self) -> None:
        self.transport = SubprocessTransport()
        self.client = Client(self.transport)
        self.slots: list[float] = []

    def slot(self, call: Callable[..., Any], *words: Any) -> Any:
        began = time.thread_time()
        found = call(*words)
        self.slots.append(time.thread_time() - began)
        return found

    def run(self, ask: Callable[[Callable[[Event], None]], object], until: type | tuple[type, ...] = FINAL) -> Event:
        """The first event of a kind."""
        come: list[Event] = []
        self.slot(ask, lambda event: come.append(event) if isinstance(event, until) else None)
        while not come:
            if not self.slot(self.client.advance):
                self.slot(self.transport.poll, 0.005)
        return come[0]

    def worst(self) -> float:
        """Of the slots since the last time."""
        worst, self.slots = max(self.slots), []
        return round(worst, 4)


def first_word_here(scan: Volume) -> list[float]:
    """Seconds to the first word, in this program."""
    from MedVLMReaderLib.reader import load

    reader = load()
    seen, took = reader.see(scan), []
    for n in range(TURNS + 1):
        began = time.perf_counter()
        parts = reader.ask(seen, f"Is there a nodule number {n}?", options=QUICK)
        next(parts)
        took.append(time.perf_counter() - began)
        list(parts)
    return took[1:]


def first_word_there(timed: Timed, study: int) -> list[float]:
    """The same through the worker."""
    took = []
    for n in range(TURNS + 1):
        began = time.perf_counter()
        question = f"Is there a nodule number {n}?"
        timed.run(lambda told, q=question: timed.client.ask(study, q, options=QUICK, on_event=told), Word)
        took.append(time.perf_counter() - began)
        while timed.client.busy:
            timed.client.advance()
            timed.transport.poll(0.005)
    return took[1:]


def large() -> Volume:
    values = np.random.default_rng(0).integers(-1000, 1000, (300, 512, 512), dtype=np.int16)
    affine = np.array([[0, 0, -0.7, 180], [0, -0.7, 0, 180], [1, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(values, Grid(values.shape, affine), "CT")


def heatmap(timed: Timed, study: int) -> tuple[float, float]:
    """Seconds from a click on a sentence to its heatmap, and the longest slot of that."""
    answer: Any = timed.run(lambda told: timed.client.ask(study, None, on_event=told))
    reading: Reading = answer.reading
    timed.worst()
    began = time.perf_counter()
    assert isinstance(timed.run(lambda told: timed.client.heatmap(study, reading, 0, on_event=told)), Heatmap)
    return round(time.perf_counter() - began, 4), timed.worst()


def crash(timed: Timed, study: int) -> float:
    """Seconds from the worker's death in mid-answer to the message."""
    told: list[Event] = []
    timed.client.ask(study, "Why?", options=Options(sample=True, temperature=9.0, top_p=1.0), on_event=told.append)
    while not any(isinstance(event, Word) for event in told):
        timed.client.advance()
        timed.transport.poll(0.005)
    os.kill(timed.client.running.program.pid, signal.SIGKILL)
    began = time.perf_counter()
    while not isinstance(told[-1], FINAL):
        timed.client.advance()
        timed.transport.poll(0.005)
    return round(time.perf_counter() - began, 4)


def main() -> int:
    scan, timed = read(resource("sample/sample.nii.gz")), Timed()
    study = timed.client.see(scan)
    began = time.perf_counter()
    timed.run(lambda told: timed.client.ask(study, "Why?", options=QUICK, on_event=told))
    found: dict[str, Any] = {"from_nothing_to_answer_s": round(time.perf_counter() - began, 2)}
    found["slot_starting_and_reading_s"] = timed.worst()
    there = statistics.median(first_word_there(timed, study))
    found["slot_answering_s"] = timed.worst()
    found["click_to_heatmap_s"], found["slot_heatmap_s"] = heatmap(timed, study)
    big = large()
    timed.worst() if timed.slots else None
    timed.run(lambda told: timed.client.see(big, on_event=told))
    found["slot_passing_512x512x300_s"] = timed.worst()
    found["crash_to_message_s"] = crash(timed, study)
    timed.client.close()
    here = statistics.median(first_word_here(scan))
    found |= {"first_word_worker_s": round(there, 4), "first_word_reader_s": round(here, 4)}
    print(json.dumps(found))
    slots = [value for name, value in found.items() if name.startswith("slot_") and name != "slot_heatmap_s"]
    missed = there - here > EXTRA or max(slots) > SLOT or found["slot_heatmap_s"] > HEATMAP
    return int(missed or found["crash_to_message_s"] > CRASH)


if __name__ == "__main__":
    sys.exit(main())
