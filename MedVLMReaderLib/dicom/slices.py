"""One DICOM image or frame at a time: where it lies, how its numbers are scaled, what tells it from its neighbours.

Header text is never logged or shown, except a series' own description and codes.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array

_MARKS = {  # what may tell apart two pictures of the same place, most telling first
    "TemporalPositionIdentifier": "time", "TemporalPositionIndex": "time",
    "EchoNumbers": "echo", "EchoTime": "echo time", "EffectiveEchoTime": "echo time",
    "AcquisitionNumber": "acquisition", "FrameAcquisitionNumber": "acquisition",
    "ImageType": "kind", "FrameType": "kind",
    "DiffusionBValue": "b-value", "TriggerTime": "trigger time", "NominalCardiacTriggerDelayTime": "trigger time",
    "StackID": "stack",
}  # fmt: skip
_MARK_GROUPS = (
    "FrameContentSequence", "MREchoSequence", "MRDiffusionSequence", "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence", "CardiacSynchronizationSequence",
)  # fmt: skip
_TAGS = [
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality",
    "PatientName", "PatientID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *_MARKS,
]  # fmt: skip
_NO_SCANS = {"SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR"}  # pixels that are drawn or computed on a scan
DAMAGED = "A DICOM header is damaged. Copy or export the series again."
_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SeriesHeader:
    """What all images of a series share."""

    uid: str
    number: int | None
    description: str
    modality: str
    hounsfield: bool
    """Whether the rescaled numbers are said, or by the standard taken, to be Hounsfield units."""
    study: str = ""
    """UID of the examination."""
    patient: str = ""
    """A hash that differs between patients; "" where the header names none."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One picture and its place; its pixels are still in the file."""

    path: Path
    frame: int | None
    """Which frame of the file; None where the file is one picture."""
    uid: str
    header: SeriesHeader
    shape: tuple[int, int]
    """Rows, columns."""
    position: Array
    """(r, a, s) mm of the first pixel."""
    down: Array
    """(3,) mm from a pixel to the one below."""
    across: Array
    """(3,) mm from a pixel to the one on the right."""
    slope: float
    intercept: float
    mirror: int | None
    """The smallest and the largest storable number added up, where small numbers are bright; else None."""
    marks: tuple[tuple[str, str], ...]
    """(name, value) of what may tell it from others at the same place."""

    @property
    def normal(self) -> Array:
        """(3,) unit vector from slice to slice."""
        normal = np.cross(self.across, self.down)
        return np.asarray(normal / np.linalg.norm(normal))


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM does, with or without its preamble."""
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    bare = start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00" and len(start) == 132
    return start[128:] == b"DICM" or bare


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom prints odd values, which may name a patient: not here."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def header_of(path: Path) -> Any:
    """The header, the tags that this reader knows only. Raises ReaderError where it is damaged."""
    import pydicom

    try:
        with quiet():
            return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
    except Exception:  # a damaged header makes the parser raise anything; its words may hold header text
        raise ReaderError(DAMAGED) from None


def slices_of(path: Path) -> tuple[list[Slice], bool]:
    """The pictures of a file that have a place in the patient, and whether the file is a picture at all.

    None for reports, drawings, colours and screenshots. Raises ReaderError where the header is damaged.
    """
    header = header_of(path)
    try:
        with quiet():
            placed = list(_slices(header, path))
            picture = "Rows" in header and _code(header.get("Modality")) not in _NO_SCANS
            cut_short = "Rows" not in header and _says_image(header)
    except Exception:  # values are parsed when they are asked for: see header_of
        raise ReaderError(DAMAGED) from None
    if cut_short:
        raise ReaderError(DAMAGED)
    return placed, picture


def _says_image(header: Any) -> bool:
    kind = getattr(header.file_meta, "MediaStorageSOPClassUID", None)
    return kind is not None and kind.name.endswith(("CT Image Storage", "MR Image Storage"))


def _slices(header: Any, path: Path) -> Iterator[Slice]:
    modality = _code(header.get("Modality"))
    if "Rows" not in header or modality in _NO_SCANS or int(header.get("SamplesPerPixel", 1) or 1) != 1:
        return
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if not photometric.startswith("MONOCHROME"):
        return
    frames = int(header.get("NumberOfFrames", 1) or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and not groups:
        return
    inverted = photometric == "MONOCHROME1" and modality != "CT"  # Hounsfield units stay what they are
    file = _File(
        header, path, frames, _series(header, modality), _mirror(header) if inverted else None, dict(_marks(header))
    )
    for frame in range(len(groups)) if groups else (None,):
        yield from _slice(file, frame)


@dataclass(frozen=True, eq=False)
class _File:
    """What all frames of a file share."""

    header: Any
    path: Path
    frames: int
    series: SeriesHeader
    mirror: int | None
    marks: dict[str, str]


def _slice(file: _File, frame: int | None) -> Iterator[Slice]:
    """The picture, or nothing where it has no place."""
    header = file.header
    position = _numbers(_value(header, frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
    turn = _numbers(_value(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _numbers(_value(header, frame, "PixelMeasuresSequence", "PixelSpacing"), 2)
    axes = None if turn is None else _axes(turn)
    if position is None or axes is None or spacing is None or spacing.min() <= 0:
        return
    scale = [_value(header, frame, "PixelValueTransformationSequence", f"Rescale{x}") for x in ("Slope", "Intercept")]
    slope, intercept = (float(default if x in (None, "") else x) for x, default in zip(scale, (1, 0), strict=True))
    marks = (mark for group in _MARK_GROUPS for item in _items(header, frame, group) for mark in _marks(item))
    yield Slice(
        file.path,
        frame if file.frames > 1 else None,
        f"{header.get('SOPInstanceUID', file.path)}:{frame}",
        file.series,
        (int(header.Rows), int(header.Columns)),
        position * _RAS,
        axes[1] * spacing[0],  # the first spacing is between rows
        axes[0] * spacing[1],
        slope,
        intercept,
        file.mirror,
        tuple((file.marks | dict(marks)).items()),
    )


def _series(header: Any, modality: str) -> SeriesHeader:
    number = header.get("SeriesNumber")
    kind = _value(header, 0 if "PerFrameFunctionalGroupsSequence" in header else None,
                  "PixelValueTransformationSequence", "RescaleType")  # fmt: skip
    return SeriesHeader(
        str(header.get("SeriesInstanceUID") or ""),
        int(number) if number not in (None, "") else None,
        _described(header),
        modality,
        str(kind or "HU").strip().upper() in ("HU", "US", "HU_MOD"),
        str(header.get("StudyInstanceUID") or ""),
        _patient(header),
    )


def _patient(header: Any) -> str:
    """Two patients whose scans were given one UID by mistake must not become one volume."""
    identity = str(header.get("PatientID") or header.get("PatientName") or "").strip()
    return hashlib.sha256(identity.encode()).hexdigest()[:16] if identity else ""


def _described(header: Any) -> str:
    """The series' description on one line, without the patient's name or number should someone have typed it there."""
    text = re.sub(r"[^\w\s.,;:+*/()\[\]<>=%&#'-]", " ", str(header.get("SeriesDescription") or ""))
    identity = f"{header.get('PatientName') or ''} {header.get('PatientID') or ''}"
    for word in re.split(r"[\s^=,]+", identity):
        if len(word) >= 3:
            text = re.sub(re.escape(word), "", text, flags=re.IGNORECASE)
    return " ".join(text.split())[:64]


def _code(value: Any) -> str:
    """A DICOM code: capitals, digits, underscores; nothing else passes."""
    return re.sub(r"[^A-Z0-9_]", "", str(value or "").upper())[:16]


def _numbers(value: Any, count: int) -> Array | None:
    """(count,) float64, or None where the header has not so many finite numbers."""
    if value is None or value == "" or len(value) != count:
        return None
    numbers = np.array([float(x) for x in value])
    return numbers if np.isfinite(numbers).all() else None


def _axes(turn: Array) -> Array | None:
    """(2, 3) unit vectors (r, a, s) across and down; None where the header's are no axes at right angles."""
    across, down = turn[:3] * _RAS, turn[3:] * _RAS
    lengths = np.linalg.norm([across, down], axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(across @ down) > 0.01:
        return None
    across = across / lengths[0]
    down = down - (down @ across) * across  # rounded digits in the header
    return np.stack([across, down / np.linalg.norm(down)])


def _value(header: Any, frame: int | None, sequence: str, keyword: str) -> Any:
    """A value of a frame: its own, else shared by all frames, else the file's; None where there is none."""
    for item in _items(header, frame, sequence):
        if keyword in item:
            return item[keyword].value
    return header[keyword].value if keyword in header else None


def _items(header: Any, frame: int | None, sequence: str) -> Iterator[Any]:
    if frame is not None:
        yield from header.PerFrameFunctionalGroupsSequence[frame].get(sequence) or []
        for groups in header.get("SharedFunctionalGroupsSequence") or []:
            yield from groups.get(sequence) or []


def _marks(part: Any) -> Iterator[tuple[str, str]]:
    """(name, value) of the marks in a header or in a group of a frame."""
    seen: set[str] = set()
    for keyword, name in _MARKS.items():
        value = part[keyword].value if keyword in part else None
        if value not in (None, "") and name not in seen:
            seen.add(name)
            parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
            yield name, " ".join(_short(part) for part in parts[:6])


def _short(value: Any) -> str:
    """A number without idle zeros, or the letters, digits and signs of a code."""
    text = re.sub(r"[^\w.+-]", "", str(value))[:16]
    return f"{float(value):g}" if isinstance(value, (int, float)) else text


def _mirror(header: Any) -> int:
    return -1 if int(header.get("PixelRepresentation", 0) or 0) else 2 ** int(header.get("BitsStored", 16) or 16) - 1
