"""A pip that knows of no place but the tests' own, an empty Python to install into, and wheels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from Testing.install.wheels import copied, fill

EVERYTHING = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def pip_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip with no configuration of this machine; the network may not be used but for loopback."""
    for name in list(os.environ):
        if name.startswith(EVERYTHING):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody answers at the port that discards
    monkeypatch.setenv("MEDVLM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip and nothing else; to be copied."""
    folder = tmp_path_factory.mktemp("pythons") / "blank"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def python(blank: Path, tmp_path: Path) -> Path:
    """A Python of one's own, in the place of Slicer's."""
    return copied(blank, tmp_path / "python")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny wheels of all that is needed."""
    return fill(tmp_path_factory.mktemp("wheels"))
