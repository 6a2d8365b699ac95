"""One Slicer core for all tests of this folder, its scene empty at the start of each; and one worker for its panels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.transport import SubprocessTransport
from Testing.made_scans import oblique_grid
from Testing.slicer.core import SlicerCore, missing

if TYPE_CHECKING:
    from Testing.slicer.host import Host

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # else a file that needs no core ends the program

if missing():  # test_core.py says why
    collect_ignore_glob = ["test_[!c]*.py"]


@pytest.fixture(scope="session")
def whole_core() -> SlicerCore:
    """The only one of this process: Slicer's factories are singletons."""
    return SlicerCore()


@pytest.fixture(scope="module")
def host(whole_core: SlicerCore) -> Host:
    """The desktop's stand-in around the core."""
    from Testing.slicer.host import Host

    return Host(whole_core)


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


@pytest.fixture(scope="session")
def worker() -> Iterator[Client]:
    """A client on pipes; its program is started once for all."""
    client = Client(SubprocessTransport())
    yield client
    client.close()


@pytest.fixture
def scan(core: SlicerCore) -> Any:
    """As large as a patient, turned, flipped."""
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(1).integers(-20, 120, grid.shape).astype(np.int16)
    values[2:5, 3:6, 8:12] = -900
    node = core.volume(values, grid.affine, "CT body")
    core.window(node, 400, 40)
    core.show(node)
    return node


@pytest.fixture
def files() -> dict[str, str]:
    """DICOM instance UID -> file, as Slicer's database knows them; to be filled."""
    return {}


@pytest.fixture
def panel(core: SlicerCore, scan: Any, worker: Client, tiny_model: Path, files: dict[str, str]) -> Iterator[Any]:
    """A panel without a view, a tiny model chosen."""
    from MedVLMReaderLib.panel import Panel
    from Testing.slicer.driving import settled

    made = Panel(core.scene, worker, file_of=lambda uid: files.get(uid, ""))
    made._loaded_choice = "", ""
    made.set(model=str(tiny_model))
    settled(made)  # what a model of one's own needs is asked of the worker
    yield made
    made._watch.stop()
    made.gpu.close()
    made.closing()
    settled(made)
