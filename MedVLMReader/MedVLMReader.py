"""MedVLM Reader in 3D Slicer: the module's entry, its view that draws what the panel says, the console's logic."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

HERE = Path(__file__).resolve().parent
if not (HERE / "MedVLMReaderLib").is_dir() and (HERE.parent / "MedVLMReaderLib").is_dir():
    sys.path.insert(0, str(HERE.parent))  # a checkout: the library lies beside the module's folder

from MedVLMReaderQt.manual import Manual  # noqa: E402

from MedVLMReaderLib import ReaderError  # noqa: E402
from MedVLMReaderLib.case import readers  # noqa: E402
from MedVLMReaderLib.curves import drawn  # noqa: E402
from MedVLMReaderLib.memory import PRECISIONS  # noqa: E402
from MedVLMReaderLib.panel import Panel  # noqa: E402
from MedVLMReaderLib.parameters import REGION  # noqa: E402
from MedVLMReaderLib.scene import check_readable, stamp, view_of, volume_from  # noqa: E402
from MedVLMReaderLib.state import State  # noqa: E402
from MedVLMReaderLib.volume import PLANES  # noqa: E402
from MedVLMReaderLib.worker.client import Client  # noqa: E402
from MedVLMReaderLib.worker.logic import Logic  # noqa: E402

WORK_MS, DRAW_MS = 15, 40


class MedVLMReader(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MedVLM Reader")
        parent.categories = ["Informatics"]
        parent.dependencies = []
        parent.contributors = ["MedVLM Reader contributors"]
        parent.helpText = _(
            "Drafts a report of a CT or MR volume with a medical vision-language model on this machine, answers "
            "questions, and shows where the model looked. Research software. Not for clinical use."
        )
        parent.acknowledgementText = _("See the README for the papers whose models are implemented.")


class ProcessTransport:
    """The worker's lines through qt.QProcess: Python threads starve under Qt's loop. See worker.transport.Transport."""

    def __init__(self):
        self.on_output = self.on_error_text = self.on_exit = lambda _: None
        self.process, self.connected = None, []

    def start(self, argv, environment):
        self.process = process = qt.QProcess()
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        process.setProcessEnvironment(variables)
        self.connected = [
            process.connect("readyReadStandardOutput()", self._output),
            process.connect("readyReadStandardError()", self._error),
            process.connect("finished(int,QProcess::ExitStatus)", self._finished),
            process.connect("errorOccurred(QProcess::ProcessError)", self._not_started),
        ]
        process.start(argv[0], list(argv[1:]))

    def send(self, line):
        if self.process is not None:
            self.process.write(qt.QByteArray(line))

    def end_input(self):
        if self.process is not None:
            self.process.closeWriteChannel()

    def kill(self):
        if self.process is not None:
            self.process.kill()

    def poll(self, seconds):
        """For who waits in the console: Qt's loop goes on meanwhile."""
        if self.process is not None:
            self.process.waitForReadyRead(int(1000 * seconds))
        slicer.app.processEvents()

    def close(self):
        """End the program and wait a moment for it, so that Qt does not destroy what still runs."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.waitForFinished(2000)

    def _output(self):
        if self.process is None:
            return
        self.on_output(self.process.readAllStandardOutput().data())

    def _error(self):
        if self.process is None:
            return
        self.on_error_text(self.process.readAllStandardError().data().decode(errors="replace"))

    def _finished(self, code, status):
        if self.process is None:
            return
        self._output()
        self._error()
        self.process = None
        self.on_exit(code if int(status) == 0 else -1)

    def _not_started(self, error):
        if int(error) == int(qt.QProcess.FailedToStart) and self.process is not None:
            text, self.process = self.process.errorString(), None
            qt.QTimer.singleShot(0, lambda: (self.on_error_text(text), self.on_exit(None)))


def interpreter():
    """The Python that has torch: the one chosen in the settings, else Slicer's own."""
    chosen = slicer.app.settings().value("MedVLMReader/python") or os.environ.get("MEDVLM_PYTHON")
    if chosen:
        return str(chosen)
    home = Path(sys.executable).parent
    for name in ("PythonSlicer", "PythonSlicer.exe"):
        for folder in (home, home.parent / "bin"):
            if (folder / name).exists():
                return str(folder / name)
    return sys.executable


class MedVLMReaderWidget(ScriptedLoadableModuleWidget):
    """Draws the panel's state, and forwards what is clicked. Whatever is about models or scans is the panel's."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.panel, self.drawn, self.dirty, self.connected, self.drawing = None, State(), True, [], False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/MedVLMReader.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.transport = ProcessTransport()
        self.panel = Panel(slicer.mrmlScene, Client(self.transport, python=interpreter()), self.touched)
        self.manual = Manual()
        self._fill()
        self._connect()
        self._shortcuts(widget)
        self.worker_timer, self.draw_timer = qt.QTimer(), qt.QTimer()
        self.worker_timer.setInterval(WORK_MS)
        self.draw_timer.setInterval(DRAW_MS)
        self.connected += [
            self.worker_timer.connect("timeout()", self.work), self.draw_timer.connect("timeout()", self.draw)
        ]  # fmt: skip
        self.worker_timer.start()
        self.draw_timer.start()
        self.panel.views_changed()
        self.draw()

    def cleanup(self):
        for timer in (self.worker_timer, self.draw_timer):
            timer.stop()
        self.manual.close()
        self.panel.close()
        self.transport.close()

    def enter(self):
        self.panel.views_changed()

    def _fill(self):
        for card in readers():
            self.ui.modelBox.addItem(card.title, card.name)
        self.ui.modelBox.addItem(_("A model's folder…"), "")
        self.ui.precisionBox.addItem(_("Auto"), "auto")
        for name in PRECISIONS:
            self.ui.precisionBox.addItem(name, name)
        self.ui.methodBox.addItem(_("The model's own"), "")
        for name, title in (("relevance", _("Relevance")), ("attention", _("Attention"))):
            self.ui.methodBox.addItem(title, name)
        titles = {"axial": _("The axial slice"), "coronal": _("The coronal slice"), "sagittal": _("The sagittal slice")}
        self.ui.contextBox.addItem(_("The whole scan"), "")
        for plane in PLANES:
            self.ui.contextBox.addItem(titles[plane], plane)
        self.ui.contextBox.addItem(_("A region (ROI)"), REGION)

    def _connect(self):
        ui, panel = self.ui, self.panel
        clicks = {
            ui.readButton: panel.read, ui.stopButton: panel.stop, ui.freeButton: panel.free, ui.askButton: self.ask,
            ui.copyButton: self.copy, ui.saveButton: self.save, ui.sawButton: panel.show_what_it_saw,
            ui.verifyButton: panel.verify, ui.plotButton: panel.plot, ui.hideButton: panel.hide,
            ui.manualButton: self.open_manual,
        }  # fmt: skip
        self.connected += [button.connect("clicked()", call) for button, call in clicks.items()]
        self.connected += [
            ui.questionEdit.connect("returnPressed()", self.ask),
            ui.scanSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.scan_chosen),
            ui.regionSelector.connect("currentNodeChanged(vtkMRMLNode*)", panel.choose_region),
            ui.modelBox.connect("activated(int)", self.model_chosen),
            ui.precisionBox.connect("activated(int)", lambda n: panel.set(precision=ui.precisionBox.itemData(n))),
            ui.methodBox.connect("activated(int)", lambda n: panel.set(method=ui.methodBox.itemData(n))),
            ui.contextBox.connect("activated(int)", lambda n: panel.set(context=ui.contextBox.itemData(n))),
            ui.opacitySlider.connect("valueChanged(double)", lambda value: self.styled(opacity=value)),
            ui.thresholdSlider.connect("valueChanged(double)", lambda value: self.styled(threshold=value)),
            ui.reportBrowser.connect("anchorClicked(QUrl)", self.clicked),
            ui.chatBrowser.connect("anchorClicked(QUrl)", self.clicked),
            ui.findingsEdit.connect("textChanged()", self.edited),
            ui.impressionEdit.connect("textChanged()", self.edited),
        ]

    def _shortcuts(self, widget):
        self.shortcuts = []
        for keys, call in (
            ("Ctrl+Return", self.panel.read), ("Esc", self.panel.stop), ("Ctrl+Shift+C", self.copy),
            ("Ctrl+Shift+H", self.panel.hide), ("F1", self.open_manual),
        ):  # fmt: skip
            shortcut = qt.QShortcut(widget)
            shortcut.setKey(qt.QKeySequence(keys))
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
            self.connected.append(shortcut.connect("activated()", call))
            self.shortcuts.append(shortcut)

    # What is clicked

    def touched(self):
        self.dirty = True

    def ask(self):
        self.panel.ask(self.ui.questionEdit.text)
        if not self.panel.message:
            self.ui.questionEdit.setText("")

    def clicked(self, address):
        self.panel.click(address.toString())

    def open_manual(self):
        try:
            self.manual.open()
        except ReaderError as error:
            self.panel.message = str(error)
            self.touched()

    def scan_chosen(self, node):
        if not self.drawing:
            self.panel.choose_scan(node)

    def model_chosen(self, number):
        name = self.ui.modelBox.itemData(number)
        name = name or qt.QFileDialog.getExistingDirectory(None, _("The model's folder"))
        if name:
            self.panel.set(model=str(name))

    def styled(self, **changes):
        if not self.drawing:
            self.panel.set(**changes)

    def edited(self):
        if not self.drawing:
            self.panel.edit(self.ui.findingsEdit.plainText, self.ui.impressionEdit.plainText)

    def copy(self):
        slicer.app.clipboard().setText(self.panel.text())

    def save(self):
        path = qt.QFileDialog.getSaveFileName(None, _("Save as text"), "report.txt", "*.txt")
        if path:
            self.panel.save(Path(str(path)))

    # What is drawn

    def work(self):
        self.panel.client.advance()

    def draw(self):
        if not self.dirty or self.drawing:
            return
        self.dirty, self.drawing = False, True
        try:
            state = self.panel.state()
            self._draw_changes(state)
            self.drawn = state
        finally:
            self.drawing = False
        if state.confirm:
            self._confirm(state.confirm)

    def _draw_changes(self, state):
        ui, before = self.ui, self.drawn
        for button, able in (
            (ui.readButton, state.can_read), (ui.askButton, state.can_ask), (ui.stopButton, state.can_stop),
            (ui.verifyButton, state.can_verify), (ui.copyButton, state.has_text), (ui.saveButton, state.has_text),
            (ui.findingsEdit, state.has_text), (ui.impressionEdit, state.has_text), (ui.plotButton, bool(state.heat)),
            (ui.hideButton, bool(state.heat)), (ui.sawButton, state.can_ask),
        ):  # fmt: skip
            button.setEnabled(able)
        for label, text in (
            (ui.memoryLabel, state.memory), (ui.statusLabel, state.status), (ui.messageLabel, state.message),
            (ui.provenanceLabel, state.provenance), (ui.heatLabel, state.heat), (ui.verdictLabel, state.verdict),
            (ui.editedLabel, _("Edited; the model's draft is kept in the scene.") if state.edited else ""),
        ):  # fmt: skip
            if label.text != text:
                label.setTextFormat(qt.Qt.PlainText)
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
        self._draw_progress(state)
        self._draw_choices()
        if state.heat != before.heat:
            self._draw_curves()
        self._picture(ui.sawLabel, self.panel.saw)

    def _draw_progress(self, state):
        bar, progress = self.ui.progressBar, state.progress
        bar.setVisible(bool(state.status))
        bar.setMaximum(progress[1] and 100 if progress else 0)
        bar.setValue(100 * progress[0] // progress[1] if progress and progress[1] else 0)

    def _draw_choices(self):
        settings, ui = self.panel.settings, self.ui
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
        if ui.scanSelector.currentNode() is not self.panel.scan:
            ui.scanSelector.setCurrentNode(self.panel.scan)

    def _draw_curves(self):
        case = self.panel.case
        curves = case.heat.curves if case is not None and case.heat is not None else ()
        for plane, label in zip(PLANES, (self.ui.axialCurve, self.ui.coronalCurve, self.ui.sagittalCurve), strict=True):
            found = [drawn(curve, (60, 120)) for curve in curves if curve.plane == plane]
            self._picture(label, found[0] if found else b"")

    def _picture(self, label, png):
        label.setVisible(bool(png))
        if png:
            pixmap = qt.QPixmap()
            pixmap.loadFromData(qt.QByteArray(png))
            label.setPixmap(pixmap)

    def _confirm(self, question):
        self.panel.agree(slicer.util.confirmYesNoDisplay(question, windowTitle=_("MedVLM Reader")))


class MedVLMReaderLogic(ScriptedLoadableModuleLogic):
    """For the Python console; the reader runs in another process, torch never in this one.

    `read`, `ask` and `heatmap` wait, the window staying alive, and return a `Reading` or a `Volume`; with `on_event`
    they return at once. What a user can mend is raised as ReaderError.
    """

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)
        self.transport = ProcessTransport()
        client = Client(self.transport, python=interpreter())
        self.logic = Logic(client, meanwhile=slicer.app.processEvents)

    def load(self, model="built-in", precision="auto", device=None):
        """Use a model from now on; its name, revision and precision."""
        return self.logic.load(model, precision, device)

    def read(self, volumeNode, **options):
        """The model's report of a volume."""
        return self.logic.read(volume_from(volumeNode), **self._about(volumeNode), **options)

    def ask(self, volumeNode, question, **options):
        """The answer to a question about a volume; what was asked about it before is told, too."""
        return self.logic.ask(volume_from(volumeNode), question, **self._about(volumeNode), **options)

    def heatmap(self, volumeNode, reading, words=None, method=None):
        """Where the model looked for some words of a reading, as a Volume."""
        key = self._about(volumeNode)["key"]
        return self.logic.heatmap(volume_from(volumeNode), reading, words, method, key=key)

    def readFolder(self, folder, out, questions=(), **options):
        """Read every scan under a folder into folders of `out`; what is there is skipped."""
        return self.logic.read_folder(folder, out, tuple(questions), **options)

    def close(self):
        """End the reader's process."""
        self.logic.client.close()
        self.transport.close()

    def _about(self, node):
        check_readable(node)
        return {"key": (node.GetID(), *stamp(node)), "view": view_of(slicer.mrmlScene, node, volume_from(node))}


class MedVLMReaderTest(ScriptedLoadableModuleTest):
    """For Slicer's own test runner."""

    def runTest(self):
        """The module loads, finds no volume, and says so."""
        slicer.mrmlScene.Clear(0)
        widget = slicer.modules.medvlmreader.widgetRepresentation().self()
        widget.panel.read()
        assert "no volume" in widget.panel.message
        assert all(widget.connected)
        self.delayDisplay("Test passed")
