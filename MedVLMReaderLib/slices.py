"""How a heatmap is shared among the slices of each plane: a curve that says at once where along the body it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.heatmap import combined
from MedVLMReaderLib.volume import PLANES, PlaneName, Volume

AXES: dict[PlaneName, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The patient coordinate (r, a, s) that tells the slices of a plane apart."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The shares of a plane's slices."""

    plane: PlaneName
    places_mm: Array
    """(slices,) S of axial slices, A of coronal, R of sagittal ones, of the middle of each; rising."""
    shares: Array
    """(slices,) of the whole heatmap; they sum to 1."""


def slice_curves(heat: Volume | Sequence[Volume]) -> tuple[Curve, Curve, Curve]:
    """Axial, coronal and sagittal curves of a heatmap, or of a reading's `heatmaps`, along its own nearest axes."""
    whole = heat if isinstance(heat, Volume) else combined(heat)
    axial, coronal, sagittal = (_curve(whole, plane) for plane in PLANES)
    return axial, coronal, sagittal


def _curve(heat: Volume, plane: PlaneName) -> Curve:
    stack = heat.as_seen(plane)
    shares = np.nan_to_num(stack.values.astype(np.float64)).sum((1, 2))
    count, rows, columns = stack.grid.shape
    middles = np.stack([np.arange(count), np.full(count, (rows - 1) / 2), np.full(count, (columns - 1) / 2)], -1)
    places = stack.grid.to_world(middles)[:, AXES[plane]]
    order = np.argsort(places)
    return Curve(plane, places[order], shares[order] / max(float(shares.sum()), 1e-30))
