"""One Slicer core for all tests of this folder, its scene empty at the start of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from MedVLMReaderLib.geometry import Grid
from Testing.made_scans import oblique_grid
from Testing.slicer.core import SlicerCore, missing

if missing():  # test_core.py says why
    collect_ignore_glob = ["test_[!c]*.py"]


@pytest.fixture(scope="session")
def whole_core() -> SlicerCore:
    """The only one of this process: Slicer's factories are singletons."""
    return SlicerCore()


@pytest.fixture
def core(whole_core: SlicerCore) -> Iterator[SlicerCore]:
    """With an empty scene and its slice views as they start."""
    whole_core.reset()
    yield whole_core
    whole_core.reset()


@pytest.fixture
def grid() -> Grid:
    """Oblique, flipped, no two sizes alike, as large as a part of a body."""
    return oblique_grid((14, 30, 40), (7.0, 3.5, 4.0))


@pytest.fixture
def ct(core: SlicerCore, grid: Grid) -> object:
    """A CT in all three views, in a window of 300 at 50."""
    values = np.random.default_rng(0).integers(-80, 180, grid.shape).astype(np.int16)
    values[:, :6] = -1000
    node = core.volume(values, grid.affine, "CT chest")
    core.window(node, 300, 50)
    core.show(node)
    return node
