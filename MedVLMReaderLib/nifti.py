"""NIfTI-1 and NIfTI-2 read byte by byte: voxels and their box in patient space.

ITK's reader fills a truncated file with zeros, reads scan.nii where scan.nii.gz was asked for and both exist, and
refuses leaning axes; the frame here is the one that ITK chooses (itkNiftiImageIO.cxx, SetImageIOOrientationFromNIfTI).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import LPS, Array, Grid
from MedVLMReaderLib.voxels import MIN_SLICES, rescaled

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_COLOUR = {32: "complex numbers", 1792: "complex numbers", 2048: "complex numbers", 128: "colours", 2304: "colours"}
_SCANNER = 1  # transform code: the scanner's own frame
_UNITS_MM = {1: 1000.0, 3: 0.001}  # metres, micrometres; anything else counts as millimetres
_HALF_TURN = 1e-7  # below, what is left for the quaternion's first number is rounding: nifti1_io.c takes it for 0
_LARGEST_RATIO = 1100  # deflate cannot shrink further: a header that asks for more lies

# name: (offset, type, count) in NIfTI-1, then in NIfTI-2 (nifti1.h, nifti2.h)
_FIELDS = {
    "dim": ((40, "i2", 8), (16, "i8", 8)),
    "datatype": ((70, "i2", 1), (12, "i2", 1)),
    "pixdim": ((76, "f4", 8), (104, "f8", 8)),
    "vox_offset": ((108, "f4", 1), (168, "i8", 1)),
    "scl_slope": ((112, "f4", 1), (176, "f8", 1)),
    "scl_inter": ((116, "f4", 1), (184, "f8", 1)),
    "xyzt_units": ((123, "u1", 1), (500, "i4", 1)),
    "qform_code": ((252, "i2", 1), (344, "i4", 1)),
    "sform_code": ((254, "i2", 1), (348, "i4", 1)),
    "quatern": ((256, "f4", 6), (352, "f8", 6)),
    "srow": ((280, "f4", 12), (400, "f8", 12)),
}


@dataclass(frozen=True)
class _Header:
    """The header's bytes, which of the two layouts they follow and in which byte order."""

    raw: bytes
    version: int
    order: str

    def get(self, name: str) -> Array:
        """The numbers of a field, as float64."""
        offset, kind, count = _FIELDS[name][self.version - 1]
        return np.frombuffer(self.raw, self.order + kind, count, offset).astype(np.float64)

    def one(self, name: str) -> float:
        """The number of a field of one."""
        return float(self.get(name)[0])

    @property
    def in_one_file(self) -> bool:
        """Whether the voxels follow in the same file, rather than in an .img beside it."""
        return self.raw[344:347] == b"n+1" if self.version == 1 else self.raw[4:7] == b"n+2"


def is_nifti(path: Path) -> bool:
    """Whether the file begins with a NIfTI header, compressed or not."""
    return _header_of(path) is not None


def nifti_sizes(path: Path) -> tuple[int, ...]:
    """The sizes that a NIfTI header announces, whatever they are; () where the file is none."""
    header = _header_of(path) if path.is_file() else None
    if header is None:
        return ()
    sizes = header.get("dim").astype(int)
    return tuple(int(size) for size in sizes[1 : max(0, min(int(sizes[0]), 7)) + 1])


def read_nifti(path: Path) -> tuple[Array, Grid, tuple[str, ...]]:
    """(k, j, i) voxels, the grid they fill (its axes may lean) and notes.

    Raises ReaderError for a truncated file, several frames, colours, one slice, or a frame that cannot be inverted.
    """
    header = _header_of(path)
    if header is None:
        raise ReaderError(f"'{path}' is not NIfTI.")
    shape = _shape(header, path)
    affine, notes = _affine(header, path)
    code = int(header.one("datatype"))
    if code not in _TYPES:
        kind = _COLOUR.get(code, f"numbers of NIfTI type {code}")
        raise ReaderError(f"'{path}' holds {kind}; a scan has one grey value a voxel. Convert it to greyscale.")
    stored = _voxels(header, path, shape, np.dtype(header.order + _TYPES[code]))
    slope, intercept = header.one("scl_slope"), header.one("scl_inter")
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        slope, intercept = 1.0, 0.0  # the standard's way to say: not scaled
    return rescaled(stored, slope, intercept), Grid(shape, affine), notes


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")  # type: ignore[return-value]


def _header_of(path: Path) -> _Header | None:
    try:
        with _opened(path) as stream:
            raw = stream.read(540)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    for version, size, magic in ((1, 348, raw[344:348]), (2, 540, raw[4:8])):
        for order in "<>":
            sized = len(raw) >= size and int(np.frombuffer(raw, order + "i4", 1)[0]) == size
            if sized and magic in (b"n+%d\0" % version, b"ni%d\0" % version):
                return _Header(raw, version, order)
    return None


def _shape(header: _Header, path: Path) -> tuple[int, int, int]:
    """(k, j, i) sizes; raises ReaderError where the file is not one greyscale volume."""
    sizes = header.get("dim").astype(int)
    if not 1 <= sizes[0] <= 7 or (sizes[1 : sizes[0] + 1] < 1).any():
        raise ReaderError(f"The header of '{path}' is damaged: its sizes are {sizes.tolist()}. Export the scan again.")
    used = [*sizes[1 : sizes[0] + 1].tolist(), 1, 1, 1, 1]
    if used[4] > 1:
        raise ReaderError(f"'{path}' holds {used[4]} values a voxel; a scan has one. Extract one and read that.")
    frames = int(np.prod(used[3:]))
    if frames > 1:
        raise ReaderError(f"'{path}' holds {frames} volumes in a row (4-D). Extract one of them and read that.")
    if min(used[:3]) < MIN_SLICES:
        raise ReaderError(f"'{path}' has only {min(used[:3])} slice; a volume needs at least {MIN_SLICES}.")
    return used[2], used[1], used[0]


def _voxels(header: _Header, path: Path, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> Array:
    source = path if header.in_one_file else _beside(path)
    out = np.empty(shape, dtype) if _plausible(source, shape, dtype) else None
    offset = int(header.one("vox_offset"))
    if header.in_one_file:
        offset = max(offset, 352 if header.version == 1 else 544)
    try:
        with _opened(source) as stream:
            stream.seek(offset)
            if out is None or not _filled(out, stream):
                raise EOFError
            while stream.read(1 << 20):  # the checksum of a compressed stream is tested at its end
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ReaderError(f"'{path}' is damaged or cut short: voxels are missing. Copy or export it again.") from error
    return out


def _beside(path: Path) -> Path:
    """The file with the voxels of a header in a file of its own."""
    stem = path.name.removesuffix(".gz").removesuffix(".hdr").removesuffix(".img")
    for ending in (".img", ".img.gz"):
        if (path.parent / (stem + ending)).is_file():
            return path.parent / (stem + ending)
    raise ReaderError(f"The voxels of '{path}' are missing: there is no .img file beside it. Copy both files.")


def _plausible(path: Path, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> bool:
    """Whether the file is large enough to hold so many voxels; asked before the memory is."""
    wanted = int(np.prod([float(n) for n in shape])) * dtype.itemsize
    return wanted <= path.stat().st_size * _LARGEST_RATIO


def _filled(out: Array, stream: IO[bytes]) -> bool:
    """Read bytes straight into `out`; False where the stream ends too early."""
    room = out.view(np.uint8).reshape(-1).data
    done = 0
    while done < len(room):
        count = stream.readinto(room[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def _affine(header: _Header, path: Path) -> tuple[Array, tuple[str, ...]]:
    """(4, 4) from (k, j, i, 1) to (r, a, s, 1) mm as ITK chooses it, and what the user must know about it."""
    sizes = np.abs(header.get("pixdim")[1:4])
    rows = np.vstack([header.get("srow").reshape(3, 4), [0, 0, 0, 1]])
    by_rows = _usable(rows) if header.one("sform_code") > 0 else None
    by_turn = _usable(_turned(header, sizes)) if header.one("qform_code") > 0 else None
    notes: tuple[str, ...] = ()
    if header.one("sform_code") <= 0 and header.one("qform_code") <= 0:
        chosen = _usable(LPS @ np.diag([*sizes, 1.0]))
        notes = ("The file does not say how the patient lay; left and right are not certain.",)
    elif by_rows is None or by_turn is None:
        chosen = by_turn if by_rows is None else by_rows
    else:
        agree = np.allclose(by_rows, by_turn, atol=1e-4)
        chosen = by_rows if _upright(by_rows) and (agree or header.one("sform_code") == _SCANNER) else by_turn
        if not np.allclose(by_rows, by_turn, atol=0.02):
            notes = ("The file gives two frames that do not agree; the one that 3D Slicer uses was taken.",)
    if chosen is None:
        raise ReaderError(
            f"The frame in '{path}' cannot be inverted: voxel sizes {[round(float(x), 4) for x in sizes]} mm and its "
            "matrix give the voxels no volume. Export the scan again."
        )
    scale = _UNITS_MM.get(int(header.one("xyzt_units")) & 7, 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ chosen[:, [2, 1, 0, 3]], notes


def _usable(affine: Array) -> Array | None:
    """`affine` where it can be inverted, else None."""
    if not np.isfinite(affine).all():
        return None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        return None
    return affine


def _upright(affine: Array) -> bool:
    """Whether the axes stand at right angles, as exactly as ITK asks."""
    turn = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(turn @ turn.T, np.eye(3), atol=1e-4))


def _turned(header: _Header, sizes: Array) -> Array:
    """(4, 4) from (i, j, k, 1) of the header's quaternion, voxel sizes and offset (NIfTI's method 2)."""
    b, c, d, *offset = header.get("quatern")
    rest = 1.0 - (b * b + c * c + d * d)
    a = np.sqrt(rest) if rest >= _HALF_TURN else 0.0
    a, b, c, d = np.array([a, b, c, d]) / max(float(np.linalg.norm([a, b, c, d])), 1e-12)
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = turn * sizes * [1, 1, -1 if header.get("pixdim")[0] < 0 else 1]
    affine[:3, 3] = offset
    return affine
