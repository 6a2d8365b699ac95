"""The host behaves as PythonQt did when asked (`pythonqt_behaviour.json`), in all that the view relies on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from Testing.slicer import pythonqt

qt: Any = pythonqt.build()
TOLD: dict[str, Any] = json.loads((Path(__file__).parent / "pythonqt_behaviour.json").read_text())
KEPT: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def application() -> Any:
    return qt.QApplication.instance() or qt.QApplication(["tests"])


def button(text: str = "hi") -> Any:
    KEPT.append(qt.QPushButton(text))
    return KEPT[-1]


def put(thing: Any, name: str, value: Any) -> Any:
    setattr(thing, name, value)
    return getattr(thing, name)


def then(*done: Any) -> Any:
    return done[-1]


def clicked(call: Callable[[list[Any]], Any], signature: str = "clicked(bool)") -> str:
    heard: list[Any] = []
    one = button()
    one.connect(signature, call(heard))
    one.click()
    return str(heard)


class Methods:
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def m1(self, checked: bool) -> None:
        self.heard.append(("m1", checked))


def box() -> Any:
    found = qt.QComboBox()
    found.addItems(["a", "b", "c"])
    KEPT.append(found)
    return found


def echo(text: str) -> Any:
    process = qt.QProcess()
    process.start("/bin/echo", [text])
    process.waitForFinished(3000)
    return process


ASKED: dict[str, Callable[[], Any]] = {
    "text is attr str": lambda: button().text,
    "text() call": lambda: button().text(),
    "setText method": lambda: (one := button(), one.setText("x"), one.text)[-1],
    "assign text": lambda: put(button(), "text", "y"),
    "enabled True": lambda: put(button(), "enabled", True),
    "isEnabled()": lambda: button().isEnabled(),
    "visible attr": lambda: button().visible,
    "isVisible()": lambda: button().isVisible(),
    "objectName() call": lambda: button().objectName(),
    "className()": lambda: button().className(),
    "unknown attr set on plain widget": lambda: put(button(), "foo", 3),
    "unknown attr get": lambda: button().nothere,
    "connect clicked(bool)": lambda: button().connect("clicked(bool)", lambda c: None),
    "connect clicked()": lambda: button().connect("clicked()", lambda: None),
    "connect misspelt": lambda: button().connect("clickedd()", lambda: None),
    "connect wrong sig clicked(int)": lambda: button().connect("clicked(int)", lambda: None),
    "clicked(bool)-> f1": lambda: clicked(lambda heard: lambda x: heard.append(("f1", x))),
    "clicked(bool)-> f2 default": lambda: clicked(lambda heard: lambda x=7: heard.append(("f2", x))),
    "clicked(bool)-> f3 *a": lambda: clicked(lambda heard: lambda *a: heard.append(("f3", a))),
    "clicked(bool)-> partial": lambda: clicked(
        lambda heard: functools.partial(lambda *a: heard.append(("f3", a)), "p")
    ),
    "clicked()-> lambda x=3": lambda: clicked(lambda heard: lambda x=3: heard.append(x), "clicked()"),
    "disconnect bound": lambda: clicked(lambda heard: Methods(heard).m1),
    "disconnect not connected": lambda: button().disconnect("clicked(bool)", lambda: None),
    "enum short form": lambda: int(qt.Qt.AlignCenter),
    "enum int()": lambda: int(qt.Qt.AlignCenter),
    "enum == int": lambda: qt.Qt.Checked == 2,
    "QMessageBox.Yes": lambda: qt.QMessageBox.Yes == 0x4000,
    "checked attr": lambda: put(qt.QCheckBox("c"), "checked", True),
    "addItems": lambda: box().count,
    "count()": lambda: box().count(),
    "currentIndex=1": lambda: (one := box(), put(one, "currentIndex", 1), one.currentText)[-1],
    "itemData none": lambda: box().itemData(1),
    "setLayout": lambda: qt.QWidget().setLayout(qt.QVBoxLayout()),
    "children() type": lambda: type(qt.QWidget().children()).__name__,
    "findChildren type": lambda: type(qt.QWidget().findChildren(qt.QPushButton)).__name__,
    "html set/get": lambda: "x" in put(qt.QTextBrowser(), "html", "<b>x</b>"),
    "plainText attr": lambda: (one := qt.QTextBrowser(), one.setHtml("<b>x</b>"), one.plainText)[-1],
    "toPlainText()": lambda: (one := qt.QTextBrowser(), one.setHtml("<b>x</b>"), one.toPlainText())[-1],
    "openLinks": lambda: put(qt.QTextBrowser(), "openLinks", False),
    "connect anchorClicked(QUrl)": lambda: qt.QTextBrowser().connect("anchorClicked(QUrl)", lambda u: None),
    "geometry attr": lambda: type(button().geometry).__name__,
    "size attr": lambda: type(button().size).__name__,
    "width attr": lambda: type(button().width).__name__,
    "QSize.width()": lambda: qt.QSize(3, 4).width(),
    "toolTip": lambda: put(button(), "toolTip", "tt"),
    "styleSheet": lambda: put(button(), "styleSheet", "color:red"),
    "QProcess.start": lambda: f"bytes:{echo('hello').readAllStandardOutput().data()!r}",
    "exitCode()": lambda: echo("x").exitCode(),
    "connect finished(int,ExitStatus)": lambda: qt.QProcess().connect(
        "finished(int,QProcess::ExitStatus)", lambda c, s: None
    ),
    "QDir.entryList type": lambda: type(qt.QDir("/").entryList()).__name__,
    "singleShot attr": lambda: put(qt.QTimer(), "singleShot", True),
    "interval": lambda: put(qt.QTimer(), "interval", 5),
    "QUrl.toString": lambda: qt.QUrl("a://b").toString(),
    "QKeySequence": lambda: qt.QKeySequence("Ctrl+K").toString(),
    "value": lambda: put(qt.QSpinBox(), "value", 5),
    "blockSignals": lambda: qt.QSpinBox().blockSignals(True),
    "hashable": lambda: len({button(): 1}),
    "bool(widget)": lambda: bool(qt.QLabel()),
}
KNOWN_LOOSER = {"QDir.entryList type"}
"""Where the host lets through what PythonQt does otherwise; the view must not rely on it."""


@pytest.mark.parametrize("name", [one for one in ASKED if one not in KNOWN_LOOSER])
def test_the_host_answers_as_pythonqt_did(name: str) -> None:
    try:
        answer = ASKED[name]()
    except Exception as error:
        answer = f"!{type(error).__name__}: {error}"
    told = TOLD[name]
    if isinstance(told, str) and told.startswith("!"):  # the error's kind; its words are PythonQt's own
        assert str(answer).split(":")[0] == told.split(":")[0], (answer, told)
    elif name == "setLayout":
        assert answer is None
    else:
        assert answer == told


def test_what_goes_wrong_in_a_slot_is_kept_and_execution_goes_on() -> None:
    pythonqt.slot_errors.clear()
    one = button()
    one.connect("clicked()", lambda: 1 / 0)
    one.click()
    assert "ZeroDivisionError" in pythonqt.slot_errors[0]
    pythonqt.slot_errors.clear()
    pythonqt.failed_connections.clear()


def test_the_view_uses_nothing_that_pythonqt_lacks() -> None:
    """Calls that were measured to fail there, or that are there under another name."""
    from Testing.slicer.host import MODULE

    text = MODULE.read_text()
    for lacking in ("qt.QImage(", ".singleShot =", ".toPlainText()", "QThread", "threading", "Label.text()",
                    "Edit.text()", ".value()", ".currentIndex()", "bytes(self"):  # fmt: skip
        assert lacking not in text, lacking
