"""What is kept of a study that could not be read: what went wrong, in words that name no file and no patient."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.shelf import ERROR

_QUOTED = re.compile(r"'[^'\n]*'")


def error_files(error: Exception, at: str, study: str, names: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """error.json, and what it says in one line."""
    why = said(error, at, names)
    content = {"format": 1, "study": study, "while": at, "error": why, "kind": type(error).__name__}
    if not isinstance(error, ReaderError):
        frames = traceback.extract_tb(error.__traceback__)
        content["where"] = "; ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return {ERROR: json.dumps(content, indent=1, ensure_ascii=False).encode()}, why


def said(error: Exception, at: str, names: Sequence[str]) -> str:
    """The error's words without what may name a patient. Foreign words about a file are not repeated at all."""
    if isinstance(error, ReaderError):
        return nameless(str(error), names)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"Memory ran out while {at}. Read it on a machine with more, or with a smaller --precision."
    if isinstance(error, OSError):
        return f"The scan cannot be read ({error.strerror or type(error).__name__}). Copy or export it again."
    if at == "reading the scan":
        return f"The scan cannot be read: {type(error).__name__}. Copy or export it again."
    return nameless(f"{type(error).__name__} while {at}: {error}", names)


def nameless(text: str, names: Sequence[str]) -> str:
    """The text with every name of a file, and every quotation that holds a part of one, replaced."""
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "the scan") if len(name) >= 3 else text
    parts = {part.lower() for name in names for part in re.split(r"[\\/]", name) if part}
    return _QUOTED.sub(lambda match: "'the scan'" if _names(match.group(), parts) else match.group(), text).replace(
        "''the scan''", "'the scan'"
    )


def _names(quoted: str, parts: set[str]) -> bool:
    inside = quoted[1:-1].lower()
    return "/" in inside or "\\" in inside or any(part in inside for part in parts)
