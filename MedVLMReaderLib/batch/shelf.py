"""Where the readings of many studies are kept: a folder a study, whole or not there at all.

A folder is written under another name and renamed, or, where a store has no renaming, its list of files comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reading import write_whole

STUDY, ERROR, RUN = "study.json", "error.json", "batch.json"
"""What a complete reading has, what a failed one has, and how all of them were asked for."""
_ASIDE = ".part-"
_BUSY = "Another run is writing into '{}'. Wait for its end, or choose another --out."


class Shelf(Protocol):
    """Where readings are kept; `study` is an id."""

    def complete(self, study: str) -> bool:
        """Whether a study was read, and all that was written of it is there."""

    def begin(self, study: str) -> None:
        """Mark a study as being read, for whoever goes on after a crash."""

    def put(self, study: str, files: dict[str, bytes]) -> None:
        """Keep all files of a study at once, in place of an older folder. Names may have one folder in them."""

    def drop(self, study: str) -> None:
        """Take the mark of `begin` away."""

    def begun(self) -> set[str]:
        """Studies that were begun and never ended."""

    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""

    def write(self, files: dict[str, bytes]) -> None:
        """Keep files of a run, or beside those of a study, each whole and in order."""

    def studies(self) -> list[str]:
        """Everything that has been read or has failed, in order."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else writes while it is entered. ReaderError where somebody does."""


def shelf(place: str | Path) -> Shelf:
    """The shelf at a folder, or at a URL that fsspec knows (s3://, gs://, memory:// ...)."""
    return StoreShelf(str(place)) if "://" in str(place) else FolderShelf(Path(place).expanduser())


def file_list(files: dict[str, bytes]) -> dict[str, int]:
    """Name -> bytes, for `complete`."""
    return {name: len(content) for name, content in sorted(files.items())}


class FolderShelf:
    """A folder of this machine, or one that several share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def complete(self, study: str) -> bool:
        try:
            sizes = json.loads((self.folder / study / STUDY).read_bytes())["files"]
            return all((self.folder / study / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def begin(self, study: str) -> None:
        aside = self._aside(study)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def put(self, study: str, files: dict[str, bytes]) -> None:
        aside, place = self._aside(study), self.folder / study
        self.begin(study)
        for name, content in files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            with (aside / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in {(aside / name).parent for name in files} | {aside}:
            _settle(folder)
        if place.exists():  # a failed or incomplete one: a crash before the next line leaves it to be read again
            old = self.folder / f"{_ASIDE}{uuid.uuid4().hex}"
            os.replace(place, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(aside, place)
        _settle(self.folder)

    def drop(self, study: str) -> None:
        shutil.rmtree(self._aside(study), ignore_errors=True)

    def begun(self) -> set[str]:
        return {path.name.removeprefix(_ASIDE) for path in self.folder.glob(f"{_ASIDE}*")}

    def get(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def write(self, files: dict[str, bytes]) -> None:
        for name in files:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole({self.folder / name: content for name, content in files.items()})

    def studies(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._unwritable():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("wb")
        with lock:
            if not _locked(lock):
                raise ReaderError(_BUSY.format(self.folder))
            yield

    @contextlib.contextmanager
    def _unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise ReaderError(f"'{self.folder}' cannot be written ({why}). Choose another place with --out.") from error

    def _aside(self, study: str) -> Path:
        return self.folder / f"{_ASIDE}{study}"


def _settle(folder: Path) -> None:
    """Have the disk keep the names in a folder, where the system can be asked for that."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _locked(file: IO[bytes]) -> bool:
    """Whether the file was free; it stays locked until it is closed or the program dies, whatever kills it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a network disk without locks
    return True


class StoreShelf:
    """A store that fsspec knows: objects come whole, a study's list of files comes last and makes it complete."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError as missing:
            raise ReaderError(
                "A URL as --out needs the package 'fsspec'. Run: pip install 'medvlmreader[batch]'"
            ) from missing
        try:
            self.store, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ReaderError(f"'{url}' is no place that fsspec can write to: {error}") from error
        self.root = self.root.rstrip("/")

    def complete(self, study: str) -> bool:
        content = self.get(f"{study}/{STUDY}")
        try:
            sizes = json.loads(content or b"{}")["files"]
            return all(self.store.size(f"{self.root}/{study}/{name}") == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def begin(self, study: str) -> None:
        """Nothing: an object cannot be half there."""

    def put(self, study: str, files: dict[str, bytes]) -> None:
        place = f"{self.root}/{study}"
        if self.store.exists(place):
            for last in (STUDY, ERROR):
                if self.store.exists(f"{place}/{last}"):
                    self.store.rm(f"{place}/{last}")
            self.store.rm(place, recursive=True)
        for name in sorted(files, key=lambda name: name in (STUDY, ERROR)):
            self.write({f"{study}/{name}": files[name]})

    def drop(self, study: str) -> None:
        """Nothing was begun."""

    def begun(self) -> set[str]:
        return set()

    def get(self, name: str) -> bytes | None:
        try:
            content: Any = self.store.cat_file(f"{self.root}/{name}")
        except OSError:
            return None
        return bytes(content)

    def write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.store.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            self.store.pipe_file(f"{self.root}/{name}", content)

    def studies(self) -> list[str]:
        found = self.store.ls(self.root, detail=True) if self.store.exists(self.root) else []
        return sorted(one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        yield  # stores have no locks; two runs into one write the same bytes
