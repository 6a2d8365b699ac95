"""Puts a `State` onto the form of the Slicer module. The module `qt` and the form's widgets are handed in.

PythonQt's ways: properties are attributes, and are set by their methods here, so that the two are not mixed up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedVLMReaderLib.curves import drawn
from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.parameters import REGION, Settings
from MedVLMReaderLib.state import State
from MedVLMReaderLib.volume import PLANES

CURVE_PIXELS = 60, 140


class Drawing:
    """Draws what is another than before."""

    def __init__(self, qt: Any, ui: Any, edited: str) -> None:
        """`ui`: the form's widgets by their names; `edited`: what is said of a report that was edited."""
        self.qt, self.ui, self.edited, self.before, self.began = qt, ui, edited, State(), False
        self.saw: bytes | None = None
        self.kinds = {
            "text": ui.textBox, "markdown": ui.markdownBox, "pdf": ui.pdfBox, "json": ui.jsonBox, "fhir": ui.fhirBox,
            "sr": ui.srBox, "dicom-pdf": ui.dicomPdfBox, "sc": ui.scBox, "pmap": ui.pmapBox, "seg": ui.segBox,
        }  # fmt: skip
        """The box of each kind of file that a report is exported as."""

    def draw(self, state: State, panel: Panel) -> None:
        """Draw a state of the panel."""
        self._able(state)
        self._words(state)
        self._progress(state)
        self._choices(panel.settings, panel.scan)
        if state.heat != self.before.heat or not self.began:
            self._curves(panel)
        self.began = True
        if panel.saw is not self.saw:
            self.saw = panel.saw
            self._picture(self.ui.sawLabel, panel.saw)
        self.before = state

    def _able(self, state: State) -> None:
        ui = self.ui
        for widgets, able in (
            ((ui.readButton,), state.can_read), ((ui.askButton, ui.sawButton), state.can_ask),
            ((ui.stopButton,), state.can_stop), ((ui.verifyButton,), state.can_verify),
            ((ui.copyButton, ui.saveButton, ui.findingsEdit, ui.impressionEdit), state.has_text),
            ((ui.plotButton, ui.hideButton), bool(state.heat)), ((ui.restoreButton,), state.edited),
            ((ui.exportButton,), state.can_export), ((ui.readSceneButton, ui.readFolderButton), state.can_read_many),
        ):  # fmt: skip
            for widget in widgets:
                widget.setEnabled(able)

    def _words(self, state: State) -> None:
        ui, before = self.ui, self.before
        for label, text in (
            (ui.memoryLabel, state.memory), (ui.statusLabel, state.status), (ui.messageLabel, state.message),
            (ui.noteLabel, state.note), (ui.provenanceLabel, state.provenance), (ui.heatLabel, state.heat),
            (ui.verdictLabel, state.verdict), (ui.editedLabel, self.edited if state.edited else ""),
        ):  # fmt: skip
            if label.text != text:
                label.setTextFormat(self.qt.Qt.PlainText)
                label.setText(text)
            label.setVisible(bool(text))
        for browser, html, old in (
            (ui.reportBrowser, state.report, before.report), (ui.chatBrowser, state.chat, before.chat)
        ):  # fmt: skip
            if html != old:
                browser.setHtml(html)
        for edit, text in ((ui.findingsEdit, state.findings), (ui.impressionEdit, state.impression)):
            if edit.plainText.strip() != text:
                edit.setPlainText(text)

    def _progress(self, state: State) -> None:
        bar, progress = self.ui.progressBar, state.progress
        bar.setVisible(bool(state.status))
        bar.setMaximum(progress[1] and 100 if progress else 0)
        bar.setValue(100 * progress[0] // progress[1] if progress and progress[1] else 0)

    def _choices(self, settings: Settings, scan: Any) -> None:
        ui = self.ui
        if ui.modelBox.findData(settings.model) < 0:  # a folder of the user's
            ui.modelBox.insertItem(ui.modelBox.count - 1, Path(settings.model).name, settings.model)
        for box, name in (
            (ui.modelBox, settings.model), (ui.precisionBox, settings.precision), (ui.methodBox, settings.method),
            (ui.contextBox, settings.context),
        ):  # fmt: skip
            number = box.findData(name)
            if number >= 0 and box.currentIndex != number:
                box.setCurrentIndex(number)
        for slider, value in ((ui.opacitySlider, settings.opacity), (ui.thresholdSlider, settings.threshold)):
            if abs(slider.value - value) > 1e-6:
                slider.setValue(value)
        for shown in (ui.regionSelector, ui.regionLabel):
            shown.setVisible(settings.context == REGION)
        for kind, box in self.kinds.items():
            box.setChecked(kind in settings.kinds.split())
        if ui.scanSelector.currentNode() is not scan:
            ui.scanSelector.setCurrentNode(scan)

    def _curves(self, panel: Panel) -> None:
        case, ui = panel.case, self.ui
        curves = case.heat.curves if case is not None and case.heat is not None else ()
        ui.curveLabel.setVisible(bool(curves))
        for plane, label in zip(PLANES, (ui.axialCurve, ui.coronalCurve, ui.sagittalCurve), strict=True):
            self._picture(label, next((drawn(one, CURVE_PIXELS) for one in curves if one.plane == plane), b""))

    def _picture(self, label: Any, png: bytes) -> None:
        label.setVisible(bool(png))
        if png:
            pixmap = self.qt.QPixmap()
            pixmap.loadFromData(self.qt.QByteArray(png))
            label.setPixmap(pixmap)
