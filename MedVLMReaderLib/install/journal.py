"""What is remembered of a set-up: that it began, that it ended, what it brought; and where its files lie."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from MedVLMReaderLib import ReaderError

FILE, LOCK, ENVIRONMENT = "set-up.json", "set-up.lock", "environment"


@dataclass(frozen=True)
class Journal:
    """Of the last set-up."""

    state: Literal["never", "begun", "done"] = "never"
    python: str = ""
    """The interpreter that reads."""
    step: str = ""
    """The one that was being worked on."""
    wanted: str = ""
    """Hash of what was asked for."""
    made: str = ""
    """The folder of the environment that set-up made, and may remove."""
    brought: tuple[str, ...] = ()
    """Packages that set-up itself installed."""


def home() -> Path:
    """The folder of this user's MedVLM Reader: `MEDVLM_HOME`, or where the system keeps programs' files."""
    if told := os.environ.get("MEDVLM_HOME"):
        return Path(told).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "MedVLMReader"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "MedVLMReader"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "MedVLMReader"


def load(folder: Path) -> Journal:
    """What a folder remembers. A file that cannot be read counts as none: what is there is looked at anyway."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if said.pop("format") != 1 or said["state"] not in ("never", "begun", "done"):
            return Journal()
        return Journal(**{**said, "brought": tuple(said["brought"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Journal()


def save(folder: Path, journal: Journal) -> None:
    """Remember, whole or not at all. ReaderError where the folder cannot be written."""
    part = folder / f"{FILE}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": 1, **asdict(journal)}, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / FILE)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ReaderError(
            f"'{folder}' cannot be written ({error.strerror or error}). Make room, or set MEDVLM_HOME to another "
            "folder."
        ) from None


def done(folder: Path, **changes: object) -> Journal:
    """The journal with some of it changed, kept."""
    now = replace(load(folder), **changes)  # type: ignore[arg-type]
    save(folder, now)
    return now


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the set-up for this program. ReaderError where another one, which still runs, has it."""
    take(folder)
    try:
        yield
    finally:
        release(folder)


def take(folder: Path) -> None:
    """As `alone`, until `release`."""
    path = folder / LOCK
    for _ in range(2):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if runs(owner := _owner(path)) and owner != os.getpid():
                raise ReaderError(
                    "Another Slicer is setting up MedVLM Reader right now. Wait until it is done, then look again."
                ) from None
            with suppress(OSError):
                path.unlink()
            continue
        except OSError as error:
            raise ReaderError(f"'{folder}' cannot be written ({error.strerror or error}).") from None
        with os.fdopen(number, "w") as file:
            file.write(str(os.getpid()))
        return
    raise ReaderError("Another Slicer is setting up MedVLM Reader right now. Wait until it is done, then look again.")


def release(folder: Path) -> None:
    """Let others set up, where this program holds it."""
    if _owner(folder / LOCK) == os.getpid():
        with suppress(OSError):
            (folder / LOCK).unlink()


def _owner(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def runs(number: int) -> bool:
    """Whether a program of that number runs. Where that cannot be asked, it is taken to."""
    if number <= 0:
        return False
    if os.name == "nt":
        return _runs_on_windows(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _runs_on_windows(number: int) -> bool:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(0x1000, False, number)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == 259  # still active
