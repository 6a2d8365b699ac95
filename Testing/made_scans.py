"""Tiny scans written to disk for tests: DICOM series slice by slice, NIfTI headers field by field."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from MedVLMReaderLib.geometry import LPS, Grid

Array = NDArray[Any]
PATIENT = "Nobody^Knows"


def turn(degrees: Sequence[float]) -> Array:
    """(3, 3) rotation about the three axes, one after the other."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        out = one @ out
    return out


def oblique_grid(
    shape: tuple[int, int, int] = (6, 9, 11),
    spacing: Sequence[float] = (4.0, 1.5, 2.0),
    degrees: Sequence[float] = (12.0, -20.0, 7.0),
    axes: Sequence[int] = (2, 1, 0),
    signs: Sequence[int] = (-1, 1, -1),
    origin: Sequence[float] = (31.0, -42.0, 53.0),
) -> Grid:
    """A turned box; `axes` says which of R, A, S each of k, j, i lies nearest to, `signs` which way it runs."""
    affine = np.eye(4)
    affine[:3, :3] = turn(degrees) @ np.eye(3)[:, list(axes)] * np.array(signs) * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


def tissue(shape: tuple[int, ...], bright: Sequence[int] | None = None, seed: int = 0) -> Array:
    """int16 numbers of CT's look, with one voxel far brighter."""
    values = np.random.default_rng(seed).integers(-50, 200, shape).astype(np.int16)
    values[:, : shape[1] // 3] = -1000
    if bright is not None:
        values[tuple(bright)] = 3000
    return values


def plain_header(uid: str, modality: str = "CT", **tags: Any) -> Dataset:
    """What every image of a made series has."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    header.SOPInstanceUID = generate_uid()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.SeriesInstanceUID, header.Modality = uid, modality
    header.PatientName, header.PatientID = PATIENT, "S3cret"
    header.SeriesNumber, header.SeriesDescription = 4, "Chest 5.0"
    for name, value in tags.items():
        setattr(header, name, value)
    return header


def put_pixels(header: Dataset, pixels: Array) -> None:
    """Store (rows, columns) or (frames, rows, columns) of 16 bits."""
    header.Rows, header.Columns = pixels.shape[-2:]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = header.get("PhotometricInterpretation", "MONOCHROME2")
    header.BitsAllocated, header.BitsStored = 16, header.get("BitsStored", 16)
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    header["PixelData"].VR = "OW"


def write_series(
    folder: Path,
    values: Array,
    grid: Grid,
    *,
    modality: str = "CT",
    uid: str | None = None,
    skip: Sequence[int] = (),
    shift: Mapping[int, float] | None = None,
    prefix: str = "",
    intercept: float | None = -1024.0,
    slope: float = 1.0,
    **tags: Any,
) -> str:
    """One file a slice of `values` on `grid` (its axes may lean), in an order that is not theirs in space; the UID.

    Slices in `skip` are not written; `shift` moves slice n by so many slices. Stored numbers are those that rescale to
    `values`; MR has no rescale unless `slope` asks for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    flat = LPS @ grid.affine
    for name, n in enumerate(np.random.default_rng(3).permutation(len(values))):
        if n in skip:
            continue
        header = plain_header(uid, modality, **tags)
        header.InstanceNumber = int(name) + 1
        place = flat @ [n + (shift or {}).get(int(n), 0.0), 0, 0, 1]
        header.ImagePositionPatient = [f"{x:.8f}"[:16] for x in place[:3]]
        header.ImageOrientationPatient = [
            f"{x:.12f}"[:16] for axis in (2, 1) for x in flat[:3, axis] / np.linalg.norm(flat[:3, axis])
        ]
        header.PixelSpacing = [f"{x:.10f}"[:16] for x in grid.spacing[1:]]
        stored = values[n]
        if (modality == "CT" and intercept is not None) or slope != 1:
            header.RescaleSlope, header.RescaleIntercept = slope, intercept if modality == "CT" else 0
            stored = np.rint((stored - float(header.RescaleIntercept)) / slope)
        put_pixels(header, np.ascontiguousarray(stored.astype(np.int16 if stored.min() < 0 else np.uint16)))
        header.save_as(folder / f"{prefix}{name:03d}.dcm", enforce_file_format=True)
    return uid


def write_enhanced(path: Path, values: Array, grid: Grid, phases: int = 1) -> str:
    """One multi-frame CT with a rescale of its own in each frame; frames shuffled, `phases` pictures a place."""
    header = plain_header(generate_uid(), "CT")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    flat = LPS @ grid.affine
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [f"{x:.10f}"[:16] for x in grid.spacing[1:]]
    plane.ImageOrientationPatient = [
        f"{x:.12f}"[:16] for axis in (2, 1) for x in flat[:3, axis] / np.linalg.norm(flat[:3, axis])
    ]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    header.SharedFunctionalGroupsSequence = [shared]
    frames, stored = [], []
    for n in np.random.default_rng(5).permutation(len(values) * phases):
        k, phase = divmod(int(n), phases)
        groups, content, position, scale = Dataset(), Dataset(), Dataset(), Dataset()
        content.TemporalPositionIndex = phase + 1
        position.ImagePositionPatient = [f"{x:.8f}"[:16] for x in (flat @ [k, 0, 0, 1])[:3]]
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1000 - k, "HU"
        groups.FrameContentSequence, groups.PlanePositionSequence = [content], [position]
        groups.PixelValueTransformationSequence = [scale]
        frames.append(groups)
        stored.append(values[k] + 1000 + k + phase)
    header.PerFrameFunctionalGroupsSequence = frames
    header.NumberOfFrames = len(frames)
    put_pixels(header, np.stack(stored).astype(np.uint16))
    header.save_as(path, enforce_file_format=True)
    return str(header.SeriesInstanceUID)


def damaged(content: bytes, seed: int) -> bytes:
    """The bytes of a file cut short, or a few of its first changed."""
    rng = np.random.default_rng(seed)
    raw = bytearray(content)
    if rng.random() < 0.3:
        return bytes(raw[: rng.integers(1, len(raw))])
    for _ in range(rng.integers(1, 6)):
        raw[rng.integers(0, min(len(raw), 1600))] = rng.integers(0, 256)
    return bytes(raw)


def changed(path: Path, **tags: Any) -> None:
    """Set tags of a file on disk; None removes one."""
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


def write_nifti(
    path: Path,
    values: Array,
    rows: Array | None = None,
    *,
    sform: int = 1,
    qform: int = 0,
    quatern: Sequence[float] = (0, 0, 0, 0, 0, 0),
    pixdim: Sequence[float] = (1, 1, 1, 1),
    scale: tuple[float, float] = (0, 0),
    order: str = "<",
    kind: int | None = None,
    dim: Sequence[int] | None = None,
) -> None:
    """A NIfTI-1 file written byte by byte: (..., k, j, i) `values`, (3, 4) `rows` from (i, j, k, 1) to RAS."""
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024}
    sizes = dim or [values.ndim, *values.shape[::-1], *[1] * (7 - values.ndim)]
    header = bytearray(352)
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, *sizes)
    struct.pack_into(order + "hh", header, 70, kind or codes[values.dtype.str[1:]], values.itemsize * 8)
    struct.pack_into(order + "8f", header, 76, *pixdim, 0, 0, 0, 0)
    struct.pack_into(order + "3f", header, 108, 352, *scale)
    struct.pack_into("B", header, 123, 2)
    struct.pack_into(order + "hh6f", header, 252, qform, sform, *quatern)
    struct.pack_into(order + "12f", header, 280, *(np.zeros(12) if rows is None else np.ravel(rows)))
    header[344:348] = b"n+1\0"
    content = bytes(header) + values.astype(values.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
