"""The worker's lines through `qt.QProcess`, as Slicer has it; the module `qt` is handed in, never imported here.

Python threads starve under Qt's loop on the desktop, so that the pipes of `transport.SubprocessTransport` would not be
read there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

CLOSING_MS = 2000
"""How long the end of a killed program is waited for, so that Qt does not destroy what still runs."""


class ProcessTransport:
    """A child process that Qt's loop listens to. See `transport.Transport`."""

    def __init__(self, qt: Any, alive: Callable[[], None] = lambda: None) -> None:
        """`alive`: lets the window live while somebody waits in the console, such as `slicer.app.processEvents`."""
        nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
        self.qt, self.alive = qt, alive
        self.on_output: Callable[[bytes], None] = nothing
        self.on_error_text: Callable[[str], None] = nothing
        self.on_exit: Callable[[int | None], None] = nothing
        self.process: Any = None
        self.connected: list[bool] = []
        """Whether each signal was found: tests look at it."""

    def start(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = process = self.qt.QProcess()
        variables = self.qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        process.setProcessEnvironment(variables)
        self.connected = [
            process.connect("readyReadStandardOutput()", self._output),
            process.connect("readyReadStandardError()", self._error),
            process.connect("finished(int,QProcess::ExitStatus)", self._finished),
            process.connect("errorOccurred(QProcess::ProcessError)", self._not_started),
        ]
        process.start(argv[0], list(argv[1:]))

    def send(self, line: bytes) -> None:
        if self.process is not None:
            self.process.write(self.qt.QByteArray(line))

    def end_input(self) -> None:
        if self.process is not None:
            self.process.closeWriteChannel()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def poll(self, seconds: float) -> None:
        """For who waits in the console: Qt's loop goes on meanwhile."""
        if self.process is not None:
            self.process.waitForReadyRead(int(1000 * seconds))
        self.alive()

    def close(self) -> None:
        """End the program and wait a moment for it."""
        process, self.process = self.process, None
        if process is not None:
            with suppress(ValueError):  # Qt has destroyed it already, as when Slicer closes
                process.kill()
                process.waitForFinished(CLOSING_MS)

    def _output(self) -> None:
        if self.process is not None:
            self.on_output(self.process.readAllStandardOutput().data())

    def _error(self) -> None:
        if self.process is not None:
            self.on_error_text(self.process.readAllStandardError().data().decode(errors="replace"))

    def _finished(self, code: int, status: Any) -> None:
        if self.process is None:
            return
        self._output()
        self._error()
        self.process = None
        self.on_exit(code if int(status) == 0 else -(abs(code) or 1))  # of a crash, Qt says the signal's number

    def _not_started(self, error: Any) -> None:
        if int(error) != int(self.qt.QProcess.FailedToStart) or self.process is None:
            return
        text, self.process = self.process.errorString(), None

        def told() -> None:
            self.on_error_text(text)
            self.on_exit(None)

        self.qt.QTimer.singleShot(0, told)
