"""The forms by keyboard and for screen readers; colours for eyes that see them differently; words to translate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from MedVLMReaderLib.pictures import INFERNO, OPACITY, colours
from MedVLMReaderLib.transcript import CHOSEN, NOTE
from Testing.docs.words import MODULE, TEMPLATE, template, words

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted(MODULE.rglob("*.ui"))
TYPED = {
    "QPushButton", "QToolButton", "QComboBox", "QLineEdit", "QPlainTextEdit", "QTextEdit", "QTextBrowser", "QCheckBox",
    "QRadioButton", "QListWidget", "QTableWidget", "QTreeWidget", "QSpinBox", "QSlider", "QTabWidget",
    "qMRMLNodeComboBox", "ctkSliderWidget", "ctkPathLineEdit", "ctkCollapsibleButton",
}  # fmt: skip
"""Widgets that the keyboard has to reach."""
SCROLLED = {"QPlainTextEdit", "QTextEdit", "QTextBrowser", "QListWidget"}
"""Widgets that may have a largest height: what does not fit is scrolled to."""
SLICERS_MENUS = set("FEVH")
"""Alt and these open File, Edit, View and Help."""
Array = NDArray[Any]
# Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113), severity 1.0, on linear light.
SEEN_BY = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "anybody else": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}
form = pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)


def widgets(path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Class, name and properties of every widget of a form, in its order."""
    for one in ElementTree.parse(path).getroot().iter("widget"):
        held = {str(p.get("name")): "".join(p.itertext()).strip() for p in one.findall("property")}
        yield str(one.get("class")), str(one.get("name")), held


# Keyboard and screen reader


@form
def test_the_tab_key_reaches_everything_in_the_order_in_which_it_stands(path: Path) -> None:
    reached = [one.text for one in ElementTree.parse(path).getroot().iter("tabstop")]
    assert reached == [name for kind, name, _ in widgets(path) if kind in TYPED]


@form
def test_the_tab_key_leads_out_of_every_field_again(path: Path) -> None:
    traps = [name for kind, name, held in widgets(path)
             if kind in ("QPlainTextEdit", "QTextEdit") and held.get("tabChangesFocus") != "true"]  # fmt: skip
    assert not traps


@form
def test_every_widget_has_a_name_for_those_who_cannot_see_it(path: Path) -> None:
    labelled = {held["buddy"] for _, _, held in widgets(path) if "buddy" in held}
    nameless = [
        name for kind, name, held in widgets(path)
        if kind in TYPED and name not in labelled and not held.get("accessibleName") and not held.get("text")
    ]  # fmt: skip
    assert not nameless
    fields = [name for kind, name, held in widgets(path) if kind == "QLabel" and held.get("text", "").endswith(":")]
    assert all("buddy" in held for _, name, held in widgets(path) if name in fields)


@form
def test_no_two_widgets_answer_to_the_same_letter_and_none_to_one_of_slicers_menus(path: Path) -> None:
    texts = [held["text"] for _, _, held in widgets(path) if "&" in held.get("text", "").replace("&&", "")]
    letters = [found[1].upper() for text in texts if (found := re.search(r"&(\w)", text))]
    assert len(letters) == len(set(letters))
    assert not set(letters) & SLICERS_MENUS


def test_letters_of_all_forms_in_the_panel_differ() -> None:
    letters = [
        found[1].upper()
        for path in FORMS
        for _, _, held in widgets(path)
        if (found := re.search(r"&(\w)", held.get("text", "").replace("&&", "")))
    ]
    assert len(letters) == len(set(letters))


def test_every_shortcut_of_the_module_stands_in_the_manual() -> None:
    source = (MODULE / "MedVLMReader.py").read_text(encoding="utf-8")
    shortcuts = re.findall(r'\("((?:Ctrl|Alt|Shift|Esc|F\d)[\w+]*)", self', source)
    page = (ROOT / "docs" / "slicer-module.md").read_text(encoding="utf-8")
    assert len(shortcuts) >= 5
    assert all(f"| {keys} |" in page for keys in shortcuts)


@form
def test_no_widget_has_a_size_or_colour_that_a_larger_font_or_a_dark_theme_would_break(path: Path) -> None:
    for kind, name, held in widgets(path):
        assert not {"palette", "font"} & set(held), name
        assert "maximumSize" not in held or kind in SCROLLED, name
        style = held.get("styleSheet", "")
        assert "font-size" not in style, name
        assert ("color:" not in style) or contrast(*colours_of(style)) >= 7, name


@form
def test_lists_break_long_lines_in_the_place_of_hiding_their_end(path: Path) -> None:
    for kind, name, held in widgets(path):
        if kind == "QListWidget":
            assert held.get("wordWrap") == "true", name
            assert held.get("horizontalScrollBarPolicy") == "Qt::ScrollBarAlwaysOff", name


def colours_of(style: str) -> tuple[str, str]:
    """Background and letters of a style, which must name both."""
    found = re.search(r"background-color: (#\w{6}); color: (#\w{6})", style)
    assert found is not None, style
    return found[1], found[2]


# Colours


def linear(rgb: Array) -> Array:
    """(..., 3) light of sRGB from 0 to 1."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(rgb: Array, kind: str = "anybody else") -> Array:
    """(...) relative luminance of (..., 3) sRGB from 0 to 255 for an eye."""
    seen = np.clip(linear(np.asarray(rgb) / 255.0) @ np.transpose(SEEN_BY[kind]), 0, 1)
    return seen @ np.array([0.2126, 0.7152, 0.0722])


def lightness(rgb: Array, kind: str) -> Array:
    """L* of CIELAB, 0 to 100."""
    y = luminance(rgb, kind)
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("kind", SEEN_BY)
def test_a_higher_share_is_lighter_to_every_kind_of_eye(kind: str) -> None:
    assert (np.diff(lightness(INFERNO, kind)) > 3).all()
    times = 2.0 ** np.linspace(0, 5, 60)
    assert (np.diff(lightness(colours(times)[:, :3].astype(float), kind)) > 0).all()


@pytest.mark.parametrize("kind", SEEN_BY)
def test_over_black_a_higher_share_is_lighter_as_drawn(kind: str) -> None:
    drawn = colours(2.0 ** np.linspace(0, 5, 60)).astype(float)
    over = drawn[:, :3] * drawn[:, 3:] / 255
    assert (np.diff(lightness(over, kind)) > -0.5).all()
    assert lightness(over, kind)[-1] > 60
    assert drawn[-1, 3] == pytest.approx(255 * OPACITY, abs=1)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours as #rrggbb."""
    light = [float(luminance(np.array([int(c[n : n + 2], 16) for n in (1, 3, 5)]))) for c in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("style", [NOTE, CHOSEN], ids=["note", "chosen"])
def test_marked_text_brings_both_of_its_colours_and_can_be_read_in_any_theme(style: str) -> None:
    assert contrast(*colours_of(style)) >= 7


def test_no_text_of_the_panel_has_a_colour_without_a_background_of_its_own() -> None:
    source = (ROOT / "MedVLMReaderLib" / "transcript.py").read_text(encoding="utf-8")
    for style in re.findall(r'style="([^"]*)"|"(background-color[^"]*)"', source):
        said = "".join(style)
        assert "color: " not in said or "background-color" in said or "palette(" in said, said


# Languages


def test_the_template_for_translators_has_all_that_the_module_says() -> None:
    assert TEMPLATE.read_text(encoding="utf-8") == template(), "Run: make translations"
    assert {"MedVLMReader", "MedVLMReaderQt.manual"} <= set(words())


def test_qt_can_read_the_template() -> None:
    root = ElementTree.parse(TEMPLATE).getroot()
    assert root.tag == "TS"
    assert len(root.findall("context/message/source")) > 60
