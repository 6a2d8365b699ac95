"""DICOM series under a path: found, listed, and the one that is meant read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.series import (
    Series,
    Stack,
    by_series,
    counted,
    depths,
    key_of,
    parts,
    volume_of,
    with_damaged,
)  # fmt: skip
from MedVLMReaderLib.dicom.slices import Slice, is_dicom, slices_of
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.voxels import MIN_SLICES


@dataclass(frozen=True, eq=False)
class _Found:
    """The pictures under a path."""

    slices: list[Slice]
    unplaced: int
    """Pictures without a place in the patient."""
    damaged: int
    """Files that could not be opened or parsed."""


@dataclass(frozen=True, eq=False)
class SeriesFiles:
    """A volume on disk by its opaque key, not yet read."""

    key: str
    """What `Volume.source` is once it is read."""
    series: Series
    files: tuple[Path, ...]
    """In order of place; a file of many frames once."""
    _stack: Stack

    def volume(self) -> Volume:
        """As `read_series` reads it."""
        return volume_of(self._stack)


def series_files(place: str | Path | Sequence[str | Path], series: str | None = None) -> tuple[SeriesFiles, ...]:
    """Every volume under a folder, or among a list of files such as Slicer's database names; `series` as `read_series`.

    Raises ReaderError where there is none, or a listed file is missing.
    """
    if isinstance(place, str | Path):
        path = Path(place).expanduser()
        stacks = _stacks(path, series)[0]
        stacks = [_chosen(stacks, series, path)] if series is not None else stacks
    else:
        for one in place:
            check_readable(Path(one))
        stacks = [stack for group in by_series(_listed(place)) for stack in parts(group)]
    if not stacks:
        raise ReaderError("None of the files is a slice of a DICOM scan. Choose the files of the series that was read.")
    return tuple(_with_files(stack) for stack in sorted(stacks, key=_by_number))


def files_of(place: str | Path | Sequence[str | Path], uid: str) -> tuple[Path, ...]:
    """Every file under a folder, or among a list, that says it is of a series: of whatever patient or part."""
    slices = _found(Path(place).expanduser()).slices if isinstance(place, str | Path) else _listed(place)
    return tuple(dict.fromkeys(one.path for one in slices if one.header.uid == uid))


def _listed(paths: Sequence[str | Path]) -> list[Slice]:
    return [one for path in paths for one in _slices_or_none(Path(path))[0] or []]


def _with_files(stack: Stack) -> SeriesFiles:
    ordered = [stack.slices[n] for n in np.argsort(depths(stack.slices), kind="stable")]
    return SeriesFiles(key_of(stack), stack.series, tuple(dict.fromkeys(one.path for one in ordered)), stack)


def list_series(path: str | Path) -> list[Series]:
    """The volumes under a folder, or those of the series that a file belongs to, by series number.

    Raises ReaderError where there are none.
    """
    return [stack.series for stack in _stacks(Path(path).expanduser(), None)[0]]


def read_series(path: str | Path, series: str | None = None) -> Volume:
    """One series under a folder, or the series of a file among its neighbours in the same folder.

    A multi-frame file is read alone. `series` is a number, a UID or a unique part of it, each with ":2" for the second
    part. Slices in order of place, patient frame from their headers. Raises ReaderError where no one volume comes out.
    """
    place = Path(path).expanduser()
    stacks, found = _stacks(place, series)
    stack = _chosen(stacks, series, place)
    try:
        volume = volume_of(stack)
    except ReaderError as error:
        name = _names(stacks)[stacks.index(stack)]
        raise ReaderError(f"Series {name} of '{place}' cannot be read. {error}") from error
    return with_damaged(volume, found.damaged)


def check_readable(place: Path) -> None:
    """Raises ReaderError where a file or folder is missing, locked or empty."""
    try:
        exists = place.exists()
    except OSError:
        exists = False
    if not exists:
        raise ReaderError(f"'{place}' does not exist. Check the path.")
    if not os.access(place, os.R_OK | os.X_OK if place.is_dir() else os.R_OK):
        raise ReaderError(f"'{place}' may not be read by this user. Ask for permission or copy it elsewhere.")
    if place.is_file() and place.stat().st_size == 0:
        raise ReaderError(f"'{place}' is empty. Copy or export it again.")


def _stacks(place: Path, series: str | None) -> tuple[list[Stack], _Found]:
    """All volumes to choose from, by number; for a file, those that hold it unless another series is named."""
    if place.name.upper() == "DICOMDIR" and place.is_file():
        place = place.parent  # the index of a disc stands for the disc
    check_readable(place)
    found = _found(place)
    groups = by_series(found.slices)
    if place.is_file() and series is None:
        groups = [group for group in groups if any(one.path == place for one in group)]
    stacks = [stack for group in groups for stack in parts(group)]
    if place.is_file() and series is None:
        stacks = [stack for stack in stacks if any(one.path == place for one in stack.slices)]
    if not stacks:
        raise ReaderError(_nothing(place, found, groups))
    return sorted(stacks, key=_by_number), found


def _by_number(stack: Stack) -> tuple[float, str, int]:
    one = stack.series
    return (float("inf") if one.number is None else one.number, one.uid, one.part)


def _found(place: Path) -> _Found:
    """Every placed picture under a folder, or in the folder of a file."""
    if place.is_file() and not is_dicom(place):
        return _Found([], 0, 0)
    if place.is_file():
        own, picture = _slices_or_none(place)
        if own is None:
            raise ReaderError(f"The DICOM header of '{place}' is damaged. Copy or export the series again.")
        if not own or any(one.frame is not None for one in own):
            return _Found(own, int(picture and not own), 0)
        paths: Iterator[Path] = (path for path in sorted(place.parent.iterdir()) if path.is_file())
    else:
        paths = _under(place)
    slices: list[Slice] = []
    unplaced = damaged = 0
    for path in paths:
        if os.access(path, os.R_OK) and not is_dicom(path):
            continue
        own, picture = _slices_or_none(path)
        damaged += own is None
        slices += own or []
        unplaced += picture and not own
    return _Found(slices, unplaced, damaged)


def _slices_or_none(path: Path) -> tuple[list[Slice] | None, bool]:
    try:
        return slices_of(path)
    except ReaderError:
        return None, False


def _under(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        yield from (Path(root) / name for name in sorted(files))


def _refuse(error: OSError) -> None:
    raise ReaderError(
        "A folder inside may not be read by this user. Ask for permission or copy it elsewhere."
    ) from error


def _nothing(place: Path, found: _Found, groups: list[list[Slice]]) -> str:
    most = max((len(group) for group in groups), default=0)
    if most:
        return (
            f"'{place}' holds only {counted(most, 'slice')} of a series; a volume needs at least {MIN_SLICES} "
            "of one size and direction. Choose the folder with the whole series."
        )
    if found.unplaced:
        return (
            f"'{place}' holds {counted(found.unplaced, 'DICOM picture')} without a place in the patient (screenshots, "
            "X-rays, colour pictures); a scan of slices is needed."
        )
    if found.damaged:
        return f"'{place}' holds {counted(found.damaged, 'damaged DICOM file')} and no other. Copy or export it again."
    return f"'{place}' holds no DICOM images. Choose the folder of a scan, or a NIfTI, NRRD or MHA file."


def _names(stacks: Sequence[Stack]) -> list[str]:
    """The shortest sure name of each: its number where no other series has it, else the tail of its UID."""
    owners: dict[int | None, set[str]] = {}
    for stack in stacks:
        owners.setdefault(stack.series.number, set()).add(stack.series.uid)
    names = []
    for one in (stack.series for stack in stacks):
        sure = one.number is not None and len(owners[one.number]) == 1
        names.append((str(one.number) if sure else one.uid[-8:] or "?") + (f":{one.part}" if one.part else ""))
    return names


def _chosen(stacks: Sequence[Stack], series: str | None, place: Path) -> Stack:
    wanted = stacks if series is None else _named(stacks, series.strip())
    if len(wanted) == 1:
        return wanted[0]
    if series is None:
        problem = f"'{place}' holds {len(stacks)} series"
    elif wanted:
        problem = f"'{series}' names {len(wanted)} of the series in '{place}'"
    else:
        problem = f"No series in '{place}' is '{series}'"
    shown = list(zip(_names(stacks), stacks, strict=True))
    rows = [f"  {name}: {stack.series}" for name, stack in shown if not wanted or stack in wanted]
    raise ReaderError(f"{problem}. Name one with --series, by what stands before the colon:\n" + "\n".join(rows))


def _named(stacks: Sequence[Stack], series: str) -> list[Stack]:
    """The volumes that a number, UID or part of a UID names; an exact name before a part of one."""
    whole, _, part = series.partition(":")
    among = [stack for stack in stacks if not part or str(stack.series.part) == part]
    tests = (
        lambda one: one.uid == whole,
        lambda one: str(one.number) == whole,
        lambda one: len(whole.strip(".")) >= 4 and whole.strip(".") in one.uid,  # shorter is a number mistyped
    )
    for test in tests:
        if hits := [stack for stack in among if test(stack.series)]:
            return hits
    return []
