"""A client that is driven until something has come, and what its requests were told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import FINAL, Event, Exited, Failed, Word
from MedVLMReaderLib.worker.transport import SubprocessTransport


class Told:
    """The events of one request; `at` has when each came. `then` is called with each."""

    def __init__(self, then: Callable[[Event], None] = lambda _: None) -> None:
        self.events: list[Event] = []
        self.at: list[float] = []
        self.then = then

    def __call__(self, event: Event) -> None:
        assert not self.over, f"{event} after the end"
        self.events.append(event)
        self.at.append(time.monotonic())
        self.then(event)

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], FINAL)

    @property
    def last(self) -> Any:
        assert self.over
        return self.events[-1]

    @property
    def words(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Word)]

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)


class Driven:
    """A client on pipes, and its exits."""

    def __init__(self, python: str | None = None) -> None:
        self.exits: list[Exited] = []
        self.transport = SubprocessTransport()
        chosen = {} if python is None else {"python": python}
        self.client = Client(self.transport, on_exit=self.exits.append, **chosen)

    @property
    def pid(self) -> int:
        return self.client.running.program.pid

    @property
    def folder(self):
        return self.client.running.folder

    def until(self, done: Callable[[], bool], seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "nothing came"
            if not self.client.advance():
                self.transport.poll(0.01)

    def idle(self) -> None:
        """Until all that was asked has ended; no request failed."""
        self.until(lambda: not self.client.busy)

    def last(self, ask: Callable[[Told], object]) -> Any:
        """The last event of one request."""
        told = Told()
        ask(told)
        self.until(lambda: told.over)
        return told.last

    def failed(self, ask: Callable[[Told], object]) -> Failed:
        event = self.last(ask)
        assert isinstance(event, Failed), event
        return event
