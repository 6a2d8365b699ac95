"""A strict stand-in for the desktop around the Slicer core: enough to load the real module file and click its view."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
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

    def settings(self) -> Any:
        return self.values

    def clipboard(self) -> Any:
        return self.qt.QApplication.clipboard()

    def processEvents(self) -> None:
        self.qt.QApplication.processEvents()


class Host:
    """The application, and the module once it is loaded."""

    def __init__(self, core: SlicerCore) -> None:
        self.core, self.qt = core, pythonqt.build()
        self.application = self.qt.QApplication.instance() or self.qt.QApplication(["tests"])
        self.agreed = True
        self.asked: list[str] = []
        self._provide()

    def _provide(self) -> None:
        slicer: Any = self.core.slicer
        slicer.app = Application(self.qt, self.core)
        slicer.mrmlScene = self.core.scene
        slicer.util.loadUI = lambda path: pythonqt.UiLoader().load(path)
        slicer.util.childWidgetVariables = self._children
        slicer.util.confirmYesNoDisplay = self._confirm
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
        return widget

    def until(self, done: Callable[[], bool], seconds: float = 300) -> None:
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


class ScriptedLoadableModuleTest:
    def delayDisplay(self, text: str) -> None:
        print(text)
