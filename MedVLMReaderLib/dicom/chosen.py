"""What is known of a series without its voxels, and which series of a study is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.series import Stack, by_series, depths, parts, volume_of, with_damaged
from MedVLMReaderLib.dicom.slices import Slice, slices_of
from MedVLMReaderLib.room import check_room
from MedVLMReaderLib.stack import SAME_PLACE_MM
from MedVLMReaderLib.volume import Volume

THINNEST, EVERY = "thinnest-axial", "all"
"""Which series of a study are read."""


@dataclass(frozen=True)
class Indexed:
    """A series, or a part of one, as a list shows it. Keys are hashes; no patient identity."""

    series: str
    part: int
    study: str
    number: int | None
    description: str
    modality: str
    plane: str
    slices: int
    spacing_mm: float
    """Between slices."""
    extent_mm: float
    """From the first slice to the last."""
    voxels: int
    localizer: bool
    paths: tuple[Path, ...] = ()
    damaged: int = 0
    """Files beside it that could not be read."""

    @property
    def id(self) -> str:
        """What names its reading, wherever its files lie."""
        return opaque_series(self.study, self.series, self.part)

    def to_read(self) -> SeriesStudy:
        """The same as something that can be read."""
        return SeriesStudy(self.id, self.paths, self.series, self.part, self.damaged, self.voxels)

    def __str__(self) -> str:
        title = f"{self.description or 'no description'}, {self.modality or 'unknown modality'} {self.plane}"
        return f"{title}, {self.slices} slices of {self.spacing_mm:.2f} mm"


@dataclass(frozen=True)
class SeriesStudy:
    """A series of the index, to be read."""

    id: str
    paths: tuple[Path, ...]
    series: str
    part: int
    damaged: int = 0
    voxels: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of its files, and their parts."""
        folders = {path.parent for path in self.paths}
        return tuple(str(path) for path in (*self.paths, *folders)) + tuple(
            part for folder in folders for part in folder.parts[-3:]
        )

    @contextmanager
    def source(self) -> Iterator[Sequence[Path]]:
        """Its files."""
        yield self.paths

    def read(self) -> Volume:
        """Its voxels; ReaderError where files are gone or damaged since they were indexed."""
        check_room(self.voxels)
        slices = [one for path in self.paths for one in slices_of(path)[0]]
        for group in by_series(slices):
            stacks = parts(group)
            if series_key(group[0]) == self.series:
                for stack in stacks:
                    if stack.series.part == self.part:
                        return with_damaged(volume_of(stack), self.damaged)
        raise ReaderError("The series is not what it was when it was indexed. Index the folder again.")


def hashed(*words: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def opaque_series(study: str, series: str, part: int) -> str:
    """The id of a reading of a series."""
    return hashlib.sha256(f"dicom\0{study}\0{series}\0{part}".encode()).hexdigest()[:12]


def series_key(one: Slice) -> str:
    """A hash: equal for the pictures of one series of one patient."""
    header = one.header
    return hashed(header.uid, str(header.number) if not header.uid else "", header.patient)


def chosen_series(found: Sequence[Indexed], rule: str = THINNEST) -> list[SeriesStudy]:
    """One series of every study, or with the rule `all` every one, in order of ids."""
    return sorted((one.to_read() for one in chosen(found, rule)), key=lambda one: one.id)


def chosen(found: Sequence[Indexed], rule: str = THINNEST) -> list[Indexed]:
    """What the rule takes of each study."""
    studies: dict[str, list[Indexed]] = {}
    for one in found:
        studies.setdefault(one.study, []).append(one)
    return list(found) if rule == EVERY else [thinnest_axial(own) for own in studies.values()]


def thinnest_axial(series: Sequence[Indexed]) -> Indexed:
    """Of a study's axial series the one with the thinnest slices; of equals the one with most, then the first.

    Localizers, and series that cover less than half of what the longest covers, are taken only where all are such;
    another plane only where none is axial.
    """
    among: Sequence[Indexed] = series
    among = [one for one in among if one.modality in ("CT", "MR")] or among
    among = [one for one in among if not one.localizer] or among
    among = [one for one in among if one.plane == "axial"] or among
    longest = max(one.extent_mm for one in among)
    among = [one for one in among if one.extent_mm >= longest / 2]
    last = float("inf")
    return min(
        among,
        key=lambda one: (
            round(one.spacing_mm, 2), -one.slices, last if one.number is None else one.number, one.series, one.part,
        ),
    )  # fmt: skip


def indexed(stack: Stack) -> Indexed:
    """What is to be known of a volume without its voxels."""
    one, first = stack.series, stack.slices[0]
    along = np.sort(depths(stack.slices))
    steps = np.diff(along)
    steps = steps[steps > SAME_PLACE_MM]
    series, marks = series_key(first), str(first.marks).upper()
    study = hashed(first.header.study, first.header.patient) if first.header.study else series
    return Indexed(
        series, one.part, study, one.number, one.description, one.modality, one.plane, one.slices,
        float(np.median(steps)) if len(steps) else 0.0, float(along[-1] - along[0]),
        one.slices * first.shape[0] * first.shape[1], "LOCALIZER" in marks or "SCOUT" in marks,
    )  # fmt: skip
