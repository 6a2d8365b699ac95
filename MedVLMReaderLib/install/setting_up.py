"""What a view shows of set-up, and what the user can do there. Free of qt, slicer and torch; nothing here waits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install import journal, steps
from MedVLMReaderLib.install.interpreters import suitable
from MedVLMReaderLib.install.plan import Plan, Verdict, Wishes, environment_python, megabytes, plan
from MedVLMReaderLib.install.running import Running
from MedVLMReaderLib.install.survey import Survey, heard
from MedVLMReaderLib.worker.transport import Transport, environment

Stage = Literal["unknown", "looking", "ready", "needed", "running", "asking", "stopping", "refused"]
HEADLINES: dict[Verdict, str] = {
    "ready": "Everything that the models need is installed.",
    "install": "The models need {count} packages that are not installed.",
    "resume": "An earlier set-up did not finish. {count} packages are still to come; what is there is kept.",
    "repair": "An install was interrupted. {count} packages are not whole or missing; they are installed anew.",
    "try": "Everything is there. Whether it can be loaded has still to be tried.",
    "replace": "{count} packages are of another version than the models need.",
}
LATELY_S = 120.0
"""A Python that has not said what it has by then is taken not to start."""
SHOWN = 8
"""Names of packages that are listed."""


@dataclass(frozen=True)
class Shown:
    """All that the view draws."""

    stage: Stage = "unknown"
    headline: str = ""
    cost: str = ""
    """What is fetched and what it takes, before anything is."""
    packages: str = ""
    notes: str = ""
    message: str = ""
    """What went wrong, and what to do."""
    title: str = ""
    """What is being done."""
    progress: tuple[int, int] = (0, 0)
    log: str = ""
    can_install: bool = False
    can_stop: bool = False
    can_choose: bool = True
    can_remove: bool = False
    restart: bool = False
    wishes: Wishes = field(default_factory=Wishes)


class SettingUp:
    """The set-up of one Python. Whoever has it calls `advance` from a timer while `busy`."""

    def __init__(
        self, transport: Transport, wishes: Wishes, *, home: Path | None = None, packaged: Transport | None = None,
        changed: Callable[[], None] = lambda: None, on_ready: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`wishes.python`: Slicer's Python. `on_ready`: told the interpreter that reads, once all is there."""
        self.home = home or journal.home()
        self.transport, self.changed, self.on_ready = transport, changed, on_ready
        self.slicer = wishes.python
        self.wishes = wishes if wishes.environment != Path() else replace(
            wishes, environment=self.home / journal.ENVIRONMENT
        )  # fmt: skip
        self.running = Running(transport, self.home, packaged)
        self.plan: Plan | None = None
        self.message = ""
        self.stage: Stage = "unknown"
        self._survey: Survey | None = None
        self._asking_base = False
        self._printed, self._error, self._ended = "", "", list[int | None]()
        self._done, self._since = False, 0.0

    # ---- What the user, or the module, can do ------------------------------------------------------------------------

    @property
    def known_ready(self) -> bool:
        """Whether set-up was finished for just this, as far as is remembered: quick, nothing is started."""
        there = journal.load(self.home)
        return there.state == "done" and there.wanted == self.wishes.key and Path(self.wishes.interpreter).exists()

    @cached_property
    def pythons(self) -> list[str]:
        """Pythons that can make an environment; each is started once, when this is first asked for."""
        return suitable()

    def look(self) -> None:
        """See what is there. What to do, or that nothing is, follows."""
        if self.busy:
            return
        self.message, self.plan, self._done = "", None, False
        if self.wishes.place == "own" and not self.wishes.chosen and not Path(self.wishes.interpreter).exists():
            self._ask_base()
        else:
            self._ask(self.wishes.interpreter, steps.survey(self.wishes.interpreter, self.wishes.requirements))

    def choose(self, **changes: Any) -> None:
        """Change wishes by name, see `Wishes`, and look again."""
        if self.busy or all(getattr(self.wishes, name) == value for name, value in changes.items()):
            return
        wishes = replace(self.wishes, **changes)
        if "place" in changes and "python" not in changes:
            python = self.slicer if wishes.place == "slicer" else next(iter(self.pythons), self.slicer)
            wishes = replace(wishes, python=python, chosen="")
        self.wishes = wishes
        self.look()

    def install(self) -> None:
        """The user has agreed to the plan that is shown."""
        if self.plan is None or self.plan.ready or self.busy or self._survey is None:
            return
        self.message = ""
        try:
            self.running.begin(self.plan, self.wishes, self._survey)
        except ReaderError as error:
            self.message = str(error)
        self.changed()

    def agree(self, yes: bool) -> None:
        """The answer to a size that turned out larger."""
        self.running.agree(yes)
        self.changed()

    def stop(self) -> None:
        """Stop installing."""
        self.running.stop()
        self.changed()

    def remove(self) -> None:
        """Delete the environment of our own. Slicer's Python keeps what it has."""
        folder = self.wishes.environment
        if self.busy:
            return
        try:
            if not self._made:
                raise ReaderError(
                    f"'{folder}' is no environment that set-up made: nothing was removed. Delete it by hand."
                )
            shutil.rmtree(folder)
            journal.save(self.home, journal.Journal())
        except OSError as error:
            self.message = (
                f"'{folder}' could not be removed ({error.strerror or error}). Close Slicer and delete it by hand."
            )
        except ReaderError as error:
            self.message = str(error)
        else:
            self.look()
            return
        self.changed()

    def advance(self) -> None:
        """Go on with what is being done."""
        before = self.running.state, self.running.title, self.running.progress, len(self.running.log)
        self.running.advance()
        if self.running.state in ("done", "failed", "stopped"):
            self._finished()
        if self.stage == "looking" and not self._ended and time.monotonic() - self._since > LATELY_S:
            self.transport.kill()
        if self._ended and self.stage == "looking":
            self._looked(self._ended.pop())
        if before != (self.running.state, self.running.title, self.running.progress, len(self.running.log)):
            self.changed()

    def close(self) -> None:
        """Give everything back; an install is stopped, and goes on the next time."""
        self.running.stop()
        journal.release(self.home)

    @property
    def busy(self) -> bool:
        """Whether anything is being done."""
        return self.stage == "looking" or self.running.busy

    @property
    def _can_remove(self) -> bool:
        return not self.busy and self._made

    @property
    def _made(self) -> bool:
        folder = self.wishes.environment
        return journal.load(self.home).made == str(folder) and (folder / "pyvenv.cfg").exists()

    # ---- What there is to see ----------------------------------------------------------------------------------------

    def shown(self) -> Shown:
        """All that the view draws."""
        run, now = self.running, self.plan
        stage: Stage = run.state if run.state in ("running", "asking", "stopping") else self.stage
        common = Shown(
            stage, message=run.message if run.state == "asking" else self.message, log="\n".join(run.log),
            title="Looking at what is installed" if stage == "looking" else run.title if run.busy else "",
            progress=run.progress if run.busy else (0, 0), can_stop=run.state in ("running", "asking"),
            can_choose=not self.busy, can_remove=self._can_remove,
            wishes=self.wishes,
        )  # fmt: skip
        if now is None:
            return common
        return replace(
            common, headline=headline(now), cost=cost(now, self.wishes), packages=listed(now),
            notes="\n".join(now.notes), can_install=not self.busy and not now.ready,
            restart=now.restart or (self._done and run.plan.restart),
        )  # fmt: skip

    # ---- Looking -----------------------------------------------------------------------------------------------------

    def _ask_base(self) -> None:
        if self.wishes.python == self.slicer:
            self.wishes = replace(self.wishes, python=next(iter(self.pythons), self.slicer))
        one = self.wishes
        self._ask(one.python, steps.survey(one.python, one.requirements, one.environment), base=True)

    def _ask(self, python: str, argv: tuple[str, ...], base: bool = False) -> None:
        self.stage, self._asking_base = "looking", base
        self._printed, self._error, self._since = "", "", time.monotonic()
        self._ended.clear()
        self.transport.on_output = self._output
        self.transport.on_error_text = self._complained
        self.transport.on_exit = self._ended.append
        own = self.wishes.place == "slicer" or None
        variables: Mapping[str, str] = environment(python, own=own)
        self.transport.start(argv, variables)
        self.transport.end_input()
        self.changed()

    def _output(self, chunk: bytes) -> None:
        self._printed += chunk.decode(errors="replace")

    def _complained(self, text: str) -> None:
        self._error += text

    def _looked(self, code: int | None) -> None:
        said = heard(self._printed) if code == 0 else None
        if said is None and self.wishes.place == "own" and not self.wishes.chosen and not self._asking_base:
            self._ask_base()  # half an environment: it is made anew
            return
        found = Survey.from_json(said) if said is not None else None
        base, survey = (found, None) if self._asking_base else (None, found)
        try:
            self.plan = plan(survey, self.wishes, journal.load(self.home), base)
        except ReaderError as error:
            self.message, self.stage = str(error), "refused"
        else:
            self._survey = found
            self.stage = "ready" if self.plan.ready else "needed"
            if self.plan.ready:
                self._remember()
        self.changed()

    def _remember(self) -> None:
        try:
            journal.done(self.home, state="done", python=self.wishes.interpreter, wanted=self.wishes.key, step="")
        except ReaderError as error:
            self.message = str(error)
        self.on_ready(self.wishes.interpreter)

    def _finished(self) -> None:
        state, message, restart = self.running.state, self.running.message, self.running.plan.restart
        self.running.state = "idle"
        self.look()
        self._done = state == "done"
        if state == "done" and restart:
            self.message = "Set-up is done. Start Slicer again: packages that it had loaded were replaced."
        elif state != "done":
            self.message = message or "Stopped. What is installed stays; set-up goes on from there."


def first_wishes(python: str, chosen: str, **more: Any) -> Wishes:
    """What is wished when the module opens. `python`: Slicer's; `chosen`: the interpreter of the settings, else empty.

    The environment that set-up made is known again by it; another interpreter is the user's own.
    """
    made = journal.load(journal.home()).made
    if chosen and made and Path(chosen) == environment_python(Path(made)):
        return Wishes("own", python, Path(made), **more)
    return Wishes("own" if chosen else "slicer", python, chosen=chosen, **more)


def headline(now: Plan) -> str:
    """What the plan is, in a sentence."""
    return HEADLINES[now.verdict].format(count=len(now.packages))


def cost(now: Plan, wishes: Wishes) -> str:
    """What is fetched, what it takes on the disk, and where."""
    if now.ready:
        return ""
    where = "Slicer's own Python" if wishes.place == "slicer" else f"the environment '{wishes.environment}'"
    where = f"the Python '{wishes.chosen}'" if wishes.chosen else where
    if not now.fetched and wishes.wheels is None:
        return f"Nothing is fetched; {where} is put in order."
    source = f"from '{wishes.wheels}'" if wishes.wheels is not None else f"about {megabytes(now.fetched)} to fetch"
    return f"Into {where}: {source}, about {megabytes(now.installed)} on the disk."


def listed(now: Plan) -> str:
    """The first names of what is to come."""
    names = [one.name for one in now.packages]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
