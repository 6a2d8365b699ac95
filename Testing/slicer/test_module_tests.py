"""The tests that Slicer's own runner executes, run here on the Slicer core; and the sample study in Sample Data."""

from __future__ import annotations

import importlib.util
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import MODULE, Host
from Testing.slicer.sample_data import SampleData


@pytest.fixture
def view(host: Host, core: SlicerCore) -> Iterator[Any]:
    with pythonqt.nothing_fails():
        host.samples = SampleData(core)
        widget = host.load()
        host.application_started()
        yield widget
        widget.cleanup()


def run(module: Any) -> unittest.TestResult:
    """As Slicer's runner: every test case of a module."""
    found = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(found)
    return found


def said(found: unittest.TestResult) -> str:
    return "\n".join(text for _, text in found.errors + found.failures)


def test_slicers_runner_executes_the_modules_tests(view: Any) -> None:
    found = run(sys.modules["MedVLMReader"])
    assert found.wasSuccessful(), said(found)
    assert found.testsRun >= 4
    assert found.skipped == []


def test_reload_and_test_runs_all_of_them(view: Any) -> None:
    test = sys.modules["MedVLMReader"].MedVLMReaderTest()
    test.runTest()
    named = {name for name in dir(test) if name.startswith("test_")}
    source = (MODULE).read_text()
    assert all(f"self.{name}," in source or f"self.{name}\n" in source for name in named), "runTest leaves one out"


@pytest.mark.slow
def test_the_sample_test_of_slicers_runner_reads_the_sample(view: Any) -> None:
    path = Path(MODULE.parent / "Testing" / "Python" / "MedVLMReaderSampleTest.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = run(module)
    assert found.wasSuccessful(), said(found)
    assert (found.testsRun, found.skipped) == (1, [])


def test_the_sample_study_is_registered_once_and_nothing_is_downloaded_for_it(host: Host, view: Any) -> None:
    sample = sys.modules["MedVLMReaderQt.sample"]
    sample.register()
    (source,) = host.samples.sources["MedVLM Reader"]
    assert source.uris.startswith("file://")
    assert Path(source.thumbnailFileName).is_file()
    assert "DOE" not in source.nodeNames
