"""Sending exported objects to an archive by C-STORE. A transfer that broke off goes on; nothing is stored twice.

What was sent is kept beside the files, by UID and target. An object whose answer never came is asked for before it is
sent again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.identity import unvalidated
from MedVLMReaderLib.reading import write_whole

FILE = "sent.json"
CALLER = "MEDVLMREADER"
SECONDS = 30
_TARGET = re.compile(r"(?:(?P<title>[\x21-\x3f\x41-\x5b\x5d-\x7e]{1,16})@)?(?P<host>[^\s@]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Target:
    """An archive that takes C-STORE."""

    host: str
    port: int
    title: str = "ANY-SCP"

    @classmethod
    def of(cls, text: str) -> Target:
        """The target written as TITLE@HOST:PORT or HOST:PORT. ReaderError for anything else."""
        match = _TARGET.fullmatch(text.strip())
        if not match or not 0 < int(match["port"]) < 65536:
            raise ReaderError(f"'{text}' is no archive. Write TITLE@HOST:PORT, for example ORTHANC@127.0.0.1:4242.")
        return cls(match["host"].strip("[]"), int(match["port"]), match["title"] or "ANY-SCP")

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Sent:
    """What became of the objects."""

    now: int
    before: int
    """Already there from an earlier try."""


def send(
    files: Sequence[Path], target: Target, journal: Path, progress: Callable[[int, int], None] = lambda *_: None
) -> Sent:
    """Store the files that the target has not got yet; `journal` is the folder where that is remembered.

    Raises ReaderError where the target cannot be reached, refuses, or goes away; the next call goes on from there.
    """
    book = _Book(journal / FILE, str(target))
    headers = [_header(path) for path in files]
    waiting = [n for n, one in enumerate(headers) if book.state(str(one.SOPInstanceUID)) != "stored"]
    before = len(files) - len(waiting)
    if not waiting:
        return Sent(0, before)
    association = _associated(target, [headers[n] for n in waiting])
    done = 0
    try:
        for n in waiting:
            uid = str(headers[n].SOPInstanceUID)
            if book.state(uid) == "begun" and _is_there(association, headers[n]):
                before += 1
            else:
                book.note(uid, "begun")
                _store(association, files[n], target, done + before, len(files))
                done += 1
            book.note(uid, "stored")
            progress(done + before, len(files))
    finally:
        if association.is_established:
            association.release()
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


def _associated(target: Target, headers: Sequence[Any]) -> Any:
    """An open association for the classes of these objects, and for asking what is there."""
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom import AE
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

    entity = AE(ae_title=CALLER)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
    entity.connection_timeout = SECONDS
    for name in dict.fromkeys(str(one.SOPClassUID) for one in headers):
        entity.add_requested_context(name, ExplicitVRLittleEndian)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate(target.host, target.port, ae_title=target.title)
    if association.is_established:
        return association
    why = "refused the connection" if association.is_rejected else "cannot be reached"
    raise ReaderError(
        f"{target} {why}. Check its name, address and port, and that it knows '{CALLER}'; then try again."
    )


def _is_there(association: Any, header: Any) -> bool:
    """Whether the target says that it has the object."""
    from pydicom.dataset import Dataset
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(asked, keyword, header[keyword].value)
    try:
        answers = list(association.send_c_find(asked, StudyRootQueryRetrieveInformationModelFind))
    except (RuntimeError, ValueError):  # it does not answer such questions; storing again changes nothing there
        return False
    return any(status and status.Status in (0xFF00, 0xFF01) for status, _ in answers)


def _store(association: Any, path: Path, target: Target, done: int, total: int) -> None:
    import pydicom

    again = f"{done} of {total} are there; the same command goes on from here."
    try:
        with unvalidated():
            status = association.send_c_store(pydicom.dcmread(path))
    except RuntimeError as error:
        raise ReaderError(f"The connection to {target} was lost. {again}") from error
    except ValueError as error:
        raise ReaderError(f"{target} does not take objects of this kind ({path.name}). {again}") from error
    code = status.get("Status") if status else None
    if code is None:
        raise ReaderError(f"The connection to {target} was lost. {again}")
    if code != 0 and code >> 12 != 0xB:
        raise ReaderError(f"{target} refused {path.name} (status {code:04X}). {again}")
