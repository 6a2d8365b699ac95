"""The examples of the docs, run as they stand there; and what is asked from the console without waiting."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.files import read
from MedVLMReaderLib.worker.events import FINAL, Answered, Started, Word
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import Host
from Testing.tiny_scan import write_tiny_scan

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("slicer-module.md", "console.md")]
DESKTOP = ("loadVolume", "m3d-lamed", "setValue", "dicomDatabase", "chest.nii.gz")
"""What an example uses that only the desktop has, or the net, or a file of the user's."""


@pytest.fixture
def module(whole_core: SlicerCore, core: SlicerCore) -> Iterator[tuple[Host, Any]]:
    pythonqt.slot_errors.clear()
    host = Host(whole_core)
    host.load().cleanup()
    yield host, sys.modules["MedVLMReader"]
    assert pythonqt.slot_errors == []


def examples() -> list[str]:
    """The console's examples, in their order; those that need the desktop left out."""
    texts = [page.read_text() for page in PAGES if page.exists()]
    found = [code for text in texts for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    return [code for code in found if not any(word in code for word in DESKTOP)]


@pytest.mark.slow
def test_the_examples_of_the_docs_run(
    core: SlicerCore, module: tuple[Host, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    volume = read(ROOT / "Resources" / "sample" / "sample.nii.gz")
    node = core.volume(volume.values, volume.grid.affine, "CT sample")
    core.window(node, 400, 40)
    core.show(node)
    monkeypatch.chdir(tmp_path)
    write_tiny_scan(tmp_path / "studies" / "one.nii.gz")
    names: dict[str, Any] = {"slicer": core.slicer}
    codes = examples()
    assert codes
    try:
        for code in codes:
            exec(compile(code, "docs", "exec"), names)
    finally:
        if "logic" in names:
            names["logic"].close()
    assert names["reading"].complete
    assert names["heat"].values.sum() > 0.99
    assert names["reading"].text in capsys.readouterr().out


def test_without_waiting_events_come_out_of_qts_loop(
    core: SlicerCore, module: tuple[Host, Any], scan: Any, tiny_model: Path
) -> None:
    host, real = module
    logic, told = real.MedVLMReaderLogic(), []
    try:
        assert logic.connected
        logic.logic.client.load(str(tiny_model))
        number = logic.ask(scan, "Is there a stone?", on_event=told.append)
        assert isinstance(number, int)
        assert told == []
        host.until(lambda: bool(told) and isinstance(told[-1], FINAL))
        assert isinstance(told[-1], Answered)
        stages = [event.stage for event in told if isinstance(event, Started)]
        assert stages[-2:] == ["answer", "heatmap"], "after the last word it is said that heatmaps are worked out"
        last_word = max(n for n, event in enumerate(told) if isinstance(event, Word))
        assert told.index(Started("heatmap")) == last_word + 1
        assert logic.ask(scan, "And now?").complete
        with pytest.raises(ReaderError, match="no volume to read"):
            logic.read(None)
        with pytest.raises(ReaderError, match="None of these nodes"):
            logic.readVolumes("nowhere", [])
    finally:
        logic.close()
