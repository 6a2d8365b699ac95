"""A scan of a few voxels on disk, as large as a body."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid


def tiny_scan(seed: int = 0) -> Volume:
    """Turned and flipped; soft tissue with a hole of air, CT."""
    grid = oblique_grid((9, 13, 11), (25.0, 21.0, 24.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(seed).integers(-20, 120, grid.shape).astype(np.int16)
    values[2:5, 3:6, 6:9] = -1000
    return Volume(values, grid, "CT")


def write_tiny_scan(path: Path, seed: int = 0) -> Path:
    """The scan as a file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_scan(seed).save(path)
    return path
