"""What several tests share: small scans with awkward geometry, and a tiny model."""

from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid


@pytest.fixture
def oblique_ct() -> Volume:
    """Non-cubic, turned, flipped; air around soft tissue, one voxel of metal off the middle."""
    grid = oblique_grid((7, 10, 12), (5.0, 1.5, 2.0))
    values = np.full(grid.shape, -1000, np.int16)
    values[1:6, 2:9, 2:10] = np.random.default_rng(0).integers(0, 90, (5, 7, 8))
    values[4, 3, 8] = 2000
    return Volume(values, grid, "CT", "made")


@pytest.fixture
def body_ct() -> Volume:
    """As large as a patient, so that the tiny model's coarse cells hold tissue: turned, flipped, thick slices."""
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(1).integers(-20, 120, grid.shape).astype(np.int16)
    values[2:5, 3:6, 8:12] = -900
    return Volume(values, grid, "CT", "made")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny MS-VLM that always writes `Testing.tiny_model.TINY_TEXT`; copy it to change it."""
    from Testing.tiny_model import write_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder
