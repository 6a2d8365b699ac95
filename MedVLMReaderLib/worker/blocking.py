"""`WorkerReader`: sees and asks like a `reader.Reader`, in another process; waits for it. For console and batch."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.options import USUAL, Options
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.study import Message, Stopped
from MedVLMReaderLib.verdict import REGIONS, Verdict
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import (
    FINAL,
    Answered,
    Cancelled,
    Event,
    Failed,
    Heatmap,
    Loaded,
    OnEvent,
    Prepared,
    Saw,
    Verified,
    Word,
    ignored,
)
from MedVLMReaderLib.worker.plain import Words
from MedVLMReaderLib.worker.transport import SubprocessTransport, Transport

WAIT_S = 0.02
Last = TypeVar("Last")


def never() -> bool:
    """Whether to stop: no."""
    return False


@dataclass(frozen=True, eq=False)
class WorkerSeen:
    """A study after the encoder, which stays in the worker; as much of a `study.Seen` as is of use here."""

    study: int
    token_map: TokenMap
    preparation: dict[str, Any]
    key: str
    notes: tuple[str, ...]
    boxes: tuple[Grid, ...]
    volume_keys: tuple[str, ...]


@dataclass(frozen=True)
class WorkerModel:
    """What is known here of the worker's model."""

    reader: WorkerReader
    name: str
    revision: str
    request: str

    def report_request(self) -> str:
        """The question that asks this model for a report."""
        return self.request

    def prepared(self, volumes: Sequence[Volume], view: View | None = None) -> tuple[Volume, ...]:
        """What the encoder is shown of a study."""
        seen = self.reader.see(volumes, view)
        found = self.reader.wait(lambda tell: self.reader.client.prepared(seen.study, on_event=tell), Prepared)
        return found.volumes


def load(
    name: str = "built-in", *, precision: str = "auto", device: str | None = None, revision: str | None = None,
    offline: bool = False, python: str = sys.executable, on_event: OnEvent = ignored,
) -> WorkerReader:  # fmt: skip
    """A reader in a worker of its own, with a model, see `reader.load`. `python`: the interpreter that has torch.

    `on_event` is told of everything that goes on, from now on. Raises ReaderError where it cannot be had.
    """
    reader = WorkerReader(Client(SubprocessTransport(), python=python), on_event=on_event)
    try:
        reader.load(name, precision=precision, device=device, revision=revision, offline=offline)
    except BaseException:
        reader.close()
        raise
    return reader


class WorkerReader:
    """Answers `see` and `ask` as a `Reader` does. What goes wrong in the worker is a ReaderError; after a crash, the
    next call starts it again. May be used from several threads; they take turns at the model."""

    def __init__(
        self, client: Client, *, on_event: OnEvent = ignored, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """`meanwhile` is called about fifty times a second while something is waited for: a view stays alive by it."""
        self.client, self.on_event, self.meanwhile = client, on_event, meanwhile
        self._turn = threading.RLock()
        self._forgotten: deque[int] = deque()
        self._fresh = False

    @property
    def transport(self) -> Transport:
        """What the client talks through."""
        return self.client.running.program.transport

    @property
    def model(self) -> WorkerModel:
        """The model in memory, which is loaded where none is."""
        loaded = self._loaded()
        return WorkerModel(self, loaded.name, loaded.revision, loaded.request)

    @property
    def context(self) -> int:
        """Tokens that the decoder reads at a time, image and answer among them."""
        return self._loaded().context

    def load(
        self, name: str = "built-in", *, precision: str = "auto", device: str | None = None,
        revision: str | None = None, offline: bool = False,
    ) -> Loaded:  # fmt: skip
        """Use another model from now on."""

        def ask(tell: OnEvent) -> int:
            return self.client.load(
                name, precision=precision, device=device, revision=revision, offline=offline, on_event=tell
            )

        return self.wait(ask, Loaded)

    def see(
        self, volumes: Volume | Sequence[Volume], view: View | None = None, stopped: Callable[[], bool] = never
    ) -> WorkerSeen:
        """Encode a study: one volume, or several series. Raises `Stopped` once `stopped` says True."""
        asked: list[int] = []

        def ask(tell: OnEvent) -> int:
            asked.append(self.client.see(volumes, view, on_event=tell))
            return asked[0]

        try:
            saw = self.wait(ask, Saw, stopped)
        except BaseException:
            self._forgotten.extend(asked)
            raise
        seen = WorkerSeen(
            saw.study, saw.token_map, dict(saw.preparation), saw.key, saw.notes, saw.boxes, saw.volume_keys
        )
        weakref.finalize(seen, self._forgotten.append, saw.study).atexit = False
        return seen

    def report(self, seen: WorkerSeen, options: Options = USUAL) -> Reading:
        """The model's draft report."""
        *_, reading = self._asked(seen, None, (), options, never)
        assert isinstance(reading, Reading)
        return reading

    def ask(
        self, seen: WorkerSeen, question: str, *, history: Sequence[Message] = (), options: Options = USUAL,
        stopped: Callable[[], bool] = never,
    ) -> Iterator[str | Reading]:  # fmt: skip
        """The words of the answer as they come, and last the `Reading`; see `Reader.ask`."""
        return self._asked(seen, question, history, options, stopped)

    def _asked(
        self, seen: WorkerSeen, question: str | None, history: Sequence[Message], options: Options,
        stopped: Callable[[], bool],
    ) -> Iterator[str | Reading]:  # fmt: skip
        fresh, self._fresh = self._fresh, False

        def ask(tell: OnEvent) -> int:
            return self.client.ask(seen.study, question, history=history, options=options, fresh=fresh, on_event=tell)

        for event in self.events(ask, stopped):
            if isinstance(event, Word):
                yield event.text
            elif isinstance(event, Answered):
                yield event.reading
            elif isinstance(event, FINAL):
                yield self._unanswered(seen, question, options, event)

    def _unanswered(self, seen: WorkerSeen, question: str | None, options: Options, event: Event) -> Reading:
        """A question that was stopped before it began has an empty reading, as a Reader gives it."""
        if not isinstance(event, Cancelled):
            raise error_of(event)
        loaded = self._loaded()
        return Reading(
            question or loaded.request, "", False, (), seen.token_map.grids, loaded.name, loaded.revision,
            dict(vars(options)), seen.preparation, seen.notes, boxes=seen.boxes,
        )  # fmt: skip

    def look(
        self, seen: WorkerSeen, reading: Reading, *, method: str = "", text: str | None = None,
        history: Sequence[Message] = (),
    ) -> Reading:  # fmt: skip
        """The reading with where the model looked by one method more, or for another text; see `Reader.look`."""

        def ask(tell: OnEvent) -> int:
            return self.client.heatmap(
                seen.study, reading, None, method or None, text=text, history=history, on_event=tell
            )

        return self.wait(ask, Heatmap).reading

    def verify(
        self, seen: WorkerSeen, reading: Reading, words: Words, *, method: str | None = None,
        history: Sequence[Message] = (), regions: int = REGIONS, seed: int = 0,
    ) -> Verdict:  # fmt: skip
        """Whether the image supports `words`; see `Reader.verify`, which also wants the volumes."""

        def ask(tell: OnEvent) -> int:
            return self.client.verify(
                seen.study, reading, words, method, history=history, regions=regions, seed=seed, on_event=tell
            )

        return self.wait(ask, Verified).verdict

    def forget(self) -> None:
        """Begin the next answer from nothing: what the decoder has kept of the last one is not used for it."""
        self._fresh = True

    def free(self) -> None:
        """Give back the worker's memory; the next call starts it again."""
        with self._turn:
            self.client.free()
            self._pump()

    def close(self) -> None:
        """End the worker, for good."""
        with self._turn:
            self.client.close()

    def __enter__(self) -> WorkerReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # ---- Waiting ---------------------------------------------------------------------------------------------------

    def wait(self, ask: Callable[[OnEvent], int], last: type[Last], stopped: Callable[[], bool] = never) -> Last:
        """Ask and wait; the last event. Raises `Stopped`, and ReaderError where it failed."""
        *_, event = self.events(ask, stopped)
        if isinstance(event, last):
            return event
        raise error_of(event)

    def events(self, ask: Callable[[OnEvent], int], stopped: Callable[[], bool] = never) -> Iterator[Event]:
        """Ask, and the events as they come. Where they are not taken to their end, the request is stopped."""
        come: deque[Event] = deque()

        def tell(event: Event) -> None:
            come.append(event)
            self.on_event(event)

        with self._turn:
            self._forget_unused()
            number = ask(tell)
        event: Event | None = None
        try:
            asked_to_stop = False
            while not isinstance(event, FINAL):
                if not asked_to_stop and stopped():
                    asked_to_stop = True
                    with self._turn:
                        self.client.stop(number)
                if self.client.closed:
                    raise Stopped
                if not come:
                    self.pump()
                while come:
                    event = come.popleft()
                    yield event
        finally:
            if not isinstance(event, FINAL):
                with self._turn:
                    self.client.stop(number)

    def pump(self) -> None:
        """Have the client do what there is to do; wait a moment where there is nothing."""
        with self._turn:
            self._pump()
        self.meanwhile()

    def _pump(self) -> None:
        if not self.client.advance():
            self.transport.poll(WAIT_S)
            self.client.advance()

    def _forget_unused(self) -> None:
        while self._forgotten:
            self.client.forget(self._forgotten.popleft())

    def _loaded(self) -> Loaded:
        if (loaded := self.client.loaded) is not None:
            return loaded
        choice = self.client.running.choice
        return self.load(
            choice.model, precision=choice.precision, device=choice.device, revision=choice.revision,
            offline=choice.offline,
        )  # fmt: skip


def error_of(event: Event) -> Exception:
    """A last event that is not the one hoped for, as an error: `Stopped`, ReaderError, or RuntimeError for a bug."""
    if isinstance(event, Cancelled):
        return Stopped()
    if isinstance(event, Failed) and event.trouble != "bug":
        return ReaderError(str(event))
    return RuntimeError(f"{event}\n{event.details}" if isinstance(event, Failed) else f"An unexpected end: {event!r}.")
