"""The transport of console, batch and tests; and the environment that a worker starts with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from MedVLMReaderLib.worker.transport import LIBRARY, SubprocessTransport, command, environment, is_own
from Testing.worker.transports import TransportTests


class TestSubprocessTransport(TransportTests):
    @pytest.fixture
    def transport(self):
        transport = SubprocessTransport()
        yield transport
        transport.kill()


SLICER = {
    "PYTHONHOME": "/slicer/lib/Python", "PYTHONPATH": "/slicer/bin/Python", "LD_LIBRARY_PATH": "/slicer/lib",
    "QT_PLUGIN_PATH": "/slicer/plugins", "HF_HOME": "/models", "PATH": "/usr/bin",
}  # fmt: skip


def test_another_python_gets_nothing_of_what_a_launcher_set_for_itself():
    found = environment("/opt/reader/bin/python", SLICER)
    assert {"PYTHONHOME", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH"} & set(found) == set()
    assert found["PYTHONPATH"] == str(LIBRARY.parent)
    assert (found["HF_HOME"], found["PATH"]) == ("/models", "/usr/bin")


def test_an_own_python_keeps_what_it_needs():
    for python in ("/slicer/bin/PythonSlicer", "C:/Slicer/bin/PythonSlicer.exe", sys.executable):
        assert is_own(python)
        found = environment(python, SLICER)
        assert found["LD_LIBRARY_PATH"] == "/slicer/lib"
        assert found["PYTHONPATH"].endswith("/slicer/bin/Python")


def test_an_installed_library_does_not_bring_its_neighbours_along(monkeypatch):
    monkeypatch.setattr("MedVLMReaderLib.worker.transport.LIBRARY", Path("/slicer/site-packages/MedVLMReaderLib"))
    assert "PYTHONPATH" not in environment("/opt/reader/bin/python", SLICER)
    assert command("p") == ["p", "-P", "-m", "MedVLMReaderLib.worker"]
