"""`Running`: the line of requests, worked off one by one; what each needs is started, loaded and seen first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.worker.events import (
    Cancelled,
    Event,
    Exited,
    Failed,
    Loaded,
    OnEvent,
    Progress,
    Saw,
    Started,
    Word,
)
from MedVLMReaderLib.worker.failures import KEPT, failed_from, failure
from MedVLMReaderLib.worker.folder import PrivateFolder
from MedVLMReaderLib.worker.jobs import Choice, Job, Step, Study
from MedVLMReaderLib.worker.plain import loaded_from, saw_from
from MedVLMReaderLib.worker.program import Program
from MedVLMReaderLib.worker.protocol import Broken
from MedVLMReaderLib.worker.transport import Transport

STOPPING_S, LOADING_S = 30.0, 2.0
"""How long a stop may go unheeded, and one while a model is loaded, before the program is ended."""
STEP_S = 0.008
STUDIES = 3
"""That the worker holds in memory at a time, the ones last asked about."""


class Running:
    """See `client.Client`, whose working it is."""

    def __init__(
        self, transport: Transport, python: str, base: Mapping[str, str] | None, on_exit: Callable[[Exited], None]
    ) -> None:
        self.program = Program(transport, python, base, self._ready, self._told, self._ended)
        self.on_exit = on_exit
        self.choice = Choice()
        self.loaded: Loaded | None = None
        self.seen: dict[int, Saw] = {}
        self._loaded_choice: Choice | None = None
        self._private: PrivateFolder | None = None
        self._line: deque[Job] = deque()
        self._later: deque[tuple[Callable[[], Event], OnEvent]] = deque()
        self._step: Step | None = None
        self._writing: Iterator[None] | None = None
        self._numbers, self._closed = 0, False

    # ---- What the client asks for ----------------------------------------------------------------------------------

    def next_number(self) -> int:
        """One that was not used before."""
        self._numbers += 1
        return self._numbers

    @property
    def folder(self) -> Path:
        """The private folder, made when it is first needed, or was cleared away. Raises OSError."""
        if self._private is None or not self._private.path.is_dir():
            self._private = PrivateFolder()
        return self._private.path

    @property
    def closed(self) -> bool:
        """Whether nothing is told any more."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether anything has not ended."""
        return bool(self._line or self._later)

    def known(self) -> Loaded:
        """The model in memory, for jobs that need one."""
        if self.loaded is None:
            raise ReaderError("No model is loaded. Load one.")
        return self.loaded

    def load(self, choice: Choice, tell: OnEvent) -> int:
        """Wait in line to load a model."""

        def content() -> dict[str, Any]:
            self.choice = choice
            self._unload()
            return {"request": "load", **choice.plain()}

        return self.add(Job(self.next_number(), tell, "program", content, self._took, choice=choice))

    def add(self, job: Job) -> int:
        """Wait in line; the job's number."""
        if self._closed:
            return self.later(lambda: Failed("The reader was closed.", "Start it again."), job.tell)
        self._line.append(job)
        return job.number

    def later(self, make: Callable[[], Event], tell: OnEvent) -> int:
        """Have the next `advance` tell what needs no worker."""
        self._later.append((make, tell))
        return self.next_number()

    def stop(self, number: int | None) -> None:
        """See `Client.stop`."""
        job = next((job for job in self._line if number in (None, job.number)), None)
        if job is None:
            return
        if self._step is not None and job is self._step.job:
            if job.stopping is None:
                job.stopping = time.monotonic()
                self.program.send({"request": "stop", "id": self._step.number})
            return
        if job is self._line[0]:
            self._writing = None
        self._line.remove(job)
        self.later(Cancelled, job.tell)

    def forget(self, study: Study) -> None:
        """See `Client.forget`."""
        for job in [job for job in self._line if job.study is study]:
            self.stop(job.number)
        if self.seen.pop(study.number, None) is not None:
            self.program.send({"request": "forget", "id": 0, "study": study.number})
        study.remove()

    def end(self) -> None:
        """See `Client.free`."""
        while self._line:
            job = self._line.popleft()
            event = _cut_off(job, "The answer was cut off: the memory was freed.")
            self.later(lambda event=event: event, job.tell)  # type: ignore[misc]
        self._step = self._writing = None
        self._unload()
        self.program.kill()

    def close(self) -> None:
        """See `Client.close`."""
        self._closed = True
        self.end()
        self._later.clear()
        if self._private is not None:
            self._private.remove()
            self._private = None

    # ---- What goes on ----------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """See `Client.advance`."""
        until = time.monotonic() + STEP_S
        self.program.take()
        while self._did_something():
            if time.monotonic() > until:
                return True
        self._watch()
        return False

    def _did_something(self) -> bool:
        if self._later:
            make, tell = self._later.popleft()
            tell(_made(make))
            return True
        if self._writing is not None:
            self._write(self._writing)
            return True
        return self._next()

    def _write(self, writing: Iterator[None]) -> None:
        """A piece of the study that the first job needs."""
        try:
            if next(writing, self) is self:
                self._writing = None
        except (OSError, ReaderError) as error:
            self._writing = None
            if (study := self._line[0].study) is not None:
                study.remove()
            self._end_job(self._line[0], failure(error))

    def _next(self) -> bool:
        """Go on with the first job of the line; whether anything was done."""
        if not self._line or self._step or self._writing or self._closed:
            return False
        job = self._line[0]
        try:
            if self.program.state == "off":
                self.program.start(self.folder)
                job.tell(Started("program"))
            elif self.program.state == "ready":
                self._go_on(job)
                return True
        except Exception as error:  # whatever is wrong with one request, the next ones go on
            self._end_job(job, failure(error))
            return True
        return False

    def _go_on(self, job: Job) -> None:
        """One thing that the job needs, or the job itself."""
        if job.needs in ("model", "study") and self._loaded_choice != self.choice:
            self._unload()
            self._begin(Step(self.next_number(), job, "load"), {"request": "load", **self.choice.plain()})
            return
        study, first = job.study, job.needs in ("voxels", "model")
        if study is not None and (first or study.number not in self.seen):
            if not study.there:
                if job.needs != "voxels":
                    self._make_room()
                self._writing = study.write(self.folder)
                return
            if not first:
                self._begin(Step(self.next_number(), job, "see"), study.request())
                return
        elif study is not None:
            self.seen[study.number] = self.seen.pop(study.number)  # the last used is the last to go
        self._begin(Step(job.number, job, "job"), job.content())

    def _begin(self, step: Step, content: Mapping[str, Any]) -> None:
        self.program.send({**content, "id": step.number})
        self._step = step

    def _make_room(self) -> None:
        """Have the worker forget the studies that were not asked about for longest."""
        for number in list(self.seen)[: max(0, len(self.seen) + 1 - STUDIES)]:
            del self.seen[number]
            self.program.send({"request": "forget", "id": 0, "study": number})

    def _watch(self) -> None:
        """End what does not answer."""
        self.program.watch()
        step = self._step
        if step is not None and step.job.stopping is not None:
            patience = LOADING_S if step.what == "load" or step.job.choice else STOPPING_S
            if time.monotonic() - step.job.stopping > patience:
                self.program.kill()

    # ---- What the program says -------------------------------------------------------------------------------------

    def _ready(self) -> None:
        self._next()

    def _told(self, said: dict[str, Any]) -> None:
        step, number = self._step, said.get("id")
        if not isinstance(number, int):
            raise Broken(f"a message without a number: {str(said)[:80]}")
        if step is None or number != step.number:
            return  # of a request that is over
        try:
            self._of(step, said)
        except (KeyError, TypeError, ValueError) as wrong:
            raise Broken(f"a message that lacks something: {wrong!r}") from wrong

    def _of(self, step: Step, said: dict[str, Any]) -> None:
        job, event = step.job, said["event"]
        if event == "started":
            job.tell(Started(said["stage"]))
        elif event == "progress":
            job.tell(Progress(said["stage"], int(said["done"]), int(said["total"])))
        elif event == "word":
            job.words.append(str(said["text"]))
            job.tell(Word(job.words[-1]))
        elif event == "cancelled":
            self._end_job(job, Cancelled())
        elif event == "failed":
            self._end_job(job, failed_from(said, job.said()))
        elif event == "done":
            self._done(step, said)
        else:
            raise Broken(f"an unknown event '{event}'")

    def _done(self, step: Step, said: dict[str, Any]) -> None:
        job = step.job
        if step.what == "job":
            try:
                event = job.done(said)
            except (ReaderError, OSError) as error:
                event = failure(error)
            self._end_job(job, event)
            return
        self._step = None
        if step.what == "load":
            self._took(said)
        elif job.study is not None:
            self.saw(job.study, said)
        if job.stopping is not None:
            self._end_job(job, Cancelled())
        self._next()

    def saw(self, study: Study, said: Mapping[str, Any]) -> Saw:
        """The study is in the worker's memory now."""
        saw = saw_from(study.number, said)
        self.seen[study.number] = saw
        return saw

    def _took(self, said: Mapping[str, Any]) -> Loaded:
        """The model is in memory now."""
        self.loaded = loaded_from(said)
        self._loaded_choice = self.choice
        return self.loaded

    def _unload(self) -> None:
        self.loaded = self._loaded_choice = None
        self.seen.clear()

    def _end_job(self, job: Job, event: Event) -> None:
        """The job is over, however it ended."""
        event = job.failed(event) if isinstance(event, Failed) else event
        if job in self._line:
            self._line.remove(job)
        if self._step is not None and self._step.job is job:
            self._step = None
        job.tell(event)

    def _ended(self, exited: Exited, failed: Failed) -> None:
        """The program is gone: what it was doing has failed, everything else waits for the next one."""
        job = self._step.job if self._step else None
        if job is None and not self.program.pid and not exited.wanted and self._line:
            job = self._line[0]  # the start was for this one
        event: Event = Cancelled()
        if job is not None and exited.wanted:
            event = _cut_off(job, "The answer could not be stopped in time; its program was ended.")
        elif job is not None:
            event = job.failed(replace(failed, words=job.said()))
        self._step = self._writing = None
        self._unload()
        if job is not None:
            self._line.remove(job)
            job.tell(event)
        self.on_exit(exited)


def _made(make: Callable[[], Event]) -> Event:
    try:
        return make()
    except Exception as error:  # told, like everything that goes wrong
        return failure(error)


def _cut_off(job: Job, why: str) -> Event:
    """How a job ends that was stopped together with its program."""
    return job.failed(Failed(why, KEPT, "crash", job.said())) if job.words else Cancelled()
