"""A folder of tiny studies, some of them damaged, each in another way."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from MedVLMReaderLib.geometry import LPS
from Testing.made_scans import oblique_grid, plain_header, put_pixels, write_nifti, write_series
from Testing.tiny_scan import tiny_scan, write_tiny_scan


def cut_short(path: Path) -> None:
    """A compressed file of which the end is missing."""
    whole = write_tiny_scan(path).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def empty(path: Path) -> None:
    """Zero bytes."""
    path.write_bytes(b"")


def no_scan(path: Path) -> None:
    """Text under the name of a scan."""
    path.write_bytes(b"This is no scan at all.\n" * 40)


def colours(path: Path) -> None:
    """Three values a voxel."""
    write_nifti(path, np.zeros((3, 4, 5, 6), np.uint8), np.eye(4)[:3], kind=128, dim=(3, 6, 5, 4, 1, 1, 1, 1))


def frames(path: Path) -> None:
    """Two volumes in a row."""
    write_nifti(path, np.random.default_rng(0).integers(0, 99, (2, 4, 5, 6)).astype(np.int16), np.eye(4)[:3])


def one_slice(path: Path) -> None:
    """A single picture."""
    write_nifti(path, np.arange(30, dtype=np.int16).reshape(1, 5, 6), np.eye(4)[:3])


def flat_frame(path: Path) -> None:
    """Voxels without a volume."""
    write_nifti(path, np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16), np.zeros((3, 4)))


def no_numbers(path: Path) -> None:
    """Nothing but NaN."""
    write_nifti(path, np.full((4, 5, 6), np.nan, np.float32), np.eye(4)[:3])


def enormous(path: Path) -> None:
    """Far more voxels than any memory holds, in a file that is sparse on the disk."""
    content = bytearray(352)
    struct.pack_into("<i", content, 0, 348)
    struct.pack_into("<8h", content, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    struct.pack_into("<hh", content, 70, 4, 16)
    struct.pack_into("<8f", content, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", content, 108, 352)
    content[344:348] = b"n+1\0"
    path.write_bytes(bytes(content))
    with path.open("r+b") as file:
        file.truncate(2 * 10**10)


def wrong_bytes(path: Path) -> None:
    """A compressed file with wrong bytes in the middle."""
    raw = bytearray(gzip.compress(write_tiny_scan(path.with_name("whole.nii")).read_bytes(), mtime=0))
    path.with_name("whole.nii").unlink()
    raw[len(raw) // 2 : len(raw) // 2 + 40] = b"\0" * 40
    path.write_bytes(bytes(raw))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut.nii.gz": cut_short, "empty.nii.gz": empty, "text.nii": no_scan, "colours.nii": colours, "frames.nii": frames,
    "slice.nii": one_slice, "frame.nii": flat_frame, "numbers.nii": no_numbers, "huge.nii": enormous,
    "bytes.nii.gz": wrong_bytes,
}  # fmt: skip
"""File name -> what makes such a file: ten kinds of damage."""


def write_studies(folder: Path, whole: int, damaged: int) -> Path:
    """So many studies, the damaged ones of each kind in turn; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(whole):
        write_tiny_scan(folder / f"{n // 10:03d}" / f"scan{n}.nii.gz", n)
    for n, (name, make) in zip(range(damaged), list(DAMAGES.items()) * (damaged // len(DAMAGES) + 1), strict=False):
        make(folder / f"{n:03d}-{name}")
    return folder


def write_dicom(folder: Path, n: int = 0, **tags: object) -> str:
    """A tiny scan as a DICOM series with slices across the body; its UID."""
    volume = tiny_scan(n)
    return write_series(folder, volume.values, volume.grid, **tags)  # type: ignore[arg-type]


def write_many(folder: Path, series: int, slices: int) -> None:
    """Many files of a few pixels, as fast as they can be written: one header a series, changed slice by slice."""
    grid = oblique_grid((slices, 4, 4), (2.0, 40.0, 40.0), axes=(2, 1, 0), degrees=(0, 0, 0))
    flat = LPS @ grid.affine
    for one in range(series):
        place = folder / f"{one:04d}"
        place.mkdir(parents=True)
        header = plain_header(f"1.2.826.0.1.{one + 1}", StudyInstanceUID=f"1.2.826.0.2.{one // 2 + 1}")
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.PixelSpacing = [40, 40]
        put_pixels(header, np.full((4, 4), one % 99, np.uint16))
        for n in range(slices):
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.3.{one + 1}.{n + 1}"
            header.ImagePositionPatient = [f"{x:.4f}" for x in (flat @ [n, 0, 0, 1])[:3]]
            header.save_as(place / f"{n:04d}.dcm", enforce_file_format=True)
