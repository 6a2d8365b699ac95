"""A small index of the DICOM files under a folder, so that a tree of thousands is looked through once.

It holds paths, sizes and what tells one series from another: hashes of UIDs and of patients, no name, no number of a
person. What the series' own description says is kept, as `medvlmreader read` shows it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.chosen import Indexed, hashed, indexed, series_key
from MedVLMReaderLib.dicom.pixels import pictures
from MedVLMReaderLib.dicom.series import Stack, depths, parts
from MedVLMReaderLib.dicom.slices import Slice, is_dicom, slices_of
from MedVLMReaderLib.thumbnail import small_png
from MedVLMReaderLib.volume import windowed

FORMAT = 1
ENDINGS = (".dcm", ".dicom", ".ima")
"""Endings of files that say they are DICOM, even where their first bytes do not."""
_TABLES = """
create table if not exists file (
    folder text not null, name text not null, size integer not null, changed integer not null, kind text not null,
    series text, primary key (folder, name)) without rowid;
create index if not exists file_series on file (series);
create table if not exists series (
    series text not null, part integer not null, study text not null, number integer,
    description text not null, modality text not null, plane text not null, slices integer not null,
    spacing_mm real not null, extent_mm real not null, voxels integer not null, localizer integer not null,
    thumbnail blob, primary key (series, part));
"""
_COLUMNS = (
    "series", "part", "study", "number", "description", "modality", "plane", "slices", "spacing_mm", "extent_mm",
    "voxels", "localizer",
)  # fmt: skip
_PICTURE, _OTHER, _DAMAGED = "picture", "other", "damaged"


class Index:
    """The index in a file, or with None in memory. Use as a context, or close it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            self.base = self._opened()
        except (sqlite3.DatabaseError, OSError) as error:
            raise ReaderError(
                f"The index '{path}' cannot be used ({error}). Delete it or choose another with --index."
            ) from error
        self.parsed = 0
        """Files whose headers `refresh` had to read."""

    def _opened(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        base = sqlite3.connect(self.path or ":memory:")
        if base.execute("pragma user_version").fetchone()[0] not in (0, FORMAT):
            base.executescript("drop table if exists file; drop table if exists series;")  # it can be found again
        base.executescript(_TABLES + f"pragma user_version = {FORMAT};")
        return base

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.base.close()

    def refresh(self, folder: Path, progress: Any = lambda _: None) -> None:
        """Bring it up to date with what lies under a folder. Only files that are new or of another size or time are
        opened. ReaderError where the folder may not be looked through."""
        root = folder.absolute()
        known = {
            (where, name): (size, changed, series)
            for where, name, size, changed, series in self.base.execute(
                "select folder, name, size, changed, series from file where folder = ? or substr(folder, 1, ?) = ?",
                (str(root), len(str(root)) + 1, f"{root}{os.sep}"),
            )
        }
        touched: set[str] = set()
        fresh: dict[tuple[str, str], list[Slice]] = {}
        with self.base:
            for where, entry in _walk(root):
                key, state = (where, entry.name), entry.stat()
                before = known.pop(key, None)
                if before is not None and before[:2] == (state.st_size, state.st_mtime_ns):
                    continue
                touched |= {before[2]} if before and before[2] else set()
                kind, slices = _looked_at(Path(entry.path))
                series = series_key(slices[0]) if slices else None
                self.parsed += kind != _OTHER or slices != []
                progress(entry.path)
                self.base.execute(
                    "insert or replace into file values (?, ?, ?, ?, ?, ?)",
                    (*key, state.st_size, state.st_mtime_ns, kind, series),
                )
                if series:
                    fresh[key] = slices
                    touched.add(series)
            for key, (_, _, series) in known.items():
                self.base.execute("delete from file where folder = ? and name = ?", key)
                touched |= {series} if series else set()
            for series in sorted(touched):
                self._stack(series, fresh)

    def _stack(self, series: str, fresh: dict[tuple[str, str], list[Slice]]) -> None:
        """Work a series out anew from all of its files."""
        self.base.execute("delete from series where series = ?", (series,))
        slices: list[Slice] = []
        for where, name in self.base.execute(
            "select folder, name from file where series = ? order by folder, name", (series,)
        ).fetchall():
            slices += fresh.get((where, name)) or _looked_at(Path(where, name))[1]
        for stack in parts(slices) if slices else []:
            self.base.execute(
                f"insert into series values ({', '.join('?' * 13)})", (*_row(indexed(stack)), _picture(stack))
            )

    def series(self, folder: Path) -> list[Indexed]:
        """What lies under a folder, by study and number, with its files and how many beside them are damaged."""
        root = str(folder.absolute())
        under, bound = "(folder = ? or substr(folder, 1, ?) = ?)", (root, len(root) + 1, root + os.sep)
        paths: dict[str, list[Path]] = {}
        damaged: dict[str, int] = {}
        for where, name, kind, series in self.base.execute(
            f"select folder, name, kind, series from file where kind <> ? and {under} order by folder, name",
            (_OTHER, *bound),
        ):
            if series:
                paths.setdefault(series, []).append(Path(where, name))
            elif kind == _DAMAGED:
                damaged[where] = damaged.get(where, 0) + 1
        rows = self.base.execute(
            f"select {', '.join(_COLUMNS)} from series order by study, number, series, part"
        ).fetchall()
        return [_indexed(row, paths[row[0]], damaged) for row in rows if row[0] in paths]

    def lost(self, folder: Path) -> list[tuple[Path, int]]:
        """Folders with damaged DICOM files and no series, and how many."""
        root = str(folder.absolute())
        counts = self.base.execute(
            "select folder, sum(kind = ?), sum(series is not null) from file group by folder order by folder",
            (_DAMAGED,),
        ).fetchall()
        return [
            (Path(where), int(damaged)) for where, damaged, good in counts
            if damaged and not good and (where == root or where.startswith(root + os.sep))
        ]  # fmt: skip

    def thumbnail(self, one: Indexed) -> bytes | None:
        """PNG of the middle slice; None where its pixels could not be read."""
        row = self.base.execute(
            "select thumbnail from series where series = ? and part = ?", (one.series, one.part)
        ).fetchone()
        return row[0] if row else None


def _indexed(row: Sequence[Any], paths: Sequence[Path], damaged: dict[str, int]) -> Indexed:
    beside = sum(damaged.get(where, 0) for where in {str(path.parent) for path in paths})
    return replace(Indexed(*row), localizer=bool(row[11]), paths=tuple(paths), damaged=beside)


def default_index(folder: Path) -> Path:
    """Where the index of a folder is kept: $MEDVLMREADER_CACHE, else the user's cache; named by a hash."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    cache = Path(os.environ.get("MEDVLMREADER_CACHE") or Path(home) / "medvlmreader")
    return cache / "dicom" / f"{hashed(str(folder.absolute()))}.sqlite"


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(folder, entry) of every file below, each folder's in order of names."""
    waiting = [str(root)]
    while waiting:
        where = waiting.pop()
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            raise ReaderError(
                "A folder inside may not be read by this user. Ask for permission or copy it elsewhere."
            ) from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_file():
                yield where, entry


def _looked_at(path: Path) -> tuple[str, list[Slice]]:
    """What a file is, and its placed pictures."""
    if not is_dicom(path):
        return (_DAMAGED if path.name.lower().endswith(ENDINGS) else _OTHER), []
    try:
        return _PICTURE, slices_of(path)[0]
    except ReaderError:
        return _DAMAGED, []


def _row(one: Indexed) -> tuple[Any, ...]:
    """In the order of the table."""
    return tuple(getattr(one, name) for name in _COLUMNS)


def _picture(stack: Stack) -> bytes | None:
    slices = [stack.slices[n] for n in np.argsort(depths(stack.slices), kind="stable")]
    middle = slices[len(slices) // 2]
    try:
        pixels = pictures([middle])[0]
    except ReaderError:
        return None
    low, high = (-160.0, 240.0) if middle.header.modality == "CT" else np.percentile(pixels, (1, 99))
    spacing = np.array([np.linalg.norm(middle.down), np.linalg.norm(middle.across)])
    return small_png(windowed(pixels, float(high - low), float(high + low) / 2), spacing)
