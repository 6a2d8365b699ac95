"""How a client's lines reach the worker: `Transport`, and `SubprocessTransport` for console, batch and tests.

The one on `qt.QProcess` stands beside the Qt view; Testing/worker/transports.py has the tests that each must pass.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

LIBRARY = Path(__file__).resolve().parents[1]
FOREIGN = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH", "DYLD_INSERT_LIBRARIES", "QT_PLUGIN_PATH", "SSL_CERT_FILE",
)  # fmt: skip
"""What one program's launcher sets for itself and breaks another Python with."""


class Transport(Protocol):
    """One child process at a time; it can be started again once `on_exit` was called.

    The client sets the three calls. They come in the thread that uses the client: out of Qt's loop, or out of `poll`.
    """

    on_output: Callable[[bytes], None]
    """Bytes of stdout as they come, cut anywhere. All of them come before `on_exit`."""
    on_error_text: Callable[[str], None]
    """Text of stderr, cut anywhere."""
    on_exit: Callable[[int | None], None]
    """The exit code, negative for a signal where the system says so (any negative number for a crash); None where the
    program could not be started. Called once for each `start`, never from within `start`, `send` or `kill`; after
    it nothing of that process comes any more."""

    def start(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Begin to start a program, with exactly this environment; does not wait. Never raises."""

    def send(self, line: bytes) -> None:
        """Pass a line on; does not wait. Dropped where nothing runs."""

    def end_input(self) -> None:
        """Close the program's stdin once all lines are passed on."""

    def kill(self) -> None:
        """End the program at once, without asking it. `on_exit` follows."""

    def poll(self, seconds: float) -> None:
        """For who waits: deliver what has come; where nothing has, wait up to `seconds` for it."""


class SubprocessTransport:
    """A child process through pipes; threads of its own read them, `poll` delivers. See `Transport`."""

    def __init__(self) -> None:
        nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
        self.on_output: Callable[[bytes], None] = nothing
        self.on_error_text: Callable[[str], None] = nothing
        self.on_exit: Callable[[int | None], None] = nothing
        self.process: subprocess.Popen[bytes] | None = None
        self._arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def start(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        try:
            process = subprocess.Popen(
                argv, env=dict(environment), bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
        except OSError as error:
            self._arrived.put(("error", f"{error.strerror or error}"))
            self._arrived.put(("exit", None))
            return
        self.process, self._lines = process, queue.SimpleQueue()
        assert process.stdin
        assert process.stdout
        assert process.stderr
        readers = [
            threading.Thread(target=self._read, args=(stream, what), daemon=True)
            for stream, what in ((process.stdout, "output"), (process.stderr, "error"))
        ]
        writer = threading.Thread(target=_write, args=(process.stdin, self._lines), daemon=True)
        for thread in (*readers, writer):
            thread.start()
        threading.Thread(target=self._end, args=(process, readers), daemon=True).start()

    def send(self, line: bytes) -> None:
        if self.process:
            self._lines.put(line)

    def end_input(self) -> None:
        self._lines.put(None)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self._lines.put(None)

    def poll(self, seconds: float) -> None:
        with suppress(queue.Empty):
            self._deliver(*self._arrived.get(timeout=max(seconds, 1e-3)))
            while True:
                self._deliver(*self._arrived.get_nowait())

    def _deliver(self, what: str, content: Any) -> None:
        if what == "output":
            self.on_output(content)
        elif what == "error":
            self.on_error_text(content)
        else:
            self.process = None
            self.on_exit(content)

    def _read(self, stream: IO[bytes], what: str) -> None:
        with stream:
            while chunk := stream.read(1 << 16):
                self._arrived.put((what, chunk if what == "output" else chunk.decode(errors="replace")))

    def _end(self, process: subprocess.Popen[bytes], readers: Sequence[threading.Thread]) -> None:
        code = process.wait()
        until = time.monotonic() + 0.5  # a grandchild may hold the pipes open for ever
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
        self._lines.put(None)
        self._arrived.put(("exit", code))


def _write(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with suppress(OSError), stream:
        while (line := lines.get()) is not None:
            stream.write(line)


# ---- What is started ------------------------------------------------------------------------------------------------


def command(python: str) -> list[str]:
    """What starts a worker with an interpreter."""
    return [python, "-P", "-m", "MedVLMReaderLib.worker"]


def environment(python: str, base: Mapping[str, str] | None = None, own: bool | None = None) -> dict[str, str]:
    """The environment for an interpreter; `base` is by default this program's.

    Of another Python's, what a launcher (Slicer's, say) has set for itself is left out. `own`: whether the interpreter
    belongs to this program's installation; None finds out.
    """
    there = dict(os.environ if base is None else base)
    own = is_own(python) if own is None else own
    if not own:
        there = {name: value for name, value in there.items() if name not in FOREIGN}
    if not {"site-packages", "dist-packages"} & set(LIBRARY.parts):  # else that Python must have it installed itself
        path = [str(LIBRARY.parent), *filter(None, [there.get("PYTHONPATH", "")])]
        there["PYTHONPATH"] = os.pathsep.join(path)
    return there | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:replace"}


def is_own(python: str) -> bool:
    """Whether an interpreter is this program's: this very one, PythonSlicer beside it, or one in the same prefix."""
    path = Path(python).absolute()
    if path.stem == "PythonSlicer" or path == Path(sys.executable).absolute():
        return True
    return any(path.is_relative_to(prefix) for prefix in {sys.prefix, sys.exec_prefix})
