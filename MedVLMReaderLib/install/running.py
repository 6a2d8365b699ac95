"""`Running`: works off the steps of a plan, one program at a time, and says how far it is. It never waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install import journal, needs
from MedVLMReaderLib.install.pip_words import PipWords, trouble, without_passwords
from MedVLMReaderLib.install.plan import Plan, Wishes, check_room, megabytes
from MedVLMReaderLib.install.steps import Step
from MedVLMReaderLib.install.survey import Survey, heard
from MedVLMReaderLib.worker.transport import Transport, environment

State = Literal["idle", "running", "asking", "stopping", "done", "failed", "stopped"]
LINES = 400
"""Lines of what programs print that are kept."""
GRACE_S = 2.0
"""What a program that was asked to end is given before it is killed."""
MORE = 1.3
"""Times what was announced; where it turns out to be more, the user is asked again."""


class Running:
    """One set-up at a time. Whoever has it calls `advance` from a timer."""

    def __init__(self, transport: Transport, home: Path, packaged: Transport | None = None) -> None:
        """`home`: where the journal lies. `packaged`: what installs in the place of pip where Slicer has its own way,
        see `slicer_packaging`."""
        self.transport, self.home, self.packaged = transport, home, packaged
        self.state: State = "idle"
        self.message = ""
        """What went wrong, or what there is to agree to."""
        self.log: list[str] = []
        self.plan, self.wishes = Plan("ready"), Wishes()
        self.survey: Survey | None = None
        self._left: list[Step] = []
        self._words, self._sizes = PipWords({}), dict[str, int]()
        self._text, self._printed, self._ended = "", "", list[int | None]()
        self._agreed, self._stop_at = 0, 0.0
        self._using = transport

    # ---- What can be asked -------------------------------------------------------------------------------------------

    def begin(self, plan: Plan, wishes: Wishes, survey: Survey) -> None:
        """Start a plan that the user has agreed to. ReaderError where another program is at it."""
        journal.take(self.home)
        try:
            journal.done(self.home, state="begun", python=wishes.interpreter, wanted=wishes.key, step="")
        except ReaderError:
            journal.release(self.home)
            raise
        self.plan, self.wishes, self.survey = plan, wishes, survey
        self.message, self.log, self._left, self._sizes = "", [], list(plan.steps), {}
        self._agreed = int(MORE * max(plan.fetched, plan.installed // 4)) + 50_000_000
        self._start()

    def agree(self, yes: bool) -> None:
        """The answer to a size that turned out larger than was said."""
        if self.state != "asking":
            return
        if yes:
            self.message = ""
            self._start()
        else:
            self._end("stopped")

    def stop(self) -> None:
        """End it; what is installed stays, and the next set-up goes on from there."""
        if self.state == "asking":
            self._end("stopped")
        elif self.state == "running":
            self.state, self._stop_at = "stopping", time.monotonic() + GRACE_S
            self._using.end_input()
            if self.step is None or self.step.kind != "torch":
                self._using.kill()

    def advance(self) -> None:
        """Go on where a step has ended. Call it often."""
        if self.state == "stopping" and time.monotonic() > self._stop_at:
            self._using.kill()
        if self.packaged is not None and self._using is self.packaged:
            self.packaged.poll(0)
        if self._ended:
            code = self._ended.pop()
            if self.state == "stopping":
                self._end("stopped")
            elif self.state == "running":
                self._after(code)

    # ---- What there is to see ----------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is being done, or waits for an answer."""
        return self.state in ("running", "asking", "stopping")

    @property
    def step(self) -> Step | None:
        """The one that is worked on."""
        return self._left[0] if self._left else None

    @property
    def title(self) -> str:
        """What is being done."""
        if self.state == "stopping":
            return "Stopping once pip has finished" if self._using is self.packaged else "Stopping"
        step = self.step
        return (self._words.text if step and step.kind == "install" else "") or (step.title if step else "")

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes done and all; 0 of all where that is not known."""
        return self._words.progress if self.step is not None and self.step.kind == "install" else (0, 0)

    # ---- A step, from its start to its end ---------------------------------------------------------------------------

    def _start(self) -> None:
        step = self._left[0]
        packaged = step.kind == "install" and self.wishes.place == "slicer"
        self._using = using = self.packaged if packaged and self.packaged is not None else self.transport
        self._text = self._printed = ""
        self._words, self.state = PipWords(self._sizes), "running"
        self._ended.clear()
        using.on_output, using.on_error_text = self._output, self._error
        using.on_exit = self._ended.append
        made = {"made": str(self.wishes.environment)} if step.kind == "environment" else {}  # also where half is made
        self._remember(step=step.kind, **made)
        own = self.wishes.place == "slicer" or None
        using.start(step.argv, environment(step.argv[0], own=own) | dict(step.variables))
        if step.kind != "torch":
            using.end_input()  # nothing is asked, and nothing could be answered

    def _output(self, chunk: bytes) -> None:
        text = chunk.decode(errors="replace")
        self._printed += text
        self._take(text)

    def _error(self, text: str) -> None:
        self._take(text)

    def _take(self, text: str) -> None:
        self._text += text.replace("\r", "\n")
        *whole, self._text = self._text.split("\n")
        for line in whole:
            self._words.take(line)
            if line.strip() and not line.startswith("@medvlm "):
                self.log.append(without_passwords(line.rstrip()))
        del self.log[:-LINES]

    def _after(self, code: int | None) -> None:
        """A step has ended by itself."""
        if self._text.strip():
            self.log.append(without_passwords(self._text))
        step = self._left[0]
        if code != 0:
            self._fail(self._why(step, code))
            return
        said = heard(self._printed) or {}
        try:
            self._learn(step, said)
        except ReaderError as error:
            self._fail(str(error))
            return
        del self._left[0]
        if not self._left:
            self._end("done")
        elif not self._too_much(step):
            self._start()

    def _learn(self, step: Step, said: Mapping[str, object]) -> None:
        """What a step has found out. ReaderError where that is that it cannot be."""
        if step.kind == "resolve":
            self._resolved(said)
        elif step.kind == "attempt" and (failed := said.get("failed")):
            assert isinstance(failed, dict)
            name, why = next(iter(failed.items()))
            raise ReaderError(
                f"{name} was installed but cannot be loaded ({why}). On Windows install Microsoft's Visual C++ "
                "runtime; elsewhere choose a separate environment, or report this with the lines below 'Details'."
            )

    def _resolved(self, said: Mapping[str, object]) -> None:
        """The exact packages and sizes, and whether there is room for them."""
        found = said.get("fetch")
        assert self.survey is not None
        cuda = self.survey.nvidia
        for one in found if isinstance(found, list) else ():
            known = int(one["bytes"]) or int(1e6 * needs.size_of(one["name"], cuda).fetched)
            self._sizes[one["name"]] = known
        fetched = sum(self._sizes.values())
        installed = max(int(sum(1e6 * needs.size_of(name, False).installed for name in self._sizes)), 2 * fetched)
        check_room(self.survey, 0 if self.wishes.wheels is not None else fetched, installed)
        self.plan = replace(self.plan, fetched=fetched, installed=installed)

    def _too_much(self, step: Step) -> bool:
        """Whether it is so much more than was said that the user has to be asked again."""
        if step.kind != "resolve" or self.plan.fetched <= self._agreed:
            return False
        self.state = "asking"
        self.message = (
            f"It is {megabytes(self.plan.fetched)} to fetch, more than was expected: the server offers larger packages "
            "for this machine. Go on?"
        )
        return True

    def _why(self, step: Step, code: int | None) -> str:
        printed = "\n".join(self.log)
        if code is None:
            return f"'{step.argv[0]}' cannot be started. Choose another Python, or install Slicer again."
        if step.kind == "environment":
            last = next((line for line in reversed(self.log) if line.strip()), "nothing was said")
            return f"The environment could not be made: {last[:300]}. Choose another folder or another Python."
        return trouble(printed, self.wishes.wheels)

    def _remember(self, **changes: object) -> None:
        """A disk that is full by now costs no more than a look at the next start."""
        with suppress(ReaderError):
            journal.done(self.home, **changes)

    def _fail(self, why: str) -> None:
        self.message = why
        self._end("failed")

    def _end(self, state: State) -> None:
        if state == "done":
            brought = tuple(sorted({*journal.load(self.home).brought, *self._sizes}))
            self._remember(state="done", step="", brought=brought)
        self.state = state
        self._left = [] if state == "done" else self._left
        journal.release(self.home)
