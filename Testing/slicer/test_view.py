"""The real module file and form in the host: real buttons, a real worker, the built-in model, real pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError, overlay
from MedVLMReaderLib.files import read
from MedVLMReaderLib.transcript import sections
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import MODULE, Host
from Testing.slicer.looks import changed, everything_of_the_user

ROOT = Path(__file__).resolve().parents[2]
UI = MODULE.parent / "Resources" / "UI" / "MedVLMReader.ui"
ALONE = """
import sys
import numpy as np
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.driving import drafted, sentence
from Testing.slicer.host import Host

core = SlicerCore()
host = Host(core)
core.show(core.volume(np.ones((9, 12, 10), np.int16), np.diag([20.0, 20, 20, 1]), "CT"))
widget = host.load()
drafted(widget.panel)
widget.ui.reportBrowser.anchorClicked.emit(host.qt.QUrl(sentence(widget.panel, 1)))
host.until(lambda: bool(widget.ui.heatLabel.text), 60)
widget.cleanup()
assert pythonqt.slot_errors == []
assert not {"torch", "transformers", "scipy"} & sys.modules.keys()
"""


@pytest.fixture
def view(host: Host, core: SlicerCore) -> Iterator[Any]:
    with pythonqt.nothing_fails():
        widget = host.load()
        yield widget
        widget.cleanup()


def sample(core: SlicerCore) -> Any:
    volume = read(ROOT / "Resources" / "sample" / "sample.nii.gz")
    node = core.volume(volume.values, volume.grid.affine, "Sample")
    core.window(node, 400, 40)
    core.show(node)
    return node


def test_every_connection_is_made_and_nothing_to_read_is_said(host: Host, view: Any) -> None:
    assert len(view.connected) > 25
    assert all(view.connected)
    view.ui.questionEdit.setText("Anything?")
    view.ui.askButton.setEnabled(True)
    view.ui.askButton.click()
    view.draw()
    assert view.ui.messageLabel.text.startswith("There is no volume to read")
    assert view.ui.questionEdit.text == "Anything?"


@pytest.mark.slow
def test_the_sample_is_read_by_clicks_alone(host: Host, core: SlicerCore, view: Any) -> None:
    node = sample(core)
    host.until(lambda: view.ui.readButton.enabled)
    assert view.panel.scan is node
    assert view.ui.memoryLabel.text.startswith("Needs 0.1 GB")
    user, before = everything_of_the_user(core.scene), core.pictures()
    view.ui.readButton.click()
    host.until(lambda: bool(view.panel.case.kept) or bool(view.panel.message))
    host.until(lambda: bool(view.ui.findingsEdit.plainText))
    assert view.panel.message == ""
    expected = json.loads((ROOT / "Resources" / "sample" / "reference.json").read_text())["text"]
    assert view.panel.case.kept[0].turn.reading.text == expected, "what `medvlmreader check` expects"
    assert (view.ui.findingsEdit.plainText, view.ui.impressionEdit.plainText) == sections(expected)
    assert "Not for clinical use" in view.ui.provenanceLabel.text
    start, stop = view.panel.case.kept[0].turn.reading.sentences[6]
    view.ui.reportBrowser.anchorClicked.emit(host.qt.QUrl(f"sentence:0/{start}-{stop}"))
    host.until(lambda: view.panel.case.heat is not None or bool(view.panel.message))
    host.until(lambda: bool(view.ui.heatLabel.text))
    assert "times even" in view.ui.heatLabel.text
    after = core.pictures()
    assert all(changed(before[name], picture).mean() > 0.01 for name, picture in after.items())
    assert everything_of_the_user(core.scene) == user
    view.ui.opacitySlider.setValue(0.0)
    assert view.panel.settings.opacity == 0.0
    view.ui.copyButton.click()
    assert "Not for clinical use" in host.qt.QApplication.clipboard().text()
    view.ui.hideButton.click()
    assert overlay.shown(core.scene) is None
    assert everything_of_the_user(core.scene) == user
    view.ui.questionEdit.setText("Is there a dark lesion in the liver?")
    view.ui.askButton.click()
    host.until(lambda: len(view.panel.case.kept) == 2 or bool(view.panel.message))
    host.until(lambda: "liver" in view.ui.chatBrowser.plainText)
    assert view.panel.message == ""


def test_the_view_never_brings_torch_into_its_process() -> None:
    """Nor scipy, whose import would hold up the first heatmap."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_console_reads_and_asks_and_knows_where_the_model_looked(
    host: Host, core: SlicerCore, view: Any, tiny_model: Path
) -> None:
    logic = sys.modules["MedVLMReader"].MedVLMReaderLogic()
    node = sample(core)
    try:
        assert "fp32" in logic.load(str(tiny_model))
        reading = logic.read(node)
        answer = logic.ask(node, "Is there a stone?")
        assert reading.complete
        assert answer.question == "Is there a stone?"
        assert abs(float(logic.heatmap(node, reading, 0).values.sum()) - 1) < 1e-3
        with pytest.raises(ReaderError, match="no volume to read"):
            logic.read(None)
    finally:
        logic.close()


def test_no_text_on_the_form_promises_a_finding() -> None:
    words = " ".join(one.text or "" for one in ElementTree.parse(UI).iter("string")).lower()
    assert "diagnos" not in words
    assert "evidence" not in words


def test_reading_again_asks_first(host: Host, core: SlicerCore, view: Any) -> None:
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.results import Kept
    from MedVLMReaderLib.session import Turn

    sample(core)
    host.until(lambda: view.panel.scan is not None)
    view.panel.case.kept.append(
        Kept(Turn("", Reading("", "Clear.", True, (), (), "m", "1")), np.eye(4), is_report=True)
    )
    host.agreed, host.asked = False, []
    view.panel.read()
    began = time.monotonic()
    host.until(lambda: bool(host.asked), 5)
    assert time.monotonic() - began < 2
    assert host.asked[0].startswith("Reading again replaces the report")
    assert not view.panel.client.busy
    host.agreed = True


def test_what_is_no_scan_is_said_on_the_form_and_nothing_is_begun(host: Host, core: SlicerCore, view: Any) -> None:
    import vtk

    labels = core.volume(np.ones((4, 5, 6), np.uint8), np.eye(4), "organs", "LabelMap")
    colours = core.volume(np.ones((4, 5, 6, 3), np.uint8), np.eye(4), "photo", "Vector")
    bent, transform = sample(core), core.scene.AddNewNodeByClass("vtkMRMLTransformNode")
    spline, points, there = vtk.vtkThinPlateSplineTransform(), vtk.vtkPoints(), vtk.vtkPoints()
    for n, place in enumerate(np.eye(4)[:, :3] * 50):
        points.InsertNextPoint(place)
        there.InsertNextPoint(place + n)
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(there)
    transform.SetAndObserveTransformToParent(spline)
    bent.SetAndObserveTransformNodeID(transform.GetID())
    for node, said in ((labels, "is a label map"), (colours, "no grey-valued scan"), (bent, "Harden the transform")):
        user = everything_of_the_user(core.scene)
        view.panel.choose_scan(node)
        view.panel.read()
        view.draw()
        assert said in view.ui.messageLabel.text
        assert not view.panel.client.busy
        assert everything_of_the_user(core.scene) == user


def test_html_in_an_answer_is_shown_letter_by_letter(host: Host, core: SlicerCore, view: Any) -> None:
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.results import Kept
    from MedVLMReaderLib.session import Turn

    sample(core)
    host.until(lambda: view.panel.scan is not None)
    evil = 'Clear. <img src="file:///etc/passwd" onerror="x"> & <a href="https://example.org">here</a>.'
    reading = Reading("<u>Why?</u>", evil, True, (), (), "<i>m</i>", "1", notes=("<b>Note</b>",))
    view.panel.case.kept += [
        Kept(Turn("", reading), np.eye(4), is_report=True), Kept(Turn("<u>Why?</u>", reading), np.eye(4))
    ]  # fmt: skip
    view.touched()
    view.draw()
    assert evil in view.ui.reportBrowser.plainText
    assert "<b>Note</b>" in view.ui.reportBrowser.plainText
    assert "<u>Why?</u>" in view.ui.chatBrowser.plainText
    assert "<i>m</i>" in view.ui.provenanceLabel.text
    assert view.ui.findingsEdit.plainText == evil
    view.ui.reportBrowser.anchorClicked.emit(host.qt.QUrl("https://example.org"))
    assert "is no place in this scan" in view.panel.message


def test_ticked_kinds_are_kept_with_the_scene_and_nothing_is_exported_without_a_report(
    host: Host, core: SlicerCore, view: Any, tmp_path: Path
) -> None:
    sample(core)
    host.until(lambda: view.panel.scan is not None and not view.dirty)
    assert view.ui.exportButton.enabled is False
    assert (view.ui.pdfBox.checked, view.ui.textBox.checked, view.ui.srBox.checked) == (True, True, False)
    view.ui.srBox.click()
    view.ui.textBox.click()
    assert view.panel.settings.kinds == "pdf sr"
    assert core.save(tmp_path / "scene.mrb")
    assert core.open(tmp_path / "scene.mrb")
    view.draw()
    assert (view.ui.pdfBox.checked, view.ui.textBox.checked, view.ui.srBox.checked) == (True, False, True)
    host.chosen = [str(tmp_path / "out")]
    view.export()
    assert view.panel.message.startswith("There is no report to export")
    assert not (tmp_path / "out").exists()
