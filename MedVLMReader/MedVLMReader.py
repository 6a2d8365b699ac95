"""MedVLM Reader in 3D Slicer: the module's entry, its view that draws what the panel says, the console's logic."""

from __future__ import annotations

import sys
import time
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
from MedVLMReaderQt.many import folder, read_many  # noqa: E402
from MedVLMReaderQt.sample import NAME as SAMPLE  # noqa: E402
from MedVLMReaderQt.sample import register  # noqa: E402
from MedVLMReaderQt.set_up import SetUpView  # noqa: E402

from MedVLMReaderLib import ReaderError  # noqa: E402
from MedVLMReaderLib.case import readers  # noqa: E402
from MedVLMReaderLib.console import Console  # noqa: E402
from MedVLMReaderLib.drawing import Drawing  # noqa: E402
from MedVLMReaderLib.memory import PRECISIONS  # noqa: E402
from MedVLMReaderLib.panel import Panel  # noqa: E402
from MedVLMReaderLib.parameters import REGION  # noqa: E402
from MedVLMReaderLib.volume import PLANES  # noqa: E402
from MedVLMReaderLib.worker.client import Client  # noqa: E402
from MedVLMReaderLib.worker.interpreter import SETTING, interpreter  # noqa: E402
from MedVLMReaderLib.worker.qprocess import ProcessTransport  # noqa: E402

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
        slicer.app.connect("startupCompleted()", register)


def python():
    """The Python that has torch: the one chosen in the settings, else Slicer's own."""
    return interpreter(slicer.app.settings().value(SETTING), sys.executable)


def file_of(instance):
    """The file of a DICOM instance, as Slicer's database knows it; "" where it does not."""
    database = getattr(slicer, "dicomDatabase", None)
    return database.fileForInstance(instance) if database is not None else ""


class MedVLMReaderWidget(ScriptedLoadableModuleWidget):
    """Draws the panel's state, and forwards what is clicked. Whatever is about models or scans is the panel's."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.panel, self.dirty, self.connected, self.drawing, self.asking = None, True, [], False, False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/MedVLMReader.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.transport = ProcessTransport(qt, slicer.app.processEvents)
        client = Client(self.transport, python=python())
        self.panel = Panel(slicer.mrmlScene, client, self.touched, file_of, slicer.app.processEvents)
        self.form = Drawing(qt, self.ui, _("Edited; the model's draft is kept in the scene."))
        form = self.resourcePath("UI/MedVLMReaderSetUp.ui")
        self.set_up = SetUpView(form, lambda: ProcessTransport(qt, slicer.app.processEvents), client.use)
        self.layout.insertWidget(self.layout.count() - 1, self.set_up.widget)  # above, where Read stands
        self.manual = Manual()
        self._fill()
        self._connect()
        self.connected += self.set_up.connected
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
        self.panel.gpu.ask()
        self.draw()

    def cleanup(self):
        for timer in (self.worker_timer, self.draw_timer):
            timer.stop()
        self.manual.close()
        self.set_up.close()
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
            ui.readButton: self.read, ui.stopButton: panel.stop, ui.freeButton: panel.free, ui.askButton: self.ask,
            ui.copyButton: self.copy, ui.saveButton: self.save, ui.sawButton: panel.show_what_it_saw,
            ui.verifyButton: panel.verify, ui.plotButton: panel.plot, ui.hideButton: panel.hide,
            ui.restoreButton: panel.restore, ui.exportButton: self.export, ui.readSceneButton: self.read_scene,
            ui.readFolderButton: self.read_folder, ui.manualButton: self.open_manual,
        }  # fmt: skip
        self.connected += [button.connect("clicked()", call) for button, call in clicks.items()]
        self.connected += [box.connect("clicked()", self.kinds_chosen) for box in self.form.kinds.values()]
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
            ("Ctrl+Return", self.read), ("Esc", self.panel.stop), ("Ctrl+Shift+C", self.copy),
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

    def read(self):
        self._with_models(self.panel.read)

    def ask(self):
        self._with_models(self._ask)

    def _with_models(self, then):
        """Set-up first, where there is something to read at all."""
        if self.panel.scan is None:
            then()
        else:
            self.set_up.when_ready(then)

    def _ask(self):
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
        name = name or folder(_("The model's folder"))
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

    def kinds_chosen(self):
        self.panel.set(kinds=" ".join(kind for kind, box in self.form.kinds.items() if box.checked))

    def export(self):
        out = folder(_("Where to write the report"))
        if out is not None:
            self.panel.export(out)

    def read_scene(self):
        self._with_models(lambda: read_many(self.panel.read_scene, self.closed))

    def read_folder(self):
        scans = folder(_("The folder with the scans"))
        if scans is not None:
            self._with_models(lambda: read_many(lambda *how: self.panel.read_folder(scans, *how), self.closed))

    def closed(self):
        return self.panel.client.closed

    # What is drawn

    def work(self):
        self.panel.advance()
        self.set_up.advance()

    def draw(self):
        if not self.dirty or self.drawing:
            return
        self.dirty, self.drawing = False, True
        try:
            state = self.panel.state()
            self.form.draw(state, self.panel)
        finally:
            self.drawing = False
        if state.confirm and not self.asking:
            self._confirm(state.confirm)

    def _confirm(self, question):
        """Once: the timer goes on while the dialog waits, and words of another scan may come."""
        self.asking = True
        try:
            self.panel.agree(slicer.util.confirmYesNoDisplay(question, windowTitle=_("MedVLM Reader")))
        finally:
            self.asking = False


class MedVLMReaderLogic(ScriptedLoadableModuleLogic, Console):
    """For the Python console, see `Console`; the reader runs in another process, torch never in this one."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)
        self.transport = ProcessTransport(qt, slicer.app.processEvents)
        Console.__init__(self, slicer.mrmlScene, Client(self.transport, python=python()), slicer.app.processEvents)
        self.timer = qt.QTimer()  # for those who do not wait
        self.timer.setInterval(WORK_MS)
        self.connected = self.timer.connect("timeout()", self.advance)
        self.timer.start()

    def close(self):
        """End the reader's process."""
        self.timer.stop()
        Console.close(self)
        self.transport.close()


class MedVLMReaderTest(ScriptedLoadableModuleTest):
    """For Slicer's own test runner, and its button 'Reload and Test'. Nothing is installed, nothing fetched."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.widget = slicer.modules.medvlmreader.widgetRepresentation().self()

    def runTest(self):
        for test in (
            self.test_every_button_is_connected, self.test_without_a_volume_it_says_so,
            self.test_the_sample_study_is_in_sample_data, self.test_set_up_says_what_is_installed,
        ):  # fmt: skip
            self.setUp()
            test()
        self.delayDisplay("Test passed")

    def test_every_button_is_connected(self):
        self.assertGreater(len(self.widget.connected), 25)
        self.assertTrue(all(self.widget.connected))

    def test_without_a_volume_it_says_so(self):
        self.widget.panel.read()
        self.assertIn("no volume", self.widget.panel.message)

    def test_the_sample_study_is_in_sample_data(self):
        import SampleData

        register()
        node = SampleData.downloadSample(SAMPLE)
        self.assertEqual(node.GetName(), SAMPLE)
        self.widget.panel.choose_scan(node)
        self.assertEqual(self.widget.panel.message, "")

    def test_set_up_says_what_is_installed(self):
        one = self.widget.set_up.setting_up
        one.look()
        end = time.monotonic() + 60
        while one.busy and time.monotonic() < end:
            slicer.app.processEvents()
            one.advance()
        self.assertIn(one.shown().stage, ("ready", "needed", "refused"))
        self.assertTrue(one.shown().headline or one.shown().message)
