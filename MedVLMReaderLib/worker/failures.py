"""What went wrong, as `Failed` says it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.worker.events import Failed

KEPT = "What was written so far is kept. Ask again: it starts by itself."


def failure(error: BaseException) -> Failed:
    """Of an error on this side."""
    if isinstance(error, ReaderError):
        return Failed(str(error))
    if isinstance(error, OSError):
        return unwritable(error)
    details = "".join(traceback.format_exception(error))
    return Failed(f"This should not have happened: {error!r}.", "Please report it.", "bug", details=details)


def unwritable(error: OSError) -> Failed:
    """Of the temporary folder."""
    why = error.strerror or type(error).__name__
    return Failed(f"The folder for temporary files could not be used ({why}).", "Make room on its disk and try again.")


def failed_from(said: Mapping[str, Any], words: str) -> Failed:
    """As the worker said it."""
    return Failed(
        str(said["message"]), str(said.get("to_do", "")), said.get("trouble", "bug"), words,
        details=str(said.get("details", "")),
    )  # fmt: skip


def foreign_version(python: str, ours: tuple[str, int], said: Mapping[str, Any]) -> Failed:
    """Of a worker that speaks another protocol."""
    return Failed(
        f"The interpreter '{python}' has MedVLM Reader {said.get('version')} with protocol {said.get('protocol')}; "
        f"this is {ours[0]} with protocol {ours[1]}.",
        "Install the same version in both.", "protocol",
    )  # fmt: skip


def misunderstood(why: str) -> Failed:
    """Of a worker that wrote something else than messages."""
    return Failed(f"The reading program wrote what it should not: {why}.", KEPT, "protocol")


def ended(code: int | None, began: bool, python: str, error_text: str) -> Failed:
    """Of a program that ended by itself."""
    lines = [one.strip() for one in error_text.splitlines() if one.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    if not began:
        message = f"The interpreter '{python}' could not start the reader{last}."
        return Failed(message, "Choose a Python that has MedVLM Reader and torch.", "crash", details=error_text)
    if code in (-9, 137):
        message = "The reading program was ended by the system, most likely because memory ran out."
        return Failed(
            message, f"{KEPT} Close other programs, or choose a smaller precision.", "memory", details=error_text
        )
    name = f"exit code {code}"
    if code is not None and code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
    return Failed(f"The reading program ended unexpectedly ({name}).", KEPT, "crash", details=error_text)
