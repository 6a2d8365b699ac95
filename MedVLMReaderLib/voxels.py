"""From the numbers that a file stores to those that a `Volume` holds: rescaled, small, finite and not all alike."""

from __future__ import annotations

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array

MIN_SLICES = 2
"""Fewer are a picture, not a volume: nothing tells how thick it is."""

_AIR = -1100, -600  # HU: air around the patient and in the lungs
_TISSUE = -200, 300  # HU: fat to contrast-filled vessels
_SAMPLE = 200_000  # voxels looked at to tell CT from other numbers


def rescaled(stored: Array, slope: float, intercept: float) -> Array:
    """`stored` * slope + intercept: the smallest integers that hold it where all are whole, float32 otherwise."""
    if slope == 1 and intercept == 0:
        return narrowed(stored)
    whole = slope == round(slope) and intercept == round(intercept)
    if whole and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        ends = [bound * slope + intercept for bound in (np.iinfo(stored.dtype).min, np.iinfo(stored.dtype).max)]
        if max(map(abs, ends)) < 2**31:
            return narrowed(stored.astype(np.int32) * np.int32(slope) + np.int32(intercept))
    out = stored.astype(np.float32)
    out *= np.float32(slope)
    out += np.float32(intercept)
    return out


def narrowed(values: Array) -> Array:
    """The same numbers in nothing larger than 16-bit integers or float32: integers where they fit."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu":
        if values.dtype.itemsize <= 2:
            return values.astype(values.dtype.newbyteorder("="), copy=False)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        for smaller in (np.int16, np.uint16):
            if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
                return values.astype(smaller)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and `finite` counts it
        return values.astype(np.float32, copy=False)


def joined(pictures: list[Array]) -> Array:
    """(n, rows, columns) of pictures of possibly different number types, in the smallest type that holds all."""
    dtype = np.result_type(*{picture.dtype for picture in pictures})
    if dtype.itemsize > 2:
        dtype = np.dtype(np.float32)
    return np.stack([picture.astype(dtype, copy=False) for picture in pictures])


def finite(values: Array) -> tuple[Array, tuple[str, ...]]:
    """`values` with NaN and infinite voxels set to the lowest finite one, and a note that counts them.

    Raises ReaderError where more than half are not numbers, or all voxels are equal.
    """
    notes: tuple[str, ...] = ()
    bad = 0
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
        good = np.isfinite(values)
        bad = int(good.size - good.sum())
        if bad * 2 > good.size:
            raise ReaderError(f"{bad} of {good.size} voxels are not numbers (NaN or infinite). Export the scan again.")
        lowest = float(values.min(where=good, initial=np.inf))
        values = np.where(good, values, np.float32(lowest))
        notes = (f"{bad} of {good.size} voxels were not numbers and were set to the lowest value, {lowest:g}.",)
    first = values.flat[0]
    if all(bool((picture == first).all()) for picture in values):
        raise ReaderError(f"All voxels have the same value, {first:g}: there is no picture. Export the scan again.")
    return values, notes


def looks_like_ct(values: Array) -> bool:
    """Whether the numbers are Hounsfield units by their look: some of air or padding, most air or soft tissue."""
    step = max(1, round((values.size / _SAMPLE) ** (1 / 3)))
    some = values[::step, ::step, ::step].astype(np.float32)
    if some.min() > -500 or some.max() < 0:
        return False
    body = some[some > -1100]  # scanners fill the corners outside their view with anything below air
    if body.size == 0:
        return False
    air = float(((body >= _AIR[0]) & (body <= _AIR[1])).mean())
    tissue = float(((body >= _TISSUE[0]) & (body <= _TISSUE[1])).mean())
    return tissue >= 0.05 and air + tissue >= 0.6
