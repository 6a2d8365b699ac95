"""`Logic`: reading from Slicer's Python console, without Slicer: blocking, or with callbacks; through the worker."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from MedVLMReaderLib.options import USUAL, Options
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import ChatSession
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.worker.blocking import WorkerReader
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import Answered, Heatmap, OnEvent
from MedVLMReaderLib.worker.plain import Words


@dataclass
class Open:
    """A scan that was asked about: its study in the worker, and its chat."""

    volume: Volume
    study: int
    session: ChatSession


class Logic:
    """What `MedVLMReaderLogic` does, on volumes instead of nodes.

    `read`, `ask` and `heatmap` wait and return what they found, or raise ReaderError. With `on_event` they return the
    request's number at once, and the events (see `worker.events`) come while the client is driven: out of Qt's loop, or
    by `wait`. `key` tells one scan from another (a node and the time of its last change, say); None: the volume
    object itself. All that is asked about a scan is one chat.
    """

    def __init__(self, client: Client, meanwhile: Callable[[], None] = lambda: None) -> None:
        """`meanwhile` is called often while something waits: `slicer.app.processEvents`, so that the window lives."""
        self.reader = WorkerReader(client, meanwhile=meanwhile)
        self.client = client
        self._open: dict[Hashable, Open] = {}

    def load(self, model: str = "built-in", precision: str = "auto", device: str | None = None) -> str:
        """Use a model from now on; what it is called, with its revision. Without it, the built-in one is used."""
        loaded = self.reader.load(model, precision=precision, device=device)
        return f"{loaded.name}, revision {loaded.revision}, {loaded.precision} on {loaded.device}"

    @overload
    def read(
        self, volume: Volume, *, key: Hashable = ..., view: View | None = ..., options: Options = ...
    ) -> Reading: ...
    @overload
    def read(
        self, volume: Volume, *, key: Hashable = ..., view: View | None = ..., options: Options = ..., on_event: OnEvent
    ) -> int: ...
    def read(
        self, volume: Volume, *, key: Hashable = None, view: View | None = None, options: Options = USUAL,
        on_event: OnEvent | None = None,
    ) -> Reading | int:  # fmt: skip
        """The model's report."""
        return self._asked(volume, None, key, view, None, options, on_event)

    @overload
    def ask(
        self, volume: Volume, question: str, *, key: Hashable = ..., view: View | None = ...,
        place: Place | None = ..., options: Options = ...,
    ) -> Reading: ...  # fmt: skip
    @overload
    def ask(
        self, volume: Volume, question: str, *, key: Hashable = ..., view: View | None = ...,
        place: Place | None = ..., options: Options = ..., on_event: OnEvent,
    ) -> int: ...  # fmt: skip
    def ask(
        self, volume: Volume, question: str, *, key: Hashable = None, view: View | None = None,
        place: Place | None = None, options: Options = USUAL, on_event: OnEvent | None = None,
    ) -> Reading | int:  # fmt: skip
        """The answer to a question, which is told what was asked about this scan before."""
        return self._asked(volume, question, key, view, place, options, on_event)

    def heatmap(
        self, volume: Volume, reading: Reading, words: Words = None, method: str | None = None, *, key: Hashable = None
    ) -> Volume:
        """Where the model looked for some words, see `Reading.heatmap`; looked up where that was not recorded."""
        study = self.opened(volume, key).study

        def ask(tell: OnEvent) -> int:
            return self.client.heatmap(study, reading, words, method, on_event=tell)

        return self.reader.wait(ask, Heatmap).volume

    def read_folder(
        self, folder: str | Path, out: str | Path, questions: tuple[str, ...] = (), *, options: Options | None = None,
        progress: Callable[[Any], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False,
    ) -> Any:  # fmt: skip
        """Read every scan under a folder, as `medvlmreader batch` does; a `batch.Report`. What is there is skipped.

        `progress` is told a `batch.Progress` after each; once `stopped` says True, what is done stays.
        """
        from MedVLMReaderLib.batch.studies import studies_of

        studies = studies_of(Path(folder))
        return self.read_studies(studies, out, questions, options=options, progress=progress, stopped=stopped)

    def read_studies(
        self, studies: Sequence[Any], out: str | Path, questions: tuple[str, ...] = (), *,
        options: Options | None = None, progress: Callable[[Any], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Any:  # fmt: skip
        """The same of studies as `batch` has them."""
        from MedVLMReaderLib.batch import Desk, Settings, here, read_all
        from MedVLMReaderLib.batch.shelf import shelf

        model = self.reader.model
        settings = Settings(model.name, model.revision, questions or (model.request,), options)
        place = shelf(out)
        rounds = here(Desk(self.reader), place, settings, ahead=False)
        return read_all(rounds, studies, place, settings, progress=progress, stopped=stopped)

    def session(self, volume: Volume, key: Hashable = None) -> ChatSession:
        """The chat about a scan, which `ChatSession.save` keeps."""
        return self.opened(volume, key).session

    def opened(self, volume: Volume, key: Hashable = None, view: View | None = None) -> Open:
        """The scan's study, which the worker is asked to see where it was not yet."""
        name = id(volume) if key is None else key
        if (found := self._open.get(name)) is None:
            study = self.client.see(volume, view)
            found = self._open[name] = Open(volume, study, ChatSession(()))
        return found

    def forget(self, volume: Volume | None = None, key: Hashable = None) -> None:
        """A scan is closed: what is asked about it is stopped, its chat goes. None and no key: all of them."""
        for name in [id(volume) if key is None else key] if volume is not None or key is not None else list(self._open):
            if found := self._open.pop(name, None):
                self.client.forget(found.study)

    def wait(self) -> None:
        """Drive the client until all that was asked has ended."""
        while self.client.busy:
            self.reader.pump()

    def _asked(
        self, volume: Volume, question: str | None, key: Hashable, view: View | None, place: Place | None,
        options: Options, on_event: OnEvent | None,
    ) -> Reading | int:  # fmt: skip
        opened = self.opened(volume, key, view)

        def ask(tell: OnEvent) -> int:
            return self.client.ask(
                opened.study, question, session=opened.session, place=place, options=options, on_event=tell
            )

        return self.reader.wait(ask, Answered).reading if on_event is None else ask(on_event)
