"""A small picture of a scan for lists: its middle slice."""

from __future__ import annotations

import io

import numpy as np

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.volume import Volume, planes

SIDE = 96
"""Pixels of the longer side."""


def thumbnail(volume: Volume) -> bytes:
    """PNG of the axial plane through the middle, millimetres as long down as across."""
    axial = planes(volume)[0]
    return small_png(axial.pixels, axial.grid.spacing[1:])


def small_png(pixels: Array, spacing_mm: Array) -> bytes:
    """PNG, at most SIDE pixels a side, of (rows, columns) uint8 grey levels."""
    from PIL import Image

    down, across = np.array(pixels.shape) * spacing_mm
    scale = SIDE / max(down, across)
    size = max(1, round(across * scale)), max(1, round(down * scale))
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX).save(out, "PNG")
    return out.getvalue()
