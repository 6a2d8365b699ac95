"""Sending exported objects to an archive, by C-STORE or STOW-RS. What broke off goes on; nothing is twice.

What was sent is kept beside the files, by UID and target. An object whose answer never came is asked for before it is
sent again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.cstore import Target
from MedVLMReaderLib.export.identity import unvalidated
from MedVLMReaderLib.export.stow import SCHEMES, WebTarget
from MedVLMReaderLib.reading import write_whole

FILE = "sent.json"


class Connection(Protocol):
    """An archive that answers."""

    def has(self, header: Any) -> bool:
        """Whether it says that it has the object."""

    def store(self, path: Path) -> None:
        """Returns once it has the object. ReaderError where it refuses or goes away."""

    def close(self) -> None:
        """Nothing more will be stored."""


def target_of(text: str) -> Target | WebTarget:
    """TITLE@HOST:PORT, or the address of a DICOMweb server. ReaderError for anything else."""
    bare = text.strip()
    return WebTarget(bare.rstrip("/")) if bare.startswith(SCHEMES) else Target.of(bare)


@dataclass(frozen=True)
class Sent:
    """What became of the objects."""

    now: int
    before: int
    """Already there from an earlier try."""


def send(
    files: Sequence[Path], target: Target | WebTarget, journal: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Sent:  # fmt: skip
    """Store the files that the target has not got yet; `journal` is the folder where that is remembered.

    Raises ReaderError where the target cannot be reached, refuses, or goes away; the next call goes on from there.
    """
    book = _Book(journal / FILE, str(target))
    headers = [_header(path) for path in files]
    waiting = [n for n, one in enumerate(headers) if book.state(str(one.SOPInstanceUID)) != "stored"]
    before = len(files) - len(waiting)
    if not waiting:
        return Sent(0, before)
    connection: Connection = target.connected([headers[n] for n in waiting])
    done = 0
    try:
        for n in waiting:
            uid = str(headers[n].SOPInstanceUID)
            if book.state(uid) == "begun" and connection.has(headers[n]):
                before += 1
            else:
                book.note(uid, "begun")
                connection.store(files[n])
                done += 1
            book.note(uid, "stored")
            progress(done + before, len(files))
    except ReaderError as error:
        there = f"{done + before} of {len(files)} are there; the same command goes on from here."
        raise ReaderError(f"{error} {there}") from error
    finally:
        connection.close()
    return Sent(done, before)


class _Book:
    """What was begun and what was stored at a target; written at every step. It holds UIDs and nothing else."""

    def __init__(self, path: Path, target: str) -> None:
        self.path, self.target = path, target
        try:
            self.all: dict[str, dict[str, str]] = json.loads(path.read_bytes())
            if not all(isinstance(one, dict) for one in self.all.values()):
                raise ValueError
        except FileNotFoundError:
            self.all = {}
        except (ValueError, AttributeError) as damage:
            raise ReaderError(f"{path.name} is damaged. Delete it; the archive drops what it has already.") from damage

    def state(self, uid: str) -> str:
        return self.all.get(self.target, {}).get(uid, "")

    def note(self, uid: str, state: str) -> None:
        self.all.setdefault(self.target, {})[uid] = state
        try:
            write_whole({self.path: json.dumps(self.all, indent=1).encode()})
        except OSError as error:
            raise ReaderError(
                f"'{self.path}' cannot be written ({error.strerror}); without it nothing is sent."
            ) from error


def _header(path: Path) -> Any:
    import pydicom

    with unvalidated():
        return pydicom.dcmread(path, stop_before_pixels=True)
