"""DICOM series as volumes: found in a folder, told apart, put in order, and read.

A series that mixes phases, echoes, sizes or directions is offered as parts of it, named `number:part`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom_slices import Slice, is_dicom, pictures, slices_of
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.stack import SAME_PLACE_MM, stacked
from MedVLMReaderLib.volume import Modality, PlaneName, Volume
from MedVLMReaderLib.voxels import MIN_SLICES, finite, joined

__all__ = [
    "Series", "SeriesFiles", "Stack", "by_series", "check_readable", "depths", "files_of", "is_dicom", "list_series",
    "parts", "read_series", "series_files", "volume_of", "with_damaged",
]  # fmt: skip


@dataclass(frozen=True)
class Series:
    """What a list of series shows of one; no patient identity."""

    uid: str
    number: int | None
    description: str
    modality: str
    slices: int
    plane: PlaneName
    part: int = 0
    """Counted from 1 where the series holds several volumes, else 0."""

    @property
    def name(self) -> str:
        """What names it to `read_series`, whatever else is in the folder."""
        return f"{self.uid}:{self.part}" if self.part else self.uid

    def __str__(self) -> str:
        title = f"{self.description or 'no description'}, {self.modality or 'unknown modality'} {self.plane}"
        return f"{title}, {self.slices} slices, UID ...{self.uid[-8:]}"


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices that make one volume, and what was left out to get there."""

    series: Series
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]


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


def series_files(place: str | Path | Sequence[str | Path]) -> tuple[SeriesFiles, ...]:
    """Every volume under a folder, or among a list of files such as Slicer's database names.

    Raises ReaderError where there is none, or a listed file is missing.
    """
    if isinstance(place, str | Path):
        stacks = _stacks(Path(place).expanduser(), None)[0]
    else:
        for path in place:
            check_readable(Path(path))
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
    return SeriesFiles(_key(stack), stack.series, tuple(dict.fromkeys(one.path for one in ordered)), stack)


def _key(stack: Stack) -> str:
    """Opaque; of the series and the part of it, wherever its files lie."""
    whole = f"{stack.series.uid or stack.slices[0].path.resolve()}\0{stack.series.part}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


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


def with_damaged(volume: Volume, damaged: int) -> Volume:
    """The volume, with a note that so many files beside it could not be read."""
    if not damaged:
        return volume
    note = f"{_counted(damaged, 'file')} in the folder could not be read and {_were(damaged)} left out."
    return Volume(volume.values, volume.grid, volume.modality, volume.source, (*volume.notes, note))


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
            f"'{place}' holds only {_counted(most, 'slice')} of a series; a volume needs at least {MIN_SLICES} "
            "of one size and direction. Choose the folder with the whole series."
        )
    if found.unplaced:
        return (
            f"'{place}' holds {_counted(found.unplaced, 'DICOM picture')} without a place in the patient (screenshots, "
            "X-rays, colour pictures); a scan of slices is needed."
        )
    if found.damaged:
        return f"'{place}' holds {_counted(found.damaged, 'damaged DICOM file')} and no other. Copy or export it again."
    return f"'{place}' holds no DICOM images. Choose the folder of a scan, or a NIfTI, NRRD or MHA file."


def by_series(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices of each series of each patient."""
    groups: dict[tuple[str, int | None, str], list[Slice]] = {}
    for one in slices:
        header = one.header
        groups.setdefault((header.uid, header.number if not header.uid else None, header.patient), []).append(one)
    return list(groups.values())


def parts(slices: list[Slice]) -> list[Stack]:
    """The volumes in a series: one, unless it mixes sizes, directions, phases or echoes."""
    groups = [group for group in sorted(_alike(slices), key=len, reverse=True) if _places(group) >= MIN_SLICES]
    notes: tuple[str, ...] = ()
    if groups and (len(groups) == 1 or len(groups[1]) * 2 <= len(groups[0])):
        rest = len(slices) - len(groups[0])
        if rest:
            notes = (f"{rest} of {len(slices)} images of another size or direction {_were(rest)} left out.",)
        groups = groups[:1]
    marked = [part for group in groups for part in _phases(group)]
    return [
        Stack(_series(part, label, n + 1 if len(marked) > 1 else 0), tuple(part), notes)
        for n, (part, label) in enumerate(marked)
    ]


def _alike(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices grouped by size, direction and pixel size."""
    groups: list[list[Slice]] = []
    for one in slices:
        for group in groups:
            other = group[0]
            if one.shape == other.shape and all(
                np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)
                for a, b in ((one.down, other.down), (one.across, other.across))
            ):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def depths(slices: Sequence[Slice]) -> Array:
    """(n,) mm along the normal."""
    return np.array([one.position for one in slices]) @ slices[0].normal


def _places(slices: Sequence[Slice]) -> int:
    return 1 + int((np.diff(np.sort(depths(slices))) >= SAME_PLACE_MM).sum())


def _phases(slices: list[Slice]) -> list[tuple[list[Slice], str]]:
    """The slices split by the first mark, or all marks together, that leaves one picture a place; else whole."""
    if not _repeats(slices):
        return [(slices, "")]
    names = list(dict.fromkeys(name for one in slices for name, _ in one.marks))
    varying = [name for name in names if len({dict(one.marks).get(name) for one in slices}) > 1]
    for chosen in [*([name] for name in varying), *([varying] if len(varying) > 1 else [])]:
        split: dict[str, list[Slice]] = {}
        for one in slices:
            marks = dict(one.marks)
            split.setdefault(", ".join(f"{name} {marks.get(name, '?')}" for name in chosen), []).append(one)
        if all(_places(part) >= MIN_SLICES and not _repeats(part) for part in split.values()):
            return sorted(((part, label) for label, part in split.items()), key=lambda item: _natural(item[1]))
    return [(slices, "")]


def _repeats(slices: Sequence[Slice]) -> bool:
    """Whether two different pictures claim one place."""
    return len({one.uid for one in slices}) > _places(slices)


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sorts "echo 10" after "echo 9"."""
    return [
        (0, float(word), "") if word.replace(".", "", 1).isdigit() else (1, 0.0, word)
        for word in label.replace(",", "").split()
    ]


def _series(slices: Sequence[Slice], label: str, part: int) -> Series:
    first = slices[0]
    planes: tuple[PlaneName, ...] = ("sagittal", "coronal", "axial")
    return Series(
        first.header.uid,
        first.header.number,
        " - ".join(text for text in (first.header.description, label) if text),
        first.header.modality,
        _places(slices),
        planes[int(np.argmax(np.abs(first.normal)))],
        part,
    )


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


def volume_of(stack: Stack) -> Volume:
    """The slices as voxels in patient space. Raises ReaderError where pixels are missing or places are taken twice."""
    slices = [stack.slices[n] for n in np.argsort(depths(stack.slices), kind="stable")]
    kept, images, repeated = _without_repeats(slices, pictures(slices))
    first = kept[0]
    values, filled = finite(joined(images))
    positions = np.array([one.position for one in kept])
    values, grid, placed = stacked(values, positions, first.down, first.across)
    header = first.header
    modality: Modality = "CT" if header.modality == "CT" else "MR" if header.modality == "MR" else ""
    notes = stack.notes + repeated + filled + placed
    if modality == "CT" and not header.hounsfield:
        notes += ("The file does not give Hounsfield units; CT windows do not fit its numbers.",)
    if any(one.mirror is not None for one in kept):
        notes += ("The file stores bright as small; the numbers were inverted.",)
    return Volume(values, grid, modality, _key(stack), notes)


def _without_repeats(slices: list[Slice], images: list[Array]) -> tuple[list[Slice], list[Array], tuple[str, ...]]:
    """Each place once. Raises ReaderError where two pictures of one place differ."""
    along = depths(slices)
    keep = [0]
    differing = 0
    for n in range(1, len(slices)):
        if along[n] - along[keep[-1]] >= SAME_PLACE_MM:
            keep.append(n)
        else:
            differing += not np.array_equal(images[n], images[keep[-1]])
    if differing:
        raise ReaderError(
            f"{len(slices)} images lie at {len(keep)} places, {differing} of them with another picture than the first "
            "there (several phases or echoes?), and no header tells them apart. Export one phase as its own series."
        )
    dropped = len(slices) - len(keep)
    notes = (f"{_counted(dropped, 'slice')} stored twice {_were(dropped)} left out.",) if dropped else ()
    return [slices[n] for n in keep], [images[n] for n in keep], notes


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
