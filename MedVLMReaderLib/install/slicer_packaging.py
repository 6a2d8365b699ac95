"""Slicer's own way to run pip (`slicer.packaging`, from 5.12 on) as a transport, so that it knows of the install."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


class PackagingTransport:
    """Runs `python -m pip install ...` by `slicer.packaging.pip_install`. See `worker.transport.Transport`.

    What Slicer has begun cannot be ended: `kill` only has the end count as one that was wanted.
    """

    def __init__(self, packaging: Any) -> None:
        """`packaging`: the module."""
        nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
        self.packaging = packaging
        self.on_output: Callable[[bytes], None] = nothing
        self.on_error_text: Callable[[str], None] = nothing
        self.on_exit: Callable[[int | None], None] = nothing
        self._waiting: list[tuple[str, int]] = []

    def start(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        arguments = list(argv[argv.index("install") + 1 :])
        if self.packaging.isPipInstallInProgress():
            self._waiting.append(("Another extension is installing packages right now. Wait until it is done.\n", 1))
            return
        before = dict(os.environ)
        os.environ.update({name: value for name, value in environment.items() if name.startswith(("PIP_", "HTTP"))})
        try:
            self.packaging.pip_install(
                arguments, blocking=False, show_progress=False, requester="MedVLM Reader", logCallback=self._line,
                completedCallback=lambda code: self._waiting.append(("", int(code))),
            )  # fmt: skip
        except RuntimeError as error:
            self._waiting.append((f"ERROR: {error}\n", 1))
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)

    def send(self, line: bytes) -> None:
        """Nothing: pip is asked nothing."""

    def end_input(self) -> None:
        """Nothing: its input is closed."""

    def kill(self) -> None:
        """Nothing, see above."""

    def poll(self, seconds: float) -> None:  # noqa: ARG002
        """Deliver an end that has come."""
        with suppress(IndexError):
            text, code = self._waiting.pop(0)
            if text:
                self.on_error_text(text)
            self.on_exit(code)

    def _line(self, line: str) -> None:
        self.on_output(f"{line}\n".encode())
