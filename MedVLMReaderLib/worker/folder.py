"""The private folder in which arrays pass between client and worker, and what becomes of it when both are dead."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX, MARK = "medvlmreader-", "in-use"
FORGOTTEN_S = 3600.0


class PrivateFolder:
    """A temporary folder that only this user can open, and that is marked as in use while this program lives."""

    def __init__(self) -> None:
        """Raises OSError."""
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._mark = mark(self.path)

    def remove(self) -> None:
        """With all that is in it; nothing happens where it is gone."""
        self._mark.close()
        remove(self.path)


def mark(folder: Path) -> IO[bytes]:
    """Say that a folder is in use, until the file is closed or the program dead. Several may. Raises OSError."""
    file = (folder / MARK).open("ab")
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def remove(folder: Path) -> None:
    """Remove a folder and what is in it; what is written into it meanwhile, too."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.01)


def remove_if_abandoned(folder: Path, patience_s: float = 0.0) -> None:
    """Remove a folder unless somebody uses it; one whose program is just dying is looked at again for a while."""
    until = time.monotonic() + patience_s
    with suppress(OSError):
        while folder.is_dir():
            if _abandoned(folder):
                remove(folder)
                return
            if time.monotonic() >= until:
                return
            time.sleep(0.02)


def remove_abandoned() -> None:
    """Remove the folders of programs that were killed together with their workers."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and _abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Whether nobody uses it. Raises OSError where that cannot be told."""
    if not (folder / MARK).exists():  # one that is just being made has no mark yet
        return time.time() - folder.stat().st_mtime > FORGOTTEN_S
    if os.name == "nt":
        (folder / MARK).unlink()  # not possible while anybody has it open
        return True
    import fcntl

    with (folder / MARK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
