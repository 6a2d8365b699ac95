"""`Source`: the DICOM series that a reading is of, found again by its opaque key and held against the reading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError, dicom
from MedVLMReaderLib.dicom import SeriesFiles, check_readable, is_dicom, series_files
from MedVLMReaderLib.export.identity import ALWAYS, PATIENT, STUDY, check_same, header, identity_of, unvalidated
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.volume import Volume

_FRAMES = "PerFrameFunctionalGroupsSequence"
SAME_MM = 0.1
"""The scan's box may differ by so much from the one that the reading remembers."""
SAME_VALUE = 0.51
"""A voxel, too, where another program has rounded it to whole numbers."""
_GONE = "Choose the folder that was read, or ask again about the series as it is now."


@dataclass(frozen=True, eq=False)
class Source:
    """A series whose headers agree on one patient and study."""

    volume: Volume
    """As the reader reads it."""
    headers: tuple[Any, ...]
    """One a file, in order of place, without pixels, patient and study texts: those are in `identity` alone."""
    identity: Any
    """A pydicom dataset of the patient and study modules."""
    others: tuple[Any, ...] = ()
    """Headers, as above, of further series that were read with it."""

    @property
    def first(self) -> Any:
        """The header of the first file."""
        return self.headers[0]

    @property
    def study_uid(self) -> str:
        """The study instance UID."""
        return str(self.identity.StudyInstanceUID)


def source_of(reading: Reading, place: str | Path | Sequence[str | Path], series: str | None = None) -> Source:
    """The source of a reading, in a folder, beside a file, or among a list of files; `series` names one in a folder.

    Raises ReaderError with the reason where it is not DICOM, is gone, was changed since or anonymised differently,
    mixes patients, or lacks what an archive files by.
    """
    found = _candidates(place, series)
    keys = [str(key) for key in reading.preparation.get("sources", [])]
    parts = [_by_key(found, key, reading) for key in keys] if keys else [_by_geometry(found, reading)]
    volume = parts[0].volume()
    try:
        _check_reading(volume, reading)
    except ReaderError:
        check_same([header(path) for path in dicom.files_of(place, parts[0].series.uid)])
        raise  # not because slices of somebody else stand among them
    return _of(parts, volume)


def source_of_loaded(volume: Volume, files: Sequence[str | Path]) -> Source:
    """The source of a volume that another program has loaded from these files, such as Slicer into a scene.

    Its axes may be counted from another end; voxels and places must be the files'. Raises ReaderError as `source_of`.
    """
    found = series_files(files)
    same = [one for one in found if _loaded_from(one, volume)]
    if len(same) != 1:
        check_same([header(Path(path)) for path in files])
        raise ReaderError(
            "The voxels of this volume, or where they lie, are not those of the DICOM files that it was loaded from: "
            "it was moved, cropped or changed since. Load the series again and read that."
        )
    return _of(same, same[0].volume())


def _loaded_from(one: SeriesFiles, volume: Volume) -> bool:
    try:
        ours, theirs = one.volume().anatomical(), volume.anatomical()
    except ReaderError:
        return False
    if not ours.grid.same_as(theirs.grid, SAME_MM):
        return False
    pairs = zip(ours.values, theirs.values, strict=True)
    return all(np.allclose(a, b, rtol=1e-3, atol=SAME_VALUE) for a, b in pairs)


def _of(parts: Sequence[SeriesFiles], volume: Volume) -> Source:
    """The source, once it is certain which series it is."""
    headers = [[header(path) for path in part.files] for part in parts]
    check_same(headers[0])
    for more in headers[1:]:
        check_same(more)
        _check_one_study(headers[0][0], more[0])
    identity = identity_of(headers[0][0])
    bare = [tuple(_bare(one) for one in _once(part)) for part in headers]
    for one in bare[0]:
        _say_thickness(one, float(volume.grid.spacing[0]))
    return Source(volume, bare[0], identity, tuple(one for part in bare[1:] for one in part))


def files_of(instance_uids: Iterable[str], file_of: Callable[[str], str]) -> tuple[Path, ...]:
    """The files of DICOM instances, for `source_of`: in a Slicer scene, of the UIDs that a volume node keeps.

    `file_of` is the database's look-up, such as `slicer.dicomDatabase.fileForInstance`; it says "" for what it has not.
    Raises ReaderError where there are no UIDs, or a file is gone.
    """
    paths = [file_of(uid) for uid in instance_uids]
    if not paths:
        raise ReaderError("This volume was not loaded from DICOM: no patient is known to whom a report would belong.")
    gone = sum(not path or not Path(path).is_file() for path in paths)
    if gone:
        raise ReaderError(f"{gone} of {len(paths)} DICOM files of this volume are gone. Import the series again.")
    return tuple(dict.fromkeys(Path(path) for path in paths))


def _candidates(place: str | Path | Sequence[str | Path], series: str | None) -> tuple[SeriesFiles, ...]:
    if isinstance(place, str | Path):
        path = Path(place).expanduser()
        check_readable(path)
        if path.is_file() and not is_dicom(path):
            raise ReaderError(
                f"'{path}' is not DICOM: no patient or study is known to which an object could belong. "
                "Export text, Markdown, PDF or FHIR without --source, or name the DICOM folder that it was made from."
            )
    return series_files(place, series)


def _by_key(found: Sequence[SeriesFiles], key: str, reading: Reading) -> SeriesFiles:
    for one in found:
        if one.key == key:
            return one
    if any(_same_voxels(one, reading) for one in found):
        raise ReaderError(
            "The scan that was read is there, but under other identifiers: it was anonymised differently, or copied "
            f"into another series. A report could land on the wrong patient. {_GONE}"
        )
    raise ReaderError(f"The series that was read is not there: gone, moved, or never DICOM. {_GONE}")


def _by_geometry(found: Sequence[SeriesFiles], reading: Reading) -> SeriesFiles:
    """For a reading that does not say which series it is of: the only one with its very voxels."""
    if "study" not in reading.preparation:
        raise ReaderError("This reading does not say which scan it is of. Ask again, and export that answer.")
    same = [one for one in found if _same_voxels(one, reading)]
    if len(same) == 1:
        return same[0]
    if same:
        raise ReaderError(f"{len(same)} series there have the voxels that were read. Name one of them with --series.")
    raise ReaderError(f"The series that was read is not there: gone, moved, or never DICOM. {_GONE}")


def _same_voxels(one: SeriesFiles, reading: Reading) -> bool:
    known = reading.preparation.get("study")
    try:
        return known is not None and one.volume().key == known
    except ReaderError:
        return False


def _check_reading(volume: Volume, reading: Reading) -> None:
    """The voxels and their place are those that were read."""
    if reading.boxes and not reading.boxes[0].same_as(volume.grid, SAME_MM):
        raise ReaderError(
            f"The source lies elsewhere in the patient, or has other slices, than the scan that was read. {_GONE}"
        )
    if reading.preparation.get("study", volume.key) != volume.key:
        raise ReaderError(f"The voxels of the source are not those that were read. {_GONE}")


def _check_one_study(first: Any, other: Any) -> None:
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID"):
        if str(first.get(keyword) or "").strip() != str(other.get(keyword) or "").strip():
            raise ReaderError(
                f"The series that were read together disagree on {keyword}: they are of two patients or studies. "
                "Nothing is exported."
            )


def _say_thickness(bare: Any, spacing_mm: float) -> None:
    """What is copied from a header must say how thick a slice is; where it does not, as thick as they lie apart."""
    measures = [
        item
        for group in (*(bare.get("SharedFunctionalGroupsSequence") or ()), *(bare.get(_FRAMES) or ()))
        for item in group.get("PixelMeasuresSequence") or ()
    ]
    for one in measures or [bare]:
        if one.get("SliceThickness") in (None, ""):
            one.SliceThickness = f"{spacing_mm:.10g}"


def _once(headers: Iterable[Any]) -> list[Any]:
    """Each instance once, where a folder holds copies of files."""
    return list({str(one.SOPInstanceUID): one for one in headers}.values())


def _bare(whole: Any) -> Any:
    """A header without the texts that name somebody; what libraries copy from it is replaced when it is written."""
    with unvalidated():
        bare = copy.deepcopy(whole)
        for keyword in (*PATIENT, *STUDY):
            if keyword != "StudyInstanceUID":
                bare.pop(keyword, None)
        for keyword in ALWAYS:
            setattr(bare, keyword, None)
        bare.PatientID = "source"
    return bare
