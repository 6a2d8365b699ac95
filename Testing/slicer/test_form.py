"""The form and the code that connects it, held against the real widgets' headers (`real_widgets.json`) and Qt's own."""

from __future__ import annotations

import ast
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.slicer import pythonqt
from Testing.slicer.host import MODULE
from Testing.slicer.widgets import REGISTRY

qt: Any = pythonqt.build()
QtCore = pythonqt.QtCore  # by way of it: who imports PySide6 first decides what its enums are
FORMS = sorted((MODULE.parent / "Resources" / "UI").glob("*.ui"))
SET_UP = MODULE.parent / "MedVLMReaderQt" / "set_up.py"
LIBRARY = MODULE.parents[1] / "MedVLMReaderLib"
REAL: dict[str, Any] = json.loads((Path(__file__).parent / "real_widgets.json").read_text())
TREES = [ElementTree.parse(form) for form in FORMS]
WIDGETS = [one for tree in TREES for one in tree.iter("widget")]
CLASSES = {str(one.get("name")): str(one.get("class")) for one in WIDGETS}
OTHERS = {"worker_timer": "QTimer", "draw_timer": "QTimer", "timer": "QTimer", "shortcut": "QShortcut",
          "process": "QProcess", "app": "qSlicerApplication", "button": "QPushButton", "box": "QCheckBox"}  # fmt: skip
"""Senders in the code that are not of the form."""


def meta(kind: str) -> Any:
    """Qt's description of a class of its own."""
    return getattr(qt, kind).staticMetaObject


def properties_of(kind: str) -> set[str]:
    if kind in REAL:
        return {*REAL[kind]["properties"], *properties_of(REAL[kind]["extends"])}
    found = meta(kind)
    own = {"buddy"} if kind == "QLabel" else set()  # forms know it, Qt's properties do not
    return own | {found.property(n).name() for n in range(found.propertyCount())}


def signals_of(kind: str) -> set[str]:
    if kind in REAL:
        return {*map(pythonqt.normal, REAL[kind]["signals"]), *signals_of(REAL[kind]["extends"])}
    found, signal = meta(kind), QtCore.QMetaMethod.MethodType.Signal
    methods = [found.method(n) for n in range(found.methodCount())]
    return {pythonqt.normal(bytes(one.methodSignature()).decode()) for one in methods if one.methodType() == signal}


@pytest.mark.parametrize("name", CLASSES)
def test_every_widget_is_a_real_one_with_properties_that_it_has(name: str) -> None:
    (widget,) = [one for one in WIDGETS if one.get("name") == name]
    kind = CLASSES[name]
    assert kind in REAL or hasattr(qt, kind)
    of_the_form = {"buddy"} if kind == "QLabel" else set()  # which is no property, but what Qt's forms call it
    assert {one.get("name") for one in widget.findall("property")} <= properties_of(kind) | of_the_form


def test_what_the_form_connects_is_there() -> None:
    for wire in (one for tree in TREES for one in tree.iter("connection")):
        sender, signal, receiver, slot = (str(wire.findtext(one)) for one in ("sender", "signal", "receiver", "slot"))
        assert pythonqt.normal(signal) in signals_of(CLASSES[sender]), signal
        assert slot in REAL[CLASSES[receiver]]["slots"], slot


def connects(path: Path) -> Iterator[tuple[str, str]]:
    """Sender's name and signal of each connect of a file."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "connect":
            sender, signal = call.func.value, call.args[0]
            assert isinstance(signal, ast.Constant), ast.unparse(call)
            yield ast.unparse(sender).split(".")[-1], str(signal.value)


@pytest.mark.parametrize("path", [MODULE, SET_UP, LIBRARY / "worker" / "qprocess.py"], ids=lambda path: path.name)
def test_every_connect_of_the_code_names_a_signal_that_its_sender_has(path: Path) -> None:
    found = list(connects(path))
    assert len(found) > 3
    for sender, signal in found:
        kind = CLASSES.get(sender) or OTHERS[sender]
        known = signals_of(kind)
        without = {one.split("(")[0] + "()" for one in known if one.endswith("(bool)")}  # a default argument
        assert pythonqt.normal(signal) in known | without, (sender, signal)


def test_every_name_that_the_code_uses_is_on_the_form() -> None:
    for path in (MODULE, SET_UP, LIBRARY / "drawing.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("ui", "self.ui"):
                assert node.attr in CLASSES, f"{path.name}, line {node.lineno}: {node.attr}"


@pytest.mark.parametrize("kind", REGISTRY)
def test_stand_ins_have_nothing_that_the_real_ones_lack(kind: str) -> None:
    found = REGISTRY[kind].staticMetaObject
    own = {found.property(n).name() for n in range(found.propertyOffset(), found.propertyCount())}
    assert own <= properties_of(kind)
    for signatures in REGISTRY[kind]._signals_.values():
        assert {pythonqt.normal(one) for one in signatures} <= signals_of(kind)


def test_every_button_and_box_says_what_it_does() -> None:
    for widget in WIDGETS:
        if widget.get("class") in ("QPushButton", "QCheckBox", "QComboBox", "qMRMLNodeComboBox", "ctkSliderWidget"):
            told = [one.findtext("string") for one in widget.findall("property") if one.get("name") == "toolTip"]
            assert told, widget.get("name")
            assert told[0]
