"""Which studies there are to read: those of a folder, of a csv, or volumes handed in. Ids are opaque."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom import is_dicom
from MedVLMReaderLib.dicom.chosen import THINNEST, SeriesStudy, chosen_series
from MedVLMReaderLib.dicom.index import Index
from MedVLMReaderLib.files import BESIDE, SCANS, promised_voxels, read
from MedVLMReaderLib.room import check_room
from MedVLMReaderLib.volume import Volume

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class FileStudy:
    """A scan in a file, or in a DICOM folder that holds one examination."""

    id: str
    path: Path
    series: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The path, and its parts."""
        return (str(self.path), str(self.path.absolute()), *self.path.parts[-3:], _stem(self.path.name))

    def read(self) -> Volume:
        """Its voxels; ReaderError where it is no scan, or larger than the memory that is free."""
        check_room(promised_voxels(self.path))
        if self.path.is_dir() and self.series is None:
            return _only_study(self.path).read()
        return read(self.path, self.series)

    @contextmanager
    def source(self) -> Iterator[Path | Sequence[Path]]:
        """The path, where it is DICOM."""
        yield self.path if self.path.is_dir() or is_dicom(self.path) else ()


@dataclass(frozen=True, eq=False)
class GivenStudy:
    """A volume that is in memory already."""

    id: str
    volume: Volume = field(repr=False)
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    """Of the DICOM series that it was loaded from, where that is known."""

    def read(self) -> Volume:
        """The volume itself."""
        return self.volume

    @contextmanager
    def source(self) -> Iterator[Sequence[Path]]:
        """The files that it was loaded from."""
        yield self.files


@dataclass(frozen=True)
class LostStudy:
    """Something that was found and cannot be read."""

    id: str
    path: Path
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        """The path, and its parts."""
        return (str(self.path), *self.path.parts[-3:])

    def read(self) -> Volume:
        """Never."""
        raise ReaderError(self.why)

    @contextmanager
    def source(self) -> Iterator[Sequence[Path]]:
        """Nothing."""
        yield ()


AnyStudy = FileStudy | GivenStudy | LostStudy | SeriesStudy


def opaque(*parts: str) -> str:
    """An id that tells nothing of its parts to whoever does not know them, the same on every machine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def given(volumes: Sequence[Volume]) -> list[AnyStudy]:
    """Volumes handed in; equal ones, and those without a source, are told apart by their place in the list."""
    ids: list[str] = []
    for volume in volumes:
        base = opaque("volume", volume.source or volume.key)
        count = sum(id.partition("-")[0] == base for id in ids)
        ids.append(f"{base}-{count + 1}" if count else base)
    return [GivenStudy(id, volume) for id, volume in zip(ids, volumes, strict=True)]


def studies_of(place: Path, index: Index | None = None, rule: str = THINNEST) -> list[AnyStudy]:
    """The studies that a folder or a csv names. ReaderError where there is none, or the csv is wrong."""
    if not place.exists():
        raise ReaderError(f"'{place}' does not exist. Check the path.")
    found = of_csv(place) if place.suffix.lower() == ".csv" else of_folder(place, index, rule)
    if not found:
        raise ReaderError(f"'{place}' holds no scan. Choose a folder with DICOM, NIfTI, NRRD or MHA files, or a csv.")
    return found


def of_folder(folder: Path, index: Index | None = None, rule: str = THINNEST) -> list[AnyStudy]:
    """Every scan file under a folder, and of each DICOM examination one series, see `chosen_series`.

    DICOM files that say so and cannot be read are a study that fails, or a note where others beside them can be."""
    if not folder.is_dir():
        return [FileStudy(opaque("file", folder.name), folder)]
    kept = index or Index(None)
    kept.refresh(folder)
    found: list[AnyStudy] = []
    for path in _scan_files(folder):
        found.append(FileStudy(opaque("file", path.relative_to(folder).as_posix()), path))
    found += chosen_series(kept.series(folder), rule)
    for lost, count in kept.lost(folder):
        damaged = (
            f"The folder holds {count} damaged DICOM file{'' if count == 1 else 's'} and no series that can be read."
        )
        found.append(LostStudy(opaque("file", lost.relative_to(folder).as_posix()), lost, f"{damaged} Copy it again."))
    return found


def _scan_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            ending = name.lower()
            if ending.endswith(SCANS) and not ending.endswith(BESIDE):
                yield Path(root) / name


def _only_study(folder: Path) -> SeriesStudy:
    with Index(None) as index:
        index.refresh(folder)
        found = chosen_series(index.series(folder))
    if len(found) == 1:
        return found[0]
    if found:
        raise ReaderError(f"The folder holds {len(found)} examinations. Give each a row with its series.")
    raise ReaderError("The folder holds no DICOM series that can be read. Choose the folder of a scan.")


def of_csv(table: Path) -> list[AnyStudy]:
    """The scans that a csv lists: `path` (from the csv's folder), and if wanted `study` (its id) and `series`."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReaderError(f"'{table}' is not UTF-8 text. Save it as CSV UTF-8.") from error
    except OSError as error:
        raise ReaderError(f"'{table}' cannot be read ({error.strerror}).") from error
    first = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    columns = {(name or "").strip().lower(): name for name in rows.fieldnames or []}
    if "path" not in columns:
        raise ReaderError(f"'{table}' has no column 'path'. Its first line must name the columns: path, study, series.")
    found: dict[str, int] = {}
    studies: list[AnyStudy] = []
    for row in rows:
        number = rows.line_num
        cells = {name: (row.get(own) or "").strip() for name, own in columns.items()}
        if not any(cells.values()):
            continue
        study = _of_row(cells, table, number)
        if study.id in found:
            what = f"the id '{study.id}'" if cells.get("study") else "the same scan"
            raise ReaderError(
                f"Rows {found[study.id]} and {number} of '{table}' have {what}. Each study needs its own."
            )
        found[study.id] = number
        studies.append(study)
    return studies


def _of_row(cells: dict[str, str], table: Path, number: int) -> FileStudy:
    if not cells["path"]:
        raise ReaderError(f"Row {number} of '{table}' has no path.")
    path, series = table.parent / Path(cells["path"]).expanduser(), cells.get("series") or None
    id = cells.get("study") or opaque("file", Path(cells["path"]).as_posix(), series or "")
    if not _ID.fullmatch(id):
        raise ReaderError(
            f"The id in row {number} of '{table}' cannot name a folder. Use letters, digits, - and _, at most 64."
        )
    return FileStudy(id, path, series)


def questions_of(path: Path) -> tuple[str, ...]:
    """The questions of a text file, one a line; empty lines and lines that begin with # are left out."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ReaderError(f"'{path}' is not UTF-8 text. Save it as plain text, UTF-8.") from error
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}). Check the path.") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found:
        raise ReaderError(f"'{path}' holds no question. Write one a line.")
    return found


def _stem(name: str) -> str:
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem
