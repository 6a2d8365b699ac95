"""PySide6 made to behave as PythonQt does, or stricter: the module `qt` for tests of the Slicer view.

Properties are attributes, `connect` takes a signature and says whether it worked, lists come back as tuples, enums are
ints, unknown attributes are refused. What goes wrong in a slot is printed, as there, and kept in `slot_errors`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import re
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

sys.pyside6_option_python_enum = 2  # type: ignore[attr-defined]  # enums are ints
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets  # noqa: E402

slot_errors: list[str] = []
failed_connections: list[str] = []
slot_ms: dict[str, list[float]] = {}
"""CPU time of this thread that each call of a slot took, by what was connected to what."""
MODULES = (QtCore, QtGui, QtWidgets)
HIDDEN = {"Signal", "Slot", "Property", "SIGNAL", "SLOT", "ClassInfo", "QEnum", "QFlag", "Q_ARG"}
LISTS = {"children", "findChildren"}
VIRTUAL = {"sizeHint", "minimumSizeHint"}
ACCEPTED: dict[str, tuple[type, ...]] = {"double": (int, float), "float": (int, float), "QString": (str,)}
_connections: dict[tuple[int, str], list[tuple[Any, Any, Any]]] = {}


@contextlib.contextmanager
def nothing_fails() -> Iterator[None]:
    """What is done in here raises nothing in a slot and makes every connection that it asks for."""
    slot_errors.clear()
    failed_connections.clear()
    yield
    assert slot_errors == []
    assert failed_connections == []


def qobjects() -> Iterator[type]:
    """The classes of Qt that have properties and signals."""
    for module in (*MODULES, QtUiTools):
        for name in dir(module):
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, QtCore.QObject):
                yield found


# Properties


def _property(name: str, writable: bool, kind: str) -> property:
    def read(self: Any) -> Any:
        value = QtCore.QObject.property(self, name)
        return tuple(value) if isinstance(value, list) else value

    def write(self: Any, value: Any) -> None:
        if not writable:
            raise AttributeError(f"Property '{name}' of type '{kind}' is read-only")
        if kind in ACCEPTED and not isinstance(value, ACCEPTED[kind]):
            raise ValueError(f"Property '{name}' of type '{kind}' does not accept {value!r}")
        QtCore.QObject.setProperty(self, name, list(value) if isinstance(value, tuple) else value)

    return property(read, write)


def _shadow_properties(cls: type) -> None:
    meta = cls.__dict__.get("staticMetaObject")
    if meta is None:
        return
    for number in range(meta.propertyOffset(), meta.propertyCount()):
        one = meta.property(number)
        skipped = one.name() in VIRTUAL or (cls is QtCore.QTimer and one.name() == "singleShot")
        if not skipped and (cls is not QtCore.QObject or one.name() == "objectName"):
            setattr(cls, one.name(), _property(one.name(), one.isWritable(), one.typeName()))


# Signals


def normal(signature: str) -> str:
    """A signature without what does not matter."""
    return re.sub(r"\s+", "", signature).replace("const", "").replace("&", "")


def signals(sender: Any, name: str) -> list[str]:
    """The signatures of a name."""
    meta = QtCore.QObject.metaObject(sender)
    methods = (meta.method(number) for number in range(meta.methodCount()))
    kind = QtCore.QMetaMethod.MethodType.Signal
    return [bytes(m.methodSignature()).decode() for m in methods if m.methodType() == kind and m.name() == name]


def _found(sender: Any, signature: str) -> tuple[str, str] | None:
    wanted = normal(signature)
    name = wanted.split("(")[0]
    if wanted in getattr(type(sender), "_signals_", {}).get(name, ()):
        return name, ""
    exact = [one for one in signals(sender, name) if normal(one) == wanted]
    return (name, exact[0]) if exact else None


def _taken(call: Callable[..., Any]) -> int | None:
    """How many arguments PythonQt would pass; None: all."""
    method = inspect.ismethod(call)
    inner = call.__func__ if method else call
    if hasattr(inner, "__wrapped__"):
        return 0  # a decorated intent is given what its own signature takes, below
    if not inspect.isfunction(inner) or inner.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return inner.__code__.co_argcount - method


def connect(self: Any, *args: Any) -> bool:
    """`object.connect("clicked()", call)`, or with sender, or with receiver and slot: whether there is such a one."""
    if len(args) == 2:
        sender, signature, call = self, args[0], args[1]
    elif len(args) == 3 and isinstance(args[1], str):
        sender, signature, call = args
    elif len(args) == 3:
        sender, signature, call = self, args[0], functools.partial(_slot, args[1], args[2])
    elif len(args) == 4:
        sender, signature, call = args[0], args[1], functools.partial(_slot, args[2], args[3])
    else:
        raise TypeError("connect: arguments")
    found = _found(sender, signature) if isinstance(signature, str) and callable(call) else None
    if found is None:
        failed_connections.append(f"{sender.className()}::{signature}")
        print(f"QObject::connect: no such signal {failed_connections[-1]}", file=sys.stderr)
        return False
    name, exact = found
    label = QtCore.QObject.property(sender, "objectName") or f"{sender.className()} -> {getattr(call, '__name__', '')}"
    given = exact[exact.index("(") + 1 : -1] if exact else normal(signature)[len(name) + 1 : -1]
    taken = _taken(call)
    if taken == 0 and not given:
        taken = 0
    elif hasattr(getattr(call, "__func__", call), "__wrapped__"):
        taken = None

    def called(*arguments: Any) -> None:
        passed, began = () if not given else arguments, time.thread_time()
        try:
            call(*(passed if taken is None else passed[:taken]))
        except BaseException:
            slot_errors.append(traceback.format_exc())
            traceback.print_exc()
        slot_ms.setdefault(f"{label}.{normal(signature)}", []).append(1000 * (time.thread_time() - began))

    bound = getattr(sender, name)
    if exact and given and len(signals(sender, name)) > 1:
        with contextlib.suppress(KeyError, TypeError, IndexError):
            bound = bound[given]
    bound.connect(called)
    _connections.setdefault((id(sender), normal(signature)), []).append((call, bound, called))
    return True


def _slot(receiver: Any, slot: str, *args: Any) -> Any:
    return getattr(receiver, slot.split("(")[0])(*args)


def disconnect(self: Any, signature: str, call: Any = None, *_: Any) -> bool:
    """Whether there was such a connection."""
    known = _connections.get((id(self), normal(signature)), [])
    for one in list(known):
        if call is None or one[0] == call:
            one[1].disconnect(one[2])
            known.remove(one)
            return True
    return False


# Attributes

_generic_set = ctypes.pythonapi.PyObject_GenericSetAttr
_generic_set.argtypes, _generic_set.restype = [ctypes.py_object] * 3, ctypes.c_int


def _patch_access(cls: Any) -> None:
    """`connect` is special to PySide's own attribute access, so that is where it must be caught."""
    original, own = cls.__getattribute__, {"connect": connect, "disconnect": disconnect}

    def read(self: Any, name: str) -> Any:
        if name in own:
            return types.MethodType(own[name], self)
        try:
            value = original(self, name)
        except AttributeError:
            if not name.startswith("__") and name.encode() in [
                bytes(one) for one in QtCore.QObject.dynamicPropertyNames(self)
            ]:
                return QtCore.QObject.property(self, name)
            raise
        if callable(value) and (name in LISTS or (name == "value" and isinstance(self, QtCore.QSettings))):
            return lambda *args: tuple(found) if isinstance(found := value(*args), list) else found
        return value

    def write(self: Any, name: str, value: Any) -> None:
        kind = type(self)
        known = inspect.getattr_static(kind, name, None)
        if kind.__module__.startswith("PySide6") and not isinstance(value, QtCore.SignalInstance):
            if known is None:
                raise AttributeError(
                    f"'{name}' does not exist on {kind.__name__} and creating new attributes on C++ objects is not "
                    "allowed"
                )
            if not hasattr(type(known), "__set__"):
                raise AttributeError(f"Slot '{name}' can not be overwritten on {kind.__name__} object")
        if isinstance(known, QtCore.Property):
            known.fset(self, value)
        else:
            _generic_set(self, name, value)

    cls.__getattribute__, cls.__setattr__ = read, write


class UiLoader(QtUiTools.QUiLoader):
    """Creates our stand-ins for the widgets of Slicer and CTK, and makes the connections of the file by name."""

    def createWidget(self, kind: str, parent: Any = None, name: str = "") -> Any:
        from Testing.slicer.widgets import REGISTRY

        if kind in REGISTRY:
            made = REGISTRY[kind](parent)
            made.setObjectName(name)
            return made
        made = super().createWidget(kind, parent, name)
        if made is None:
            raise RuntimeError(f"No stand-in for {kind}")
        return made

    def load(self, path: str) -> Any:
        import xml.etree.ElementTree as ElementTree

        tree = ElementTree.parse(path)
        wires = tree.find("connections")
        if wires is not None:
            tree.getroot().remove(wires)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree.getroot()))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, None)
        named = {one.objectName: one for one in (widget, *QtCore.QObject.findChildren(widget, QtCore.QObject))}
        for wire in wires if wires is not None else ():
            sender, signal, receiver, slot = (
                str(wire.findtext(one)) for one in ("sender", "signal", "receiver", "slot")
            )
            if not connect(named[sender], signal, functools.partial(_slot, named[receiver], slot)):
                raise RuntimeError(f"The .ui file connects {sender}.{signal}, which there is not")
        return widget


def _keep_none() -> None:
    """PySide 6.12 hands out None without counting it, which ends a Python before 3.12 after some thousand calls."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def build() -> types.ModuleType:
    """The module `qt`; changes PySide6 for the whole process."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    _keep_none()
    found = list(dict.fromkeys(qobjects()))
    for cls in found:
        if cls is QtCore.QObject or "__getattribute__" in cls.__dict__ or "__setattr__" in cls.__dict__:
            _patch_access(cls)
    base: Any = QtCore.QObject
    base.className = lambda self: getattr(type(self), "_className_", QtCore.QObject.metaObject(self).className())
    for cls in found:
        _shadow_properties(cls)
    base.name = property(lambda self: self.objectName, lambda self, value: self.setProperty("objectName", value))
    base.delete = lambda self: __import__("shiboken6").delete(self)
    entries: Any = QtCore.QDir.entryList
    QtCore.QDir.entryList = lambda self, *args: tuple(entries(self, *args))  # type: ignore[method-assign,assignment]
    qt = types.ModuleType("qt")
    for module in MODULES:
        for name in dir(module):
            if not name.startswith("_") and name not in HIDDEN:
                setattr(qt, name, getattr(module, name))
    qt.QUiLoader = UiLoader  # type: ignore[attr-defined]
    sys.modules["qt"] = qt
    return qt
