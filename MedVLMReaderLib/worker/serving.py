"""The serving half: takes requests off stdin, works them off one by one, and ends when stdin does.

stdin is read by a thread of its own, so that a stop, or the parent's end, is noticed in the midst of work. Whatever
libraries print goes to stderr.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from MedVLMReaderLib import ReaderError, __version__
from MedVLMReaderLib.study import Stopped
from MedVLMReaderLib.worker.folder import mark, remove_if_abandoned
from MedVLMReaderLib.worker.protocol import LONGEST, REQUESTS, VERSION, Broken, line, message

if TYPE_CHECKING:
    from MedVLMReaderLib.worker.answering import Answering

EVERY_S = 0.1
"""Progress is told no more often."""
NICER = 5
DYING_S = 0.5
"""How long a client's program may take to end after its pipe."""


class Talk:
    """What one request says to the client, and whether it is to stop."""

    def __init__(self, serving: Serving, number: int) -> None:
        self.serving, self.number, self._told_at = serving, number, 0.0

    def stopped(self) -> bool:
        """Whether the client wants no more of it."""
        return self.number in self.serving.stopping

    def say(self, event: str, **content: Any) -> None:
        """Send a message about this request."""
        self.serving.send({"id": self.number, "event": event, **content})

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is, not too often. Raises `Stopped` where it is to stop."""
        if self.stopped():
            raise Stopped
        now = time.monotonic()
        if now - self._told_at >= EVERY_S or (total and done >= total):
            self._told_at = now
            self.say("progress", stage=stage, done=done, total=total)

    def counting(self, stage: str) -> Callable[[], bool]:
        """`stopped`, which also tells how often it was asked: what there is to see of an encoder's progress."""
        asked = 0

        def stopped() -> bool:
            nonlocal asked
            asked += 1
            with suppress(Stopped):
                self.progress(stage, asked, 0)
            return self.stopped()

        return stopped


Answers = Mapping[str, Callable[[dict[str, Any], Talk], Mapping[str, Any]]]
"""For each request what works it off and returns the content of the last message."""


class Serving:
    """One client's requests."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.stopping: set[int] = set()
        self.folder: Path | None = None
        self._mark: IO[bytes] | None = None
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._answering: Answering | None = None

    def run(self) -> None:
        """Serve until stdin ends, which ends the process."""
        self.send({"event": "hello", "id": 0, "protocol": VERSION, "version": __version__, "pid": os.getpid()})
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._work(self._waiting.get())

    def send(self, content: Mapping[str, Any]) -> None:
        """Send a message. Where nobody listens any more, the process ends."""
        text = line(content)
        try:
            with self._sending:
                self.outgoing.write(text)
                self.outgoing.flush()
        except OSError:
            self._end()

    def _end(self) -> None:
        """At once, in the midst of whatever is going on."""
        if self._mark is not None and self.folder is not None:
            self._mark.close()
            remove_if_abandoned(self.folder, DYING_S)  # a client that lives has another worker by now
        os._exit(0)

    def _listen(self) -> None:
        """Take requests as they come: stops at once, the others into the line."""
        with suppress(OSError, ValueError):
            while one := self.incoming.readline(LONGEST):
                self._hear(one)
        self._end()

    def _hear(self, one: bytes) -> None:
        try:
            if not one.endswith(b"\n"):
                self._skip(one)
                return
            asked = message(one)
            if asked.get("request") == "hello":
                self._greet(asked)
            elif asked.get("request") == "stop":
                self.stopping.add(int(asked["id"]))
            else:
                self._waiting.put({**asked, "id": int(asked["id"])})
        except (Broken, KeyError, TypeError, ValueError, OSError) as wrong:
            self._refuse(0, f"A request could not be understood: {wrong}.")

    def _skip(self, one: bytes) -> None:
        """The rest of a line that is too long, or of one that was cut off by the end."""
        while one and not one.endswith(b"\n"):
            one = self.incoming.readline(LONGEST)
        if one:
            self._refuse(0, f"A request is longer than {LONGEST} bytes.")

    def _greet(self, asked: Mapping[str, Any]) -> None:
        if (spoken := asked.get("protocol")) != VERSION:
            self._refuse(
                0, f"The client speaks protocol {spoken}, this worker, of MedVLM Reader {__version__}, {VERSION}.",
                "Install the same version in both.",
            )  # fmt: skip
            return
        folder = Path(asked["folder"])
        if not folder.is_dir():
            raise Broken("the private folder is missing")
        self.folder, self._mark = folder, mark(folder)

    def _refuse(self, number: int, why: str, to_do: str = "Please report it.", trouble: str = "protocol") -> None:
        self.send({"id": number, "event": "failed", "message": why, "to_do": to_do, "trouble": trouble})

    def _work(self, asked: dict[str, Any]) -> None:
        """Work off a request and send its last message."""
        talk = Talk(self, asked["id"])
        try:
            if talk.stopped():
                raise Stopped
            talk.say("done", **self._answer(asked, talk))
        except Stopped:
            talk.say("cancelled")
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self._failed(talk, error)
        self.stopping.discard(talk.number)

    def _answer(self, asked: dict[str, Any], talk: Talk) -> Mapping[str, Any]:
        if self.folder is None:
            raise Broken("a request before hello")
        if (name := asked.get("request")) not in REQUESTS:
            raise Broken(f"an unknown request '{name}'")
        if self._answering is None:
            from MedVLMReaderLib.worker.answering import Answering  # brings torch

            self._answering = Answering(self.folder)
        return self._answering.requests[name](asked, talk)

    def _failed(self, talk: Talk, error: BaseException) -> None:
        message, to_do, trouble = told(error)
        details = "" if trouble == "mend" else "".join(traceback.format_exception(error))[-8000:]
        talk.say("failed", message=message, to_do=to_do, trouble=trouble, details=details)
        if trouble == "memory" and self._answering is not None:
            self._answering.give_back()


Trouble = Literal["mend", "memory", "protocol", "bug"]


def told(error: BaseException) -> tuple[str, str, Trouble]:
    """What happened, what to do, and what kind of trouble it is."""
    if isinstance(error, ReaderError):
        return str(error), "", "mend"
    if isinstance(error, Broken):
        return f"The request could not be understood: {error}.", "Install the same version in both.", "protocol"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"The Python that reads ({sys.executable}) lacks '{error.name}'.",
            "In Slicer open 'Set-up and models' and look again. Elsewhere install it there: pip install "
            "'medvlmreader[models]'; or choose another Python.", "mend",
        )  # fmt: skip
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return (
            "The memory ran out.",
            "What was written so far is kept. Close other programs, or choose a smaller model or precision.", "memory",
        )  # fmt: skip
    if isinstance(error, OSError):
        why = error.strerror or type(error).__name__
        return f"A file could not be used ({why}).", "Make room on the disk and try again.", "mend"
    return f"This should not have happened: {error!r}.", "Please report it.", "bug"


def main() -> int:
    """Serve the client at stdin and stdout."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print, written in C or in Python
    sys.stdout = sys.stderr
    stay_behind()
    Serving(sys.stdin.buffer, outgoing).run()
    return 0


def stay_behind() -> None:
    """Low priority; and where memory runs out, this program goes and not the one on the screen."""
    if os.name == "nt":
        import ctypes

        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), 0x4000)  # below normal
        return
    with suppress(OSError):
        os.nice(NICER)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
