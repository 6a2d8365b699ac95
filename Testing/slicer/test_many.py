"""Many scans from the module: the scene's volumes or a folder, with a dialog that says how far it is and cancels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch import Progress
from MedVLMReaderLib.many import how_far, studies_in
from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.paper import UIDS
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.worker.interpreter import VARIABLE
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import Host
from Testing.slicer.looks import everything_of_the_user
from Testing.slicer.relay import Relay
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import write_tiny_scan


def more(core: SlicerCore, count: int, name: str = "DOE^JANE") -> list[Any]:
    """Further scans, two of them of one name."""
    made = []
    for n in range(count):
        values = np.random.default_rng(n).integers(-50, 99, (9, 12, 13)).astype(np.int16)
        made.append(core.volume(values, np.diag([25.0, 20, 20, 1]), name))
    return made


def folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.rglob("reading.json"))


def test_every_scan_of_the_scene_is_read_once_and_what_is_there_is_skipped(
    core: SlicerCore, panel: Panel, scan: Any, tmp_path: Path
) -> None:
    more(core, 2)
    core.volume(np.ones((4, 5, 6), np.uint8), np.eye(4), "organs", "LabelMap")
    user, told = everything_of_the_user(core.scene), []
    panel.read_scene(tmp_path / "out", told.append, lambda: False)
    assert (panel.message, panel.note) == ("", "3 read, of 3.")
    assert [(one.done, one.total) for one in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [Reading.load(one).text for one in folders(tmp_path / "out")] == [TINY_TEXT] * 3
    assert everything_of_the_user(core.scene) == user
    panel.read_scene(tmp_path / "out", told.append, lambda: False)
    assert panel.note == "0 read, 3 there before, of 3."
    whole = " ".join(path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert "DOE" not in whole + " ".join(str(path) for path in (tmp_path / "out").rglob("*"))


def test_ids_stay_the_same_for_the_same_scan_and_are_another_for_another(core: SlicerCore, scan: Any) -> None:
    (same,) = studies_in(core.scene)
    (other,) = more(core, 1)
    known = {study.id for study in studies_in(core.scene)}
    assert same.id in known
    assert len(known) == 2
    other.SetAttribute(UIDS, "1.2 1.3")
    assert len({study.id for study in studies_in(core.scene)} - known) == 1
    core.scene.RemoveNode(scan)
    core.scene.RemoveNode(other)
    with pytest.raises(ReaderError, match="holds no scan that can be read"):
        studies_in(core.scene)


def test_a_cancelled_run_keeps_what_is_done_and_goes_on_later(
    core: SlicerCore, panel: Panel, scan: Any, tmp_path: Path
) -> None:
    more(core, 2)
    told: list[Progress] = []
    panel.read_scene(tmp_path / "out", told.append, lambda: bool(told and told[-1].done == 1))
    assert panel.note == "Stopped. 1 read, 2 left, of 3."
    assert len(folders(tmp_path / "out")) == 1
    panel.read_scene(tmp_path / "out", told.append, lambda: False)
    assert panel.note == "2 read, 1 there before, of 3."


def test_a_damaged_file_in_a_folder_costs_nothing_but_itself(panel: Panel, tmp_path: Path) -> None:
    for n in range(2):
        write_tiny_scan(tmp_path / "scans" / f"{n}.nii.gz", n)
    (tmp_path / "scans" / "x.nii.gz").write_bytes(b"no scan")
    panel.read_folder(tmp_path / "scans", tmp_path / "out", lambda _: None, lambda: False)
    assert (panel.message, panel.note) == ("", "2 read, 1 failed: see error.json, of 3.")
    (error,) = (tmp_path / "out").rglob("error.json")
    assert json.loads(error.read_text())
    panel.read_folder(tmp_path / "nowhere", tmp_path / "out", lambda _: None, lambda: False)
    assert "does not exist" in panel.message
    (tmp_path / "file").write_text("")
    panel.read_folder(tmp_path / "scans", tmp_path / "file", lambda _: None, lambda: False)
    assert panel.message != ""
    assert not panel.reading_many


def test_how_far_it_is_in_words() -> None:
    assert how_far(Progress(20, 0, 0, None)) == "0 of 20 scans"
    assert how_far(Progress(20, 3, 1, 61.4)) == "3 of 20 scans, 1 failed; about 61 s left"
    assert how_far(Progress(20, 3, 0, 600)) == "3 of 20 scans; about 10 min left"
    assert how_far(Progress(900, 3, 0, 7200)) == "3 of 900 scans; about 2.0 h left"
    assert how_far(Progress(20, 20, 0, 0.0)) == "20 of 20 scans"


@pytest.fixture
def view(
    whole_core: SlicerCore, core: SlicerCore, scan: Any, tmp_path: Path, tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Host, Any, Relay]]:  # fmt: skip
    relay = Relay(tmp_path / "relay")
    monkeypatch.setenv(VARIABLE, relay.python)
    pythonqt.slot_errors.clear()
    host = Host(whole_core)
    widget = host.load()
    widget.panel.set(model=str(tiny_model))
    yield host, widget, relay
    widget.cleanup()
    assert pythonqt.slot_errors == []


@pytest.mark.slow
def test_by_clicks_the_window_lives_the_dialog_counts_and_cancel_ends_it(
    core: SlicerCore, view: tuple[Host, Any, Relay], tmp_path: Path
) -> None:
    host, widget, relay = view
    more(core, 2)
    host.until(lambda: widget.ui.readSceneButton.enabled)
    ticks: list[int] = []
    timer = host.qt.QTimer()
    timer.setInterval(10)
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start()
    host.chosen = [str(tmp_path / "out")]
    widget.ui.readSceneButton.click()
    host.until(lambda: bool(widget.panel.note))
    timer.stop()
    assert len(ticks) > 20, "the loop went on meanwhile"
    assert widget.panel.note == "3 read, of 3."
    assert host.progress[-1].labelText == "3 of 3 scans"
    assert len(folders(tmp_path / "out")) == 3
    host.until(lambda: widget.ui.noteLabel.text == "3 read, of 3.")

    for n in range(3):
        write_tiny_scan(tmp_path / "scans" / f"{n}.nii.gz", n)
    relay.hold()
    cancel = host.qt.QTimer()
    cancel.setInterval(50)
    cancel.connect(
        "timeout()", lambda: len(host.progress) == 2 and (host.progress[-1].cancel(), relay.go_on(), cancel.stop())
    )
    host.chosen = [str(tmp_path / "scans"), str(tmp_path / "second")]
    cancel.start()
    widget.ui.readFolderButton.click()
    host.until(lambda: widget.panel.note.startswith("Stopped."))
    assert len(folders(tmp_path / "second")) < 3
    host.chosen = []
    widget.ui.readSceneButton.click()
    assert len(host.progress) == 2, "a dialog that was cancelled asks for nothing"
