"""Stand-ins for the widgets of CTK and Slicer that the .ui uses, each with the real one's signals and properties."""

from __future__ import annotations

from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

Signal, Property = QtCore.Signal, QtCore.Property


class ctkCollapsibleButton(QtWidgets.QWidget):
    _className_ = "ctkCollapsibleButton"
    _signals_: ClassVar = {"contentsCollapsed": {"contentsCollapsed(bool)"}, "toggled": {"toggled(bool)"}}
    contentsCollapsed, toggled = Signal(bool), Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self._head = QtGui.QFontMetrics(QtWidgets.QApplication.font()).height() + 6
        self.setContentsMargins(4, self._head + 4, 4, 4)

    def _set_text(self, value: str) -> None:
        self._text = value
        self.update()

    def _set_collapsed(self, value: bool) -> None:
        if value != self._collapsed:
            self._collapsed = value
            self._apply()
            self.contentsCollapsed.emit(value)

    def _apply(self) -> None:
        """Closed, it is as high as its title; what is in it keeps its own visibility, as with the real one."""
        self.setMaximumHeight(self._head + 2 if self._collapsed else 16777215)
        self.setMinimumHeight(self._head + 2 if self._collapsed else 0)
        self.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Preferred,
            QtWidgets.QSizePolicy.Policy.Fixed if self._collapsed else QtWidgets.QSizePolicy.Policy.Preferred,
        )
        if self._collapsed:
            self.setMask(QtGui.QRegion(0, 0, 10_000, self._head))
        else:
            self.clearMask()
        self.updateGeometry()
        self.update()

    text = Property(str, lambda self: self._text, _set_text)
    collapsed = Property(bool, lambda self: self._collapsed, _set_collapsed)

    def paintEvent(self, event: Any) -> None:
        painter, colours = QtGui.QPainter(self), QtWidgets.QApplication.palette()
        bar = QtCore.QRect(0, 0, int(QtWidgets.QWidget.size.fget(self).width()), self._head)
        painter.fillRect(bar, colours.color(QtGui.QPalette.ColorRole.Midlight))
        painter.setPen(colours.color(QtGui.QPalette.ColorRole.WindowText))
        painter.drawText(8, self._head - 6, ("▸ " if self._collapsed else "▾ ") + self._text)
        painter.end()


class qMRMLWidget(QtWidgets.QWidget):
    _className_ = "qMRMLWidget"
    _signals_: ClassVar = {"mrmlSceneChanged": {"mrmlSceneChanged(vtkMRMLScene*)"}}
    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self._scene


class qMRMLNodeComboBox(QtWidgets.QWidget):
    _className_ = "qMRMLNodeComboBox"
    _signals_: ClassVar = {
        "currentNodeChanged": {"currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)"},
        "currentNodeIDChanged": {"currentNodeIDChanged(QString)"},
    }
    currentNodeChanged, currentNodeIDChanged = Signal(object), Signal(str)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._types: list[str] = []
        self._none = False
        self._ids: list[str] = []
        self._last = ""
        self._box = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.currentIndexChanged.connect(self._chosen)

    def _set_types(self, value: Any) -> None:
        self._types = list(value)
        self._fill()

    def _set_none(self, value: bool) -> None:
        self._none = value
        self._fill()

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = Property(bool, lambda self: self._none, _set_none)
    addEnabled = Property(bool, lambda self: False, lambda self, value: None)
    removeEnabled = Property(bool, lambda self: False, lambda self, value: None)
    showHidden = Property(bool, lambda self: False, lambda self, value: None)
    showChildNodeTypes = Property(bool, lambda self: False, lambda self, value: None)

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
            scene.AddObserver(event, lambda *_: self._fill())
        self._fill()

    def _fill(self) -> None:
        if self._scene is None:
            return
        every = (self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes()))
        found = [node for node in every if node.GetClassName() in self._types and not node.GetHideFromEditors()]
        self._box.blockSignals(True)
        self._box.clear()
        self._ids = [*([""] if self._none else []), *(node.GetID() for node in found)]
        for name in (*(["None"] if self._none else []), *(node.GetName() for node in found)):
            self._box.addItem(name)
        at = self._ids.index(self._last) if self._last in self._ids else 0 if self._ids else -1
        self._box.setCurrentIndex(at)
        self._box.blockSignals(False)
        self._chosen(at)

    def _chosen(self, at: int) -> None:
        chosen = self._ids[at] if 0 <= at < len(self._ids) else ""
        if chosen != self._last:
            self._last = chosen
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(chosen)

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._last) if self._last and self._scene else None

    def setCurrentNode(self, node: Any) -> None:
        wanted = node.GetID() if node is not None else ""
        if wanted in self._ids:
            self._box.setCurrentIndex(self._ids.index(wanted))


class ctkSliderWidget(QtWidgets.QWidget):
    _className_ = "ctkSliderWidget"
    _signals_: ClassVar = {
        "valueChanged": {"valueChanged(double)"}, "valueIsChanging": {"valueIsChanging(double)"}
    }  # fmt: skip
    valueChanged, valueIsChanging = Signal(float), Signal(float)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._value, self._low, self._high, self._step = 0.0, 0.0, 99.0, 1.0
        self._slider, self._spin = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal), QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._spin)
        self._slider.setRange(0, 1000)
        self._slider.valueChanged.connect(lambda n: self.setValue(self._low + (self._high - self._low) * n / 1000))
        self._spin.valueChanged.connect(self.setValue)

    def setValue(self, value: float) -> None:
        value = min(max(float(value), self._low), self._high)
        if abs(value - self._value) < 1e-9:
            return
        self._value = value
        for widget in (self._slider, self._spin):
            widget.blockSignals(True)
        self._slider.setValue(int(1000 * (value - self._low) / ((self._high - self._low) or 1)))
        self._spin.setValue(value)
        for widget in (self._slider, self._spin):
            widget.blockSignals(False)
        self.valueChanged.emit(value)

    def _bound(self, name: str, value: float) -> None:
        setattr(self, name, value)
        self._spin.setRange(self._low, self._high)
        self._spin.setSingleStep(self._step)

    value = Property(float, lambda self: self._value, lambda self, v: self.setValue(v))
    minimum = Property(float, lambda self: self._low, lambda self, v: self._bound("_low", v))
    maximum = Property(float, lambda self: self._high, lambda self, v: self._bound("_high", v))
    singleStep = Property(float, lambda self: self._step, lambda self, v: self._bound("_step", v))


REGISTRY: dict[str, Any] = {
    cls._className_: cls for cls in (ctkCollapsibleButton, qMRMLWidget, qMRMLNodeComboBox, ctkSliderWidget)
}
