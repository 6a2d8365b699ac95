"""The section 'Set-up and models' in the host: real buttons, the real pip, tiny wheels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from MedVLMReaderLib.models import CARDS
from Testing.install.conftest import blank, pip_alone, python, wheels  # noqa: F401
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import MODULE, Host

UI = MODULE.parent / "Resources" / "UI" / "MedVLMReaderSetUp.ui"


class Section:
    """The section with a Python of one's own, and what it told the module."""

    def __init__(self, host: Host, interpreter: str) -> None:
        host.load().cleanup()
        self.host, self.used = host, list[str]()
        module = sys.modules["MedVLMReader"]
        self.view = sys.modules["MedVLMReaderQt.set_up"].SetUpView(
            str(UI), lambda: module.ProcessTransport(host.qt), self.used.append, interpreter
        )
        self.ui = self.view.ui

    def until(self, done: Callable[[], bool]) -> None:
        def advanced() -> bool:
            self.view.advance()
            return done()

        self.host.until(advanced)

    def settle(self) -> None:
        self.until(lambda: not self.view.setting_up.busy)
        self.view.draw()


@pytest.fixture
def section(host: Host, core: SlicerCore, python: Path) -> Iterator[Section]:  # noqa: F811
    pythonqt.slot_errors.clear()
    pythonqt.failed_connections.clear()
    made = Section(host, str(python))
    yield made
    made.view.close()
    assert pythonqt.slot_errors == []
    assert pythonqt.failed_connections == []


@pytest.mark.slow
def test_read_opens_set_up_says_what_it_costs_installs_when_agreed_and_then_reads(
    host: Host, section: Section, wheels: Path, python: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    ui, done = section.ui, list[int]()
    assert all(section.view.connected)
    assert ui.setUpSection.collapsed
    section.view.when_ready(lambda: done.append(1))
    section.settle()
    assert not ui.setUpSection.collapsed
    assert "PyTorch extension, which is not installed" in ui.setUpMessageLabel.text
    assert not ui.installButton.enabled
    ui.wheelsEdit.setText(str(wheels))
    ui.wheelsEdit.editingFinished.emit()
    section.settle()
    assert "not installed" in ui.headlineLabel.text
    assert "on the disk" in ui.costLabel.text
    assert ui.installButton.enabled
    host.agreed, host.asked = False, []
    ui.installButton.click()
    assert "on the disk" in host.asked[0]
    assert not section.view.setting_up.busy, "nothing is done without a yes"
    host.agreed = True
    ui.installButton.click()
    section.until(lambda: ui.stopSetUpButton.enabled)
    assert not ui.placeBox.enabled
    section.settle()
    assert done == [1], ui.setUpMessageLabel.text
    assert section.used == [str(python)]
    assert ui.setUpSection.collapsed
    assert "Successfully installed" in ui.detailsEdit.plainText
    section.view.when_ready(lambda: done.append(2))
    assert done == [1, 2], "the next time nothing is looked at"


def test_models_are_listed_with_size_and_licence_and_removing_asks(host: Host, section: Section) -> None:
    ui = section.ui
    assert ui.modelsList.count == len(section.view.offers) >= len(CARDS)
    row = next(n for n, offer in enumerate(section.view.offers) if offer.gated)
    ui.modelsList.setCurrentRow(row)
    assert "Licence: Health AI Developer Foundations" in ui.offerLabel.text
    assert "accept" in ui.offerLabel.text
    host.agreed, host.asked = False, []
    ui.removeModelButton.click()
    assert "medgemma-1.5" in host.asked[0]
    ui.modelEdit.setText("no such name")
    ui.fetchButton.click()
    section.view.advance()
    assert "OWNER/NAME" in ui.fetchingLabel.text
    host.agreed = True


def test_a_question_is_asked_once_though_the_timer_goes_on_meanwhile(
    host: Host, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, asked = section.view, list[str]()

    def answered_late(text: str) -> bool:
        asked.append(text)
        view.touched()
        view.advance()
        return False

    monkeypatch.setattr(host.core.slicer.util, "confirmOkCancelDisplay", answered_late)
    view.models.confirm = "Fetch it?"
    view.touched()
    view.advance()
    assert asked == ["Fetch it?"]
    assert view.models.confirm == ""


def test_a_question_of_the_panel_is_asked_once_too(
    host: Host, core: SlicerCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, asked = host.load(), list[str]()

    def answered_late(text: str, **_: object) -> bool:
        asked.append(text)
        view.dirty = True
        view.draw()
        return False

    monkeypatch.setattr(host.core.slicer.util, "confirmYesNoDisplay", answered_late)
    view.panel.confirm, view.dirty = "Read again?", True
    view.draw()
    assert asked == ["Read again?"]
    assert view.panel.confirm == ""
    view.cleanup()


def test_where_an_environment_reads_already_the_pythons_that_could_make_one_are_listed(
    section: Section, tmp_path: Path
) -> None:
    ui, one = section.ui, section.view.setting_up
    one.wishes = replace(one.wishes, place="own", chosen=one.slicer)
    ui.setUpSection.collapsed = False
    section.settle()
    assert ui.pythonBox.count == len(one.pythons)
    assert ui.pythonBox.count


def test_a_folder_that_is_typed_may_begin_in_the_users_own(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ui, one = section.ui, section.view.setting_up
    ui.wheelsEdit.setText(" ~/wheels ")
    ui.wheelsEdit.editingFinished.emit()
    section.settle()
    assert one.wishes.wheels == tmp_path / "wheels"
    ui.environmentEdit.setText("~/reader")
    ui.environmentEdit.editingFinished.emit()
    section.settle()
    assert one.wishes.environment == tmp_path / "reader"


def test_a_separate_environment_shows_what_it_is_made_by_and_where(section: Section, tmp_path: Path) -> None:
    ui = section.ui
    section.view.draw()
    assert not ui.environmentEdit.visible or not ui.environmentEdit.isVisibleTo(section.view.widget)
    ui.placeBox.activated.emit(ui.placeBox.findData("own"))
    section.settle()
    assert section.view.setting_up.wishes.place == "own"
    assert ui.environmentEdit.isVisibleTo(ui.setUpSection) or ui.setUpSection.collapsed
    assert str(tmp_path / "home") in ui.environmentEdit.text
