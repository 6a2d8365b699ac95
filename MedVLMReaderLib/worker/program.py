"""`Program`: the worker's process as a client sees it, from its first message to its end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib import __version__
from MedVLMReaderLib.worker.events import Exited, Failed
from MedVLMReaderLib.worker.failures import ended, foreign_version, misunderstood
from MedVLMReaderLib.worker.protocol import VERSION, Broken, Lines, line, message
from MedVLMReaderLib.worker.transport import Transport, command, environment

STARTING_S = 120.0
"""A program that has not said hello by then is killed."""
ERROR_TEXT = 8000
"""Letters that are kept of what the worker and its libraries print."""

State = Literal["off", "starting", "ready", "ending"]


class Program:
    """Starts, greets, understands and ends one process at a time."""

    def __init__(
        self,
        transport: Transport,
        python: str,
        base: Mapping[str, str] | None,
        on_ready: Callable[[], None],
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[Exited, Failed], None],
    ) -> None:
        """`on_message` may raise `Broken`: the program is then ended. `on_end` is told what to say of an end that
        nobody wanted."""
        self.transport, self.python, self.base = transport, python, base
        self.on_ready, self.on_message, self.on_end = on_ready, on_message, on_end
        transport.on_output, transport.on_error_text, transport.on_exit = self._output, self._printed, self._exited
        self.state: State = "off"
        self.pid = 0
        """Of the last one that said hello; 0 where none has since the last start."""
        self.error_text = ""
        self._folder = Path()
        self._lines, self._inbox = Lines(), deque[bytes]()
        self._since, self._taking, self._wanted = 0.0, False, False
        self._broken: Failed | None = None

    def start(self, folder: Path) -> None:
        """Begin to start; `on_ready` or `on_end` follows."""
        self.state, self._since, self._folder = "starting", time.monotonic(), folder
        self.pid, self.error_text, self._wanted, self._broken, self._lines = 0, "", False, None, Lines()
        self._inbox.clear()
        self.transport.start(command(self.python), environment(self.python, self.base))

    def send(self, content: Mapping[str, Any]) -> None:
        """Pass a message on. ReaderError where it is too long."""
        if self.state == "ready":
            self.transport.send(line(content))

    def kill(self) -> None:
        """End it; `on_end` follows."""
        if self.state in ("starting", "ready"):
            self.state, self._wanted = "ending", True
            self.transport.kill()

    def watch(self) -> None:
        """End it where it does not begin."""
        if self.state == "starting" and time.monotonic() - self._since > STARTING_S:
            self._break(misunderstood(f"nothing within {STARTING_S:.0f} seconds"))

    def take(self) -> None:
        """Understand what has come. Where a listener raises or asks for more meanwhile, nothing is lost."""
        if self._taking:
            return
        self._taking = True
        try:
            while self._inbox and self.state in ("starting", "ready"):
                try:
                    self._understand(self._inbox.popleft())
                except Broken as broken:
                    self._break(misunderstood(str(broken)))
        finally:
            self._taking = False

    def _output(self, chunk: bytes) -> None:
        broken = None
        try:
            self._inbox.extend(self._lines.take(chunk))
        except Broken as wrong:
            broken = misunderstood(str(wrong))
        self.take()
        if broken:
            self._break(broken)

    def _printed(self, text: str) -> None:
        self.error_text = (self.error_text + text)[-ERROR_TEXT:]

    def _break(self, failed: Failed) -> None:
        """End what cannot be understood."""
        if self.state in ("starting", "ready"):
            self.state, self._broken = "ending", failed
            self.transport.kill()

    def _understand(self, one: bytes) -> None:
        if self.state == "ready":
            self.on_message(message(one))
            return
        try:
            said = message(one)
        except Broken:  # what an interpreter prints before the worker begins
            self._printed(one[:200].decode(errors="replace") + "\n")
            return
        if said.get("event") == "hello":
            self._greet(said)

    def _greet(self, said: dict[str, Any]) -> None:
        if said.get("protocol") != VERSION:
            self._break(foreign_version(self.python, (__version__, VERSION), said))
            return
        self.state, self.pid = "ready", int(said.get("pid", 0))
        self.send({"request": "hello", "id": 0, "protocol": VERSION, "folder": str(self._folder)})
        self.on_ready()

    def _exited(self, code: int | None) -> None:
        self.take()
        failed = self._broken or ended(code, self.pid != 0, self.python, self.error_text)
        self.state, self._broken = "off", None
        self._inbox.clear()
        self.on_end(Exited(code, self._wanted), replace(failed, details=failed.details or self.error_text))
