"""A list of a model's files with sizes and hashes: written last, once all of them are known to be right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from MedVLMReaderLib import ReaderError

FILE = "medvlmreader.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class Mark:
    """How a file is known again."""

    size: int
    """In bytes."""
    sha256: str = ""
    git: str = ""
    """Git's own hash, where the hub gives that and no other."""

    def wrong(self, path: Path) -> str:
        """What is wrong with a file, by all that it is known by; empty where nothing is."""
        if not path.is_file():
            return "it is missing"
        if (size := path.stat().st_size) != self.size:
            return f"it has {size} bytes instead of {self.size}"
        found = hashed(path, git=not self.sha256)
        return "" if found == (self.sha256 or self.git or found) else "its content has changed"


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    name: str
    """Of the model, as the user knows it."""
    revision: str
    files: Mapping[str, Mark]
    precision: str = ""
    """Of the decoder, in a copy that was saved quantised."""
    notes: tuple[str, ...] = ()

    def missing(self, folder: Path) -> list[str]:
        """Files that are not there or of another size: quick, for every start."""
        return [n for n, mark in self.files.items() if not _there(folder / n, mark)]

    def damaged(self, folder: Path) -> dict[str, str]:
        """What is wrong with each file that is not what it was, hashes and all: reads every byte."""
        return {name: wrong for name, mark in self.files.items() if (wrong := mark.wrong(folder / name))}

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """The list in a file; None where there is none. ReaderError where it is damaged."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            files = {str(name): Mark(**mark) for name, mark in plain.pop("files").items()}
            notes = tuple(str(note) for note in plain.pop("notes", ()))
            return cls(**{name: str(value) for name, value in plain.items()}, files=files, notes=notes)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ReaderError(f"'{path}' is damaged ({error}). Get the model again.") from None


def _there(path: Path, mark: Mark) -> bool:
    return path.is_file() and path.stat().st_size == mark.size


def marks(folder: Path) -> dict[str, Mark]:
    """All files right in a folder but the list itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != FILE)
    return {path.name: Mark(path.stat().st_size, hashed(path)) for path in files}


def hashed(path: Path, *, git: bool = False) -> str:
    """SHA-256 of a file, or git's hash of it."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode()) if git else hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
