"""A strict stand-in for the desktop around the Slicer core: enough to load the real module file and click its view."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore

MODULE = Path(__file__).resolve().parents[2] / "MedVLMReader" / "MedVLMReader.py"


class Application:
    """slicer.app, as far as the module uses it."""

    def __init__(self, qt: Any, core: SlicerCore) -> None:
        self.qt, self.core = qt, core
        self.values = qt.QSettings(str(core.folder / "host.ini"), qt.QSettings.IniFormat)
        self.at_start: list[Callable[[], None]] = []

    def settings(self) -> Any:
        return self.values

    def clipboard(self) -> Any:
        return self.qt.QApplication.clipboard()

    def processEvents(self) -> None:
        self.qt.QApplication.processEvents()

    def connect(self, signal: str, call: Callable[[], None]) -> bool:
        """For `Host.application_started`."""
        assert signal == "startupCompleted()"
        self.at_start.append(call)
        return True


class Host:
    """The application, and the module once it is loaded."""

    def __init__(self, core: SlicerCore) -> None:
        self.core, self.qt = core, pythonqt.build()
        self.application = self.qt.QApplication.instance() or self.qt.QApplication(["tests"])
        self.agreed = True
        self.samples: Any = None
        """Slicer's Sample Data module, see `sample_data`."""
        os.environ["MEDVLM_HOME"] = str(core.folder / "home")
        self.asked: list[str] = []
        self.progress: list[Any] = []
        """Progress dialogs that were made."""
        self.files: dict[str, str] = {}
        """DICOM instance UID -> file, as Slicer's database knows them."""
        self.chosen: list[str] = []
        """What file dialogs answer, one after the other; "" once they are through: cancelled."""
        self._provide()

    def _provide(self) -> None:
        slicer: Any = self.core.slicer
        slicer.app = Application(self.qt, self.core)
        slicer.mrmlScene = self.core.scene
        slicer.util.loadUI = lambda path: pythonqt.UiLoader().load(path)
        slicer.util.childWidgetVariables = self._children
        slicer.util.confirmYesNoDisplay = slicer.util.confirmOkCancelDisplay = self._confirm
        slicer.util.createProgressDialog = self._progress
        slicer.dicomDatabase = types.SimpleNamespace(fileForInstance=lambda uid: self.files.get(uid, ""))
        for asking in ("getExistingDirectory", "getSaveFileName"):
            setattr(self.qt.QFileDialog, asking, staticmethod(lambda *_: self.chosen.pop(0) if self.chosen else ""))
        words: Any = types.ModuleType("slicer.i18n")
        words.tr = lambda text: text
        words.translate = lambda context, text: text
        base: Any = types.ModuleType("slicer.ScriptedLoadableModule")
        for cls in (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic,
                    ScriptedLoadableModuleTest):  # fmt: skip
            setattr(base, cls.__name__, cls)
        sys.modules["slicer.i18n"], sys.modules["slicer.ScriptedLoadableModule"] = words, base

    def _children(self, widget: Any) -> Any:
        found = self.qt.QObject.findChildren(widget, self.qt.QObject)
        return types.SimpleNamespace(**{one.objectName: one for one in found if one.objectName})

    def _confirm(self, text: str, windowTitle: str | None = None, parent: Any = None) -> bool:
        self.asked.append(text)
        return self.agreed

    def _progress(
        self, parent: Any = None, value: int = 0, maximum: int = 100, labelText: str = "", windowTitle: str = "",
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As slicer.util makes it: a QProgressDialog with these properties."""
        dialog = self.qt.QProgressDialog()
        settings = {"minimumDuration": 0, "maximum": maximum, "value": value, "labelText": labelText, **kwargs}
        for name, content in settings.items():
            setattr(dialog, name, content)
        dialog.windowTitle = windowTitle
        self.progress.append(dialog)
        return dialog

    def reload(self, widget: Any) -> Any:
        """What the developer's button does: the old widget is cleaned up, the file read again, a new widget set up."""
        widget.cleanup()
        return self.load()

    def load(self) -> Any:
        """The module's widget, set up."""
        if str(MODULE.parent) not in sys.path:
            sys.path.insert(0, str(MODULE.parent))  # as Slicer does
        spec = importlib.util.spec_from_file_location("MedVLMReader", MODULE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["MedVLMReader"] = module
        spec.loader.exec_module(module)
        self.parent = types.SimpleNamespace(path=str(MODULE))
        module.MedVLMReader(self.parent)
        panel = self.qt.QWidget()
        panel.setLayout(self.qt.QVBoxLayout())
        widget = module.MedVLMReaderWidget(panel)
        widget.setup()
        represented = types.SimpleNamespace(self=lambda: widget)
        slicer: Any = self.core.slicer
        slicer.modules.medvlmreader = types.SimpleNamespace(widgetRepresentation=lambda: represented)
        return widget

    def application_started(self) -> None:
        """All modules are loaded: Slicer says so once."""
        calls, self.core.slicer.app.at_start = self.core.slicer.app.at_start, []
        for call in calls:
            call()

    def until(self, done: Callable[[], bool], seconds: float = 1500) -> None:
        """Run the event loop until something holds."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it took too long"
            self.qt.QApplication.processEvents()
            time.sleep(0.002)


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any = None) -> None:
        self.parent, self.layout = parent, parent.layout()

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:
        return str(MODULE.parent / "Resources" / name)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        pass


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, text: str) -> None:
        print(text)
