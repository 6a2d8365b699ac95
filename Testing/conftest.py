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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny MS-VLM that always writes `Testing.tiny_model.TINY_TEXT`; copy it to change it."""
    from Testing.tiny_model import write_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder
