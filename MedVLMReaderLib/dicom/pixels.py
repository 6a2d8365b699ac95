"""The numbers of DICOM images and frames, unpacked and rescaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.slices import DAMAGED, Slice, quiet
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.voxels import narrowed, rescaled


def pictures(slices: list[Slice]) -> list[Array]:
    """(rows, columns) numbers of each slice, rescaled. Raises ReaderError where pixels are missing or stay packed."""
    members: dict[Path, list[int]] = {}
    for n, one in enumerate(slices):
        members.setdefault(one.path, []).append(n)
    out: dict[int, Array] = {}
    for path, numbers in members.items():
        pixels = _pixels(path)
        for n in numbers:
            frame = slices[n].frame
            stack = pixels[None] if frame is None else pixels
            if stack.shape[1:] != slices[n].shape or (frame or 0) >= len(stack):
                raise ReaderError(DAMAGED)
            out[n] = _scaled(stack[frame or 0], slices[n])
    return [out[n] for n in range(len(slices))]


def _scaled(stored: Array, one: Slice) -> Array:
    if one.mirror is not None and stored.dtype.kind in "iu":
        stored = narrowed(one.mirror - stored.astype(np.int32))
    return rescaled(stored, one.slope, one.intercept)


def _pixels(path: Path) -> Array:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut

    name = "an unknown transfer syntax"
    try:
        with quiet():
            dataset = pydicom.dcmread(path, force=True)
            syntax = dataset.file_meta.TransferSyntaxUID
            name = syntax.name if syntax.name != syntax else name  # named by the standard, not by the file
            pixels: Array = dataset.pixel_array
            if "ModalityLUTSequence" in dataset:
                pixels = apply_modality_lut(pixels, dataset)
            return pixels
    except Exception:  # decoders raise anything, and their words may hold header text
        raise ReaderError(
            f"The pixels of a slice ({name}) are cut short or cannot be decoded. Copy or export the series again; "
            "if it is whole, install pylibjpeg, pylibjpeg-libjpeg and pylibjpeg-openjpeg."
        ) from None
