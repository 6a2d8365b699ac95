"""The manual opens in the module: the pages of the web site, with their pictures and links, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from MedVLMReaderLib.resources import manual_folder
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import Host

PAGES = sorted(path.name for path in manual_folder().glob("*.md"))


@pytest.fixture
def view(host: Host, core: SlicerCore) -> Iterator[Any]:
    with pythonqt.nothing_fails():
        widget = host.load()
        yield widget
        widget.cleanup()


def test_the_button_opens_the_first_page_and_links_lead_on_and_back(view: Any, host: Host) -> None:
    view.ui.manualButton.click()
    manual = view.manual
    assert manual.window.visible
    assert all(manual.connected)
    assert "Not for clinical use" in manual.browser.toPlainText()
    manual.browser.setSource(host.qt.QUrl("heatmaps.md"))
    assert "Attention, not a finding" in manual.browser.toPlainText()
    manual.browser.backward()
    assert manual.browser.toPlainText().startswith("MedVLM Reader")
    view.ui.manualButton.click()
    assert view.manual is manual


def test_every_page_shows_its_words_and_pictures_and_no_comment(view: Any, host: Host) -> None:
    for page in PAGES:
        view.manual.open(page)
        browser = view.manual.browser
        text, source = browser.toPlainText(), (manual_folder() / page).read_text(encoding="utf-8")
        assert text.startswith(source.splitlines()[0].removeprefix("# ")), page
        assert "<!--" not in text, page
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", source):
            found = browser.loadResource(int(host.qt.QTextDocument.ImageResource), host.qt.QUrl(picture))
            assert found is not None, picture
            assert (manual_folder() / picture).is_file()


def test_closing_the_module_closes_the_manual(host: Host, core: SlicerCore) -> None:
    widget = host.load()
    widget.open_manual()
    window = widget.manual.window
    widget.cleanup()
    assert widget.manual.window is None
    assert not window.visible


def test_a_missing_manual_is_said_and_nothing_breaks(
    view: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("MedVLMReaderLib.resources.LIBRARY", tmp_path / "library")
    view.open_manual()
    assert "manual did not come" in view.panel.message
