"""DICOM slices as volumes: told apart, put in order, stacked.

A series that mixes phases, echoes, sizes or directions is offered as parts of it, named `number:part`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.pixels import pictures
from MedVLMReaderLib.dicom.slices import Slice
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.stack import SAME_PLACE_MM, stacked
from MedVLMReaderLib.volume import Modality, PlaneName, Volume
from MedVLMReaderLib.voxels import MIN_SLICES, finite, joined


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


def key_of(stack: Stack) -> str:
    """Opaque; of the series and the part of it, wherever its files lie."""
    whole = f"{stack.series.uid or stack.slices[0].path.resolve()}\0{stack.series.part}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def is_key(source: str) -> bool:
    """Whether a volume's `source` is such a key."""
    return len(source) == 16 and not set(source) - set("0123456789abcdef")


def with_damaged(volume: Volume, damaged: int) -> Volume:
    """The volume, with a note that so many files beside it could not be read."""
    if not damaged:
        return volume
    note = f"{counted(damaged, 'file')} in the folder could not be read and {were(damaged)} left out."
    return Volume(volume.values, volume.grid, volume.modality, volume.source, (*volume.notes, note))


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
            notes = (f"{rest} of {len(slices)} images of another size or direction {were(rest)} left out.",)
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
    return Volume(values, grid, modality, key_of(stack), notes)


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
    notes = (f"{counted(dropped, 'slice')} stored twice {were(dropped)} left out.",) if dropped else ()
    return [slices[n] for n in keep], [images[n] for n in keep], notes


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def were(count: int) -> str:
    return "was" if count == 1 else "were"
