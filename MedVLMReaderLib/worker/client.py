"""`Client`: asks a reader in another process and never waits. Everything that comes of it is told by events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.options import USUAL, Options
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import ChatSession, Turn
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.verdict import REGIONS
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.worker.events import (
    Answered,
    Event,
    Exited,
    Exported,
    Failed,
    Loaded,
    OnEvent,
    Prepared,
    Saw,
    Verified,
    ignored,
)
from MedVLMReaderLib.worker.jobs import Choice, Job, Study, as_tuple
from MedVLMReaderLib.worker.plain import (
    Words,
    heatmap,
    needs_from,
    recorded,
    turn_number,
    turn_plain,
    verdict_from,
)
from MedVLMReaderLib.worker.protocol import read_reading, volume_from, volume_plain, write_reading
from MedVLMReaderLib.worker.running import Running
from MedVLMReaderLib.worker.transport import Transport


class Client:
    """One worker, started when it is first needed and again whenever it is not there; requests wait in line.

    Each request has a number and an `on_event`, which is told `Started`, `Progress` and `Word` and then exactly one of
    `events.FINAL`; never from within the call that makes the request. Whoever uses it calls `advance` often (from a
    timer of 10 to 20 ms while `busy`); with a transport that is polled, `transport.poll`, too. Nothing here raises for
    what goes wrong in the worker: that is `Failed`. Torch is not imported.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        on_exit: Callable[[Exited], None] = lambda _: None,
    ) -> None:
        """`python`: the interpreter that has torch (PythonSlicer, or another one; in Slicer, `sys.executable` is not
        one). `environment`: what it starts with, by default this program's; a launcher's settings are left out of
        it where the interpreter is another one's. `on_exit`: told whenever the worker ends."""
        self.running = Running(transport, python, environment, on_exit)
        self.studies: dict[int, Study] = {}

    def use(self, python: str) -> None:
        """Read with another interpreter; a program that another one runs is ended, and starts with the next request."""
        program = self.running.program
        if python != program.python:
            program.python = python
            if program.state != "off":
                self.free()

    # ---- What can be asked -------------------------------------------------------------------------------------

    def load(
        self, model: str = "built-in", *, precision: str = "auto", device: str | None = None,
        revision: str | None = None, offline: bool = False, on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """Use a model from now on, see `reader.load`. Ends with `Loaded`. Studies are seen again when next asked about.

        Without it, the first question loads the built-in model.
        """
        return self.running.load(Choice(model, precision, device, revision, offline), on_event)

    def needs(
        self, model: str = "built-in", *, device: str | None = None, revision: str | None = None,
        on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """What memory a model would take in each precision. Ends with `Needs`. Only of models that are here already:
        nothing is fetched. (For models of the table, `memory.needed` says it without a worker.)"""
        choice = Choice(model, "auto", device, revision, offline=True)
        return self._request("program", lambda: {"request": "needs", **choice.plain()}, needs_from, on_event)

    def see(self, volumes: Volume | Sequence[Volume], view: View | None = None, *, on_event: OnEvent = ignored) -> int:
        """Encode a study: one volume, or several series. The number is the study's, too. Ends with `Saw`.

        The voxels are written by `advance`, in small steps: they must stay as they are until then. `view`: what the
        screen shows; some models look at it. For another view, see again and forget the older study.
        """
        number = self.hold(volumes, view)
        study = self.studies[number]
        return self.running.add(
            Job(number, on_event, "model", study.request, lambda said: self.running.saw(study, said), study)
        )

    def hold(self, volumes: Volume | Sequence[Volume], view: View | None = None) -> int:
        """A study's number without having it seen, for `export`; it is seen once something is asked about it."""
        number = self.running.next_number()
        self.studies[number] = Study(number, as_tuple(volumes), view)
        return number

    def ask(
        self, study: int, question: str | None, *, session: ChatSession | None = None, number: int | None = None,
        place: Place | None = None, history: Sequence[Message] = (), options: Options = USUAL, fresh: bool = False,
        on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """Ask about a study; None asks for the model's report. Ends with `Answered`, stopped or whole.

        With a `session`, what it holds when the question's turn comes is told first, as `chat.Chat` does, and the
        answer becomes its turn `number`, from 0; None: its next one. Turns after it go. Without one, `history` is told.
        `place`: what the question is about. Where the worker ends in mid-answer, the words that had come are a turn,
        too, marked incomplete. `fresh`: nothing that the decoder has kept of the last answer is used again.
        """

        def content() -> dict[str, Any]:
            request = question if question is not None else self.running.known().request
            asked = {"request": "ask", "study": study, "question": request, "options": asdict(options)}
            if session is None:
                chat: dict[str, Any] = {"history": [asdict(message) for message in history]}
            else:
                before = session.turns[: turn_number(session, number)]
                self._check_same(study, session)
                chat = {"turns": [turn_plain(turn) for turn in before], "first_told": session.first_told}
            return {**asked, **chat, "place": place and place.plain(), "fresh": fresh}

        def kept(reading: Reading, first_told: int) -> int:
            if session is None:
                return 0
            at = turn_number(session, number)
            session.turns[at:] = [Turn((question or reading.question).strip(), reading, place)]
            session.first_told = min(first_told, at)
            return at

        def done(said: dict[str, Any]) -> Event:
            reading = read_reading(self.running.folder, said["reading"])
            return Answered(study, reading, kept(reading, int(said["first_told"])))

        def cut_off(failed: Failed) -> Failed:
            model = self.running.loaded
            if model is None or not failed.words.strip():
                return failed
            reading = Reading(
                question or model.request, failed.words, False, (), (), model.name, model.revision, asdict(options),
                notes=(failed.message,),
            )  # fmt: skip
            kept(reading, session.first_told if session else 0)
            return replace(failed, reading=reading)

        return self._request("study", content, done, on_event, study, cut_off)

    def regenerate(
        self, study: int, session: ChatSession, seed: int, *, options: Options = USUAL, on_event: OnEvent = ignored
    ) -> int:
        """Another answer to the session's last question, drawn with a seed; it takes the last one's place.

        ReaderError where nothing was asked.
        """
        number = len(session.turns) - 1
        if number < 0:
            raise ReaderError("Nothing has been asked yet that could be answered again. Ask first.")
        turn, drawn = session.turns[number], replace(options, sample=True, seed=seed)
        return self.ask(
            study, turn.question, session=session, number=number, place=turn.place, options=drawn, on_event=on_event
        )

    def heatmap(
        self, study: int | None, reading: Reading, words: Words = None, method: str | None = None, *,
        text: str | None = None, history: Sequence[Message] = (), on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """Where the model looked for `words` (see `Reading.span`). `method` None: its own. Ends with `Heatmap`.

        What the reading holds is drawn by the next `advance`, even while a question is being answered. Where it
        holds no such trace, or `text` is what somebody has made of the answer (`words` are then of that), the model
        looks again, with `history` before the question; keep the `reading` of the event, so that it does so once.
        """
        edited = text is not None and text != reading.text
        if not edited and (study is None or recorded(reading, words, method)):
            return self.running.later(lambda: heatmap(reading, words, method), on_event)

        def content() -> dict[str, Any]:
            return {
                "request": "look", "study": study, "method": method or "", "text": text,
                "reading": self._written(reading), "history": [asdict(message) for message in history],
            }  # fmt: skip

        def done(said: dict[str, Any]) -> Event:
            return heatmap(read_reading(self.running.folder, said["reading"]), words, method)

        return self._request("study", content, done, on_event, study)

    def verify(
        self, study: int, reading: Reading, words: Words = None, method: str | None = None, *,
        history: Sequence[Message] = (), regions: int = REGIONS, seed: int = 0, on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """Whether the image supports some words of a reading, see `Reader.verify`. Ends with `Verified`."""

        def content() -> dict[str, Any]:
            return {
                "request": "verify", "study": study, "reading": self._written(reading), "span": reading.span(words),
                "method": method, "history": [asdict(message) for message in history], "regions": regions, "seed": seed,
            }  # fmt: skip

        def done(said: dict[str, Any]) -> Event:
            return Verified(verdict_from(said["verdict"]), reading.span(words))

        return self._request("study", content, done, on_event, study)

    def prepared(self, study: int, *, on_event: OnEvent = ignored) -> int:
        """What the model is shown of a study. Ends with `Prepared`."""

        def done(said: dict[str, Any]) -> Event:
            volumes = tuple(volume_from(self.running.folder, one) for one in said["volumes"])
            for one in said["volumes"]:
                (self.running.folder / one["file"]).unlink(missing_ok=True)
            return Prepared(volumes)

        return self._request("study", lambda: {"request": "prepared", "study": study}, done, on_event, study)

    def export(
        self, study: int | None, reading: Reading, report: Mapping[str, Any], kinds: Sequence[str], folder: Path, *,
        files: Sequence[Path] = (), words: Words = None, on_event: OnEvent = ignored,
    ) -> int:  # fmt: skip
        """Write a report (`Report.plain`) of a reading into a folder, see `export.writing`. Ends with `Exported`.

        `files`: the DICOM series that the study was loaded from, for what belongs to a patient; `words`: what heatmap
        objects are of. No model is loaded for it; the study's voxels are for key images and to hold the files against.
        """
        found = None if study is None else self.studies.get(study)

        def content() -> dict[str, Any]:
            volumes = [] if found is None else zip(found.volumes, found.files, strict=True)
            return {
                "request": "export", "reading": self._written(reading), "report": report, "kinds": list(kinds),
                "folder": str(folder), "files": [str(path) for path in files], "span": reading.span(words),
                "whole": words is None, "volumes": [volume_plain(volume, path.name) for volume, path in volumes],
            }  # fmt: skip

        def done(said: dict[str, Any]) -> Event:
            return Exported(tuple(Path(one) for one in said["files"]))

        return self._request("program" if found is None else "voxels", content, done, on_event, study)

    # ---- What ends -----------------------------------------------------------------------------------------------

    def stop(self, number: int | None = None) -> None:
        """Stop a request; None: the one that is being worked on. Obeyed within a word, in prefill and encoding between
        two parts of the network. An answer then ends with `Answered`, incomplete; all else with `Cancelled`."""
        self.running.stop(number)

    def forget(self, study: int) -> None:
        """A study is not needed any more: what is asked about it is stopped, its files are removed."""
        if found := self.studies.pop(study, None):
            self.running.forget(found)

    def free(self) -> None:
        """Give back all memory: stop everything and end the worker. The next request starts it again."""
        self.running.end()

    def close(self) -> None:
        """End the worker and remove the private folder, for good. Nothing is told any more."""
        self.running.close()

    # ---- What goes on --------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do up to about 10 ms of the client's own work; whether there is more of it to do at once."""
        return self.running.advance()

    @property
    def busy(self) -> bool:
        """Whether anything is asked that has not ended."""
        return self.running.busy

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing that was asked ends any more."""
        return self.running.closed

    @property
    def loaded(self) -> Loaded | None:
        """The model while it is in memory."""
        return self.running.loaded

    def seen(self, study: int) -> Saw | None:
        """What is known of a study that the worker has in memory now."""
        return self.running.seen.get(study)

    def _check_same(self, study: int, session: ChatSession) -> None:
        """A new session is about this study from now on; ReaderError where it is about another one."""
        keys = self.running.seen[study].volume_keys
        session.volumes = session.volumes or keys
        if session.volumes != keys:
            raise ReaderError("This chat is about another scan. Choose the scan that it was begun with, or a new chat.")

    def _written(self, reading: Reading) -> str:
        return write_reading(self.running.folder, f"asked-{self.running.next_number()}", reading)

    def _request(
        self, needs: Any, content: Callable[[], dict[str, Any]], done: Callable[[dict[str, Any]], Event],
        on_event: OnEvent, study: int | None = None, failed: Callable[[Failed], Failed] = lambda failed: failed,
    ) -> int:  # fmt: skip
        found = None if study is None else self.studies.get(study)
        number = self.running.next_number()
        if study is not None and found is None:
            gone = Failed("This study was closed.", "Open the scan and ask again.")
            return self.running.later(lambda: gone, on_event)
        return self.running.add(Job(number, on_event, needs, content, done, found, failed=failed))
