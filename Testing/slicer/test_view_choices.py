"""Each choice, key and link of the form reaches the panel, and what the panel has comes back. No worker is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import overlay
from MedVLMReaderLib.curves import chart_of
from MedVLMReaderLib.results import Kept
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.driving import drafted, sentence
from Testing.slicer.host import Host
from Testing.slicer.looks import everything_of_the_user


@pytest.fixture
def view(host: Host, core: SlicerCore, scan: Any) -> Iterator[Any]:
    with pythonqt.nothing_fails():
        widget = host.load()
        yield widget
        widget.cleanup()


@pytest.fixture
def draft(view: Any) -> Kept:
    return drafted(view.panel)


def chosen(box: Any, title: str) -> None:
    """What a user does with a box of choices."""
    number = next(n for n in range(box.count) if box.itemText(n).startswith(title))
    box.setCurrentIndex(number)
    box.activated.emit(number)


def hidden(widget: Any) -> bool:
    """Whether it would stay hidden where the panel is shown."""
    return bool(pythonqt.QtWidgets.QWidget.isHidden(widget))


def clicked(host: Host, view: Any, address: str) -> None:
    view.ui.reportBrowser.anchorClicked.emit(host.qt.QUrl(address))
    host.until(lambda: not view.dirty and view.panel.case.heat is not None, 60)


def test_model_precision_context_and_method_are_what_is_chosen(
    host: Host, core: SlicerCore, view: Any, tmp_path: Path
) -> None:
    ui, panel = view.ui, view.panel
    chosen(ui.precisionBox, "int8")
    chosen(ui.methodBox, "Attention")
    chosen(ui.contextBox, "The coronal")
    assert (panel.settings.precision, panel.settings.method, panel.settings.context) == ("int8", "attention", "coronal")
    view.draw()
    assert hidden(ui.regionSelector)
    region = core.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    chosen(ui.contextBox, "A region")
    ui.regionSelector.setCurrentNode(region)
    view.draw()
    assert not hidden(ui.regionSelector)
    panel.ask("What is this?")
    assert "has no size yet" in panel.message, "the region that was chosen, which nobody has drawn"
    host.chosen = [str(tmp_path / "my-model")]
    chosen(ui.modelBox, "A model's folder")
    view.draw()
    assert panel.settings.model == str(tmp_path / "my-model")
    assert ui.modelBox.currentText == "my-model"
    host.chosen = [""]
    chosen(ui.modelBox, "A model's folder")
    assert panel.settings.model == str(tmp_path / "my-model"), "cancelled"


def test_a_sentence_that_is_clicked_is_marked_shown_and_told_of(
    host: Host, core: SlicerCore, view: Any, draft: Kept
) -> None:
    user, before = everything_of_the_user(core.scene), core.views["Red"].node.GetSliceOffset()
    clicked(host, view, sentence(view.panel, 1))
    ui, heat = view.ui, view.panel.case.heat
    assert ui.heatLabel.text.startswith("Relevance of “Renal calculus.”: peak")
    assert "supported by the image?" in ui.reportBrowser.plainText
    assert ui.verifyButton.enabled
    assert all(not curve.pixmap.isNull() for curve in (ui.axialCurve, ui.coronalCurve, ui.sagittalCurve))
    assert overlay.shown(core.scene).GetAttribute("MedVLM.words") == "Renal calculus."
    assert core.views["Red"].node.GetSliceOffset() != before
    assert abs(core.views["Red"].node.GetSliceOffset() - heat.peak[2]) < 1e-3, "the axial view is at the peak"
    ui.plotButton.click()
    assert chart_of(core.scene) is not None
    view.ui.opacitySlider.setValue(0.25)
    view.ui.thresholdSlider.setValue(2.0)
    assert (view.panel.settings.opacity, view.panel.settings.threshold) == (0.25, 2.0)
    assert everything_of_the_user(core.scene) == user
    view.ui.hideButton.click()
    view.draw()
    assert ui.heatLabel.text == ""
    assert not view.ui.verifyButton.enabled
    assert chart_of(core.scene) is None


def test_keys_read_copy_hide_and_open_the_manual(host: Host, core: SlicerCore, view: Any, draft: Kept) -> None:
    keys = {str(one.key.toString()): one for one in view.shortcuts}
    assert set(keys) == {"Ctrl+Return", "Esc", "Ctrl+Shift+C", "Ctrl+Shift+H", "F1"}
    clicked(host, view, sentence(view.panel, 0))
    keys["Ctrl+Shift+C"].activated.emit()
    copied = host.qt.QApplication.clipboard().text()
    assert draft.text.split("\n")[0] in copied
    for part in ("m, revision 1, fp32", draft.turn.reading.created, "Not for clinical use."):
        assert part in copied
    keys["Ctrl+Shift+H"].activated.emit()
    assert overlay.shown(core.scene) is None
    keys["F1"].activated.emit()
    assert view.manual.window.visible
    host.agreed, host.asked = False, []
    view.set_up.when_ready = lambda then: then()
    keys["Ctrl+Return"].activated.emit()
    host.until(lambda: bool(host.asked), 10)
    assert host.asked[0].startswith("Reading again replaces the report")
    keys["Esc"].activated.emit()
    host.agreed = True
    assert not view.panel.client.busy


def test_what_is_saved_is_the_edited_text_with_where_it_comes_from_and_a_full_disk_is_said(
    host: Host, view: Any, draft: Kept, tmp_path: Path
) -> None:
    view.draw()
    view.ui.impressionEdit.setPlainText("Nephrolithiasis.")
    view.draw()
    assert draft.turn.reading.text.endswith("Renal calculus."), "the draft stays"
    assert view.ui.restoreButton.enabled
    host.chosen = [str(tmp_path / "report.txt"), "", str(tmp_path / "no such folder" / "report.txt")]
    view.ui.saveButton.click()
    saved = (tmp_path / "report.txt").read_text()
    assert "Impression: Nephrolithiasis." in saved
    assert "Not for clinical use." in saved
    assert "Edited after it was written." in saved
    view.ui.saveButton.click()  # cancelled
    assert view.panel.message == ""
    view.ui.saveButton.click()
    view.draw()
    assert view.ui.messageLabel.text.startswith("The text could not be saved")
    view.ui.restoreButton.click()
    view.draw()
    assert view.ui.impressionEdit.plainText == "Renal calculus."


def test_the_selector_follows_what_is_shown_until_somebody_chooses(core: SlicerCore, view: Any, scan: Any) -> None:
    values = np.zeros((5, 6, 7), np.int16)
    other = core.volume(values, np.diag([30.0, 20, 20, 1]), "CT body")
    core.show(other)
    view.draw()
    assert view.ui.scanSelector.currentNode() is other
    view.ui.scanSelector.setCurrentNode(scan)
    assert view.panel.scan is scan
    core.show(None)
    core.show(other)
    view.draw()
    assert view.ui.scanSelector.currentNode() is scan, "chosen, not followed"
