"""Read any scan: a DICOM file or folder, NIfTI, NRRD or MetaImage, as one `Volume` in patient space."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError, dicom
from MedVLMReaderLib.geometry import LPS, Array, Grid
from MedVLMReaderLib.nifti import is_nifti, nifti_sizes, read_nifti
from MedVLMReaderLib.stack import straightened
from MedVLMReaderLib.volume import Modality, Volume
from MedVLMReaderLib.voxels import MIN_SLICES, finite, looks_like_ct, narrowed

_ITK = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}

SCANS = (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that are a scan by themselves."""
BESIDE = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")
"""Endings of files that hold the voxels of a header beside them."""

Parts = tuple[Array, Grid, tuple[str, ...]]


def read(path: str | Path, series: str | None = None) -> Volume:
    """The scan at `path`: a DICOM folder, one file of a DICOM series (the whole series), NIfTI, NRRD or MetaImage.

    `series` names one of several DICOM series by number, UID or a unique part of the UID. Raises ReaderError for
    anything that is not one readable volume.
    """
    place = Path(path).expanduser()
    dicom.check_readable(place)
    if place.is_dir() or dicom.is_dicom(place):
        return dicom.read_series(place, series)
    if series is not None:
        raise ReaderError(f"'{place}' is not DICOM and has no series; leave --series away.")
    values, grid, notes = read_nifti(place) if is_nifti(place) else _read_with_itk(place)
    try:
        values, filled = finite(values)
        values, grid, straight = straightened(values, grid)
    except ReaderError as error:
        raise ReaderError(f"'{place}' cannot be read. {error}") from error
    modality: Modality = "CT" if looks_like_ct(values) else ""
    return Volume(values, grid, modality, _key(place), notes + filled + straight)


def _key(place: Path) -> str:
    """An opaque name for the file as it is now."""
    state = place.stat()
    return hashlib.sha256(f"{place.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:16]


def promised_voxels(path: Path) -> int:
    """How many voxels the header of a NIfTI, NRRD or MetaImage file announces; 0 where none does."""
    import SimpleITK as sitk

    try:
        if sizes := nifti_sizes(path):
            return math.prod(sizes)
        if not path.is_file() or path.suffix.lower() not in _ITK:
            return 0
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_ITK[path.suffix.lower()])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return math.prod(int(size) for size in reader.GetSize())
    except (OSError, RuntimeError):
        return 0


def _read_with_itk(place: Path) -> Parts:
    """NRRD and MetaImage, in ITK's frame."""
    import SimpleITK as sitk

    kind = _ITK.get(place.suffix.lower())
    if place.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")):
        raise ReaderError(f"'{place}' is not NIfTI or its header is damaged. Copy or export it again.")
    if kind is None:
        raise ReaderError(f"'{place}' is not a scan that can be read. Known: DICOM, NIfTI, NRRD, MHA.")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(place))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ReaderError(
            f"'{place}' is not {place.suffix[1:].upper()} or its header is damaged. Copy or export it again."
        ) from error
    _check_one_grey_volume(reader, place)
    grid = _grid(reader, place)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise ReaderError(f"'{place}' is damaged or cut short: voxels are missing. Copy or export it again.") from error
    while image.GetDimension() > 3:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    return narrowed(sitk.GetArrayFromImage(image)), grid, ()


def _check_one_grey_volume(reader: Any, place: Path) -> None:
    size = [*reader.GetSize(), 1][: max(3, reader.GetDimension())]
    if reader.GetNumberOfComponents() > 1:
        count = reader.GetNumberOfComponents()
        raise ReaderError(
            f"'{place}' holds {count} values a voxel (colours or vectors); a scan has one. Convert it to greyscale."
        )
    frames = int(np.prod(size[3:]))
    if frames > 1:
        raise ReaderError(f"'{place}' holds {frames} volumes in a row (4-D). Extract one of them and read that.")
    if min(size[:3]) < MIN_SLICES:
        raise ReaderError(f"'{place}' has only {min(size[:3])} slice; a volume needs at least {MIN_SLICES}.")


def _grid(reader: Any, place: Path) -> Grid:
    """Where ITK's header says that the voxels lie. Raises ReaderError where they would have no volume."""
    n = reader.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (n, n))[:3, :3] * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    i, j, k = (int(size) for size in reader.GetSize()[:3])
    try:
        return Grid((k, j, i), (LPS @ affine)[:, [2, 1, 0, 3]])
    except ValueError as error:
        raise ReaderError(f"The frame in '{place}' cannot be inverted. {error} Export the scan again.") from error
