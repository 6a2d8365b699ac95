"""Pythons that can make an environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from MedVLMReaderLib.install import interpreters
from MedVLMReaderLib.install.interpreters import loaded_here, suitable


@pytest.mark.skipif(os.name == "nt", reason="scripts of the shell")
def test_only_pythons_that_start_and_can_read_are_offered_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(name: str, text: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    program("python3.13", "exit 127")
    program("python3.12", "echo '3|9|/old'")
    program("python3.11", f'exec "{sys.executable}" "$@"')
    program("python3", f'exec "{sys.executable}" "$@"')
    monkeypatch.setattr(interpreters, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert suitable() == [str(tmp_path / "python3.11")]
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert suitable() == []
    monkeypatch.setattr(interpreters, "PLACES", (str(tmp_path),))
    assert suitable() == [str(tmp_path / "python3.11")], "as where Slicer was started by a click"


def test_what_this_program_has_loaded_is_told_with_its_version() -> None:
    import numpy

    assert loaded_here()["numpy"] == numpy.__version__
    assert "torch" not in loaded_here()
