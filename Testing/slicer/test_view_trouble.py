"""What goes wrong while the module works: told within a second, no word lost, nothing of the user's touched."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib.mrml import ROLE, nodes
from MedVLMReaderLib.worker.interpreter import VARIABLE
from Testing.made_scans import oblique_grid
from Testing.slicer import pythonqt
from Testing.slicer.clock import Stopwatch
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import Host
from Testing.slicer.looks import everything_of_the_user
from Testing.slicer.relay import Relay
from Testing.tiny_model import TINY_TEXT

pytestmark = [
    pytest.mark.slow,  # each starts a worker or two
    pytest.mark.skipif(sys.platform != "linux", reason="limits another process, as only Linux lets one do"),
]


@pytest.fixture
def scan(core: SlicerCore) -> Any:
    """Shown behind a PET and a label map, views linked: all that must stay."""
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(1).integers(-20, 120, grid.shape).astype(np.int16)
    node = core.volume(values, grid.affine, "CT body")
    pet = core.volume(np.ones((4, 5, 6), np.float32), grid.resize((4, 5, 6)).affine, "PET")
    labels = core.volume(np.ones((4, 5, 6), np.uint8), grid.resize((4, 5, 6)).affine, "organs", "LabelMap")
    core.window(node, 400, 40)
    core.show(node, pet, 0.3)
    for one in core.views.values():
        one.composite.SetLabelVolumeID(labels.GetID())
        one.composite.SetLabelOpacity(0.25)
        one.composite.SetLinkedControl(1)
        one.composite.SetHotLinkedControl(1)
    return node


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Relay:
    made = Relay(tmp_path / "relay")
    monkeypatch.setenv(VARIABLE, made.python)
    return made


@pytest.fixture
def view(host: Host, core: SlicerCore, scan: Any, relay: Relay, tiny_model: Path) -> Iterator[Any]:
    with pythonqt.nothing_fails():
        loaded = [host.load()]
        loaded[0].panel.set(model=str(tiny_model))
        host.until(lambda: loaded[0].ui.readButton.enabled)
        yield loaded
        loaded[-1].cleanup()


def begun(host: Host, view: Any, relay: Relay) -> str:
    """Press Read; the words that have come, and no more do."""
    relay.hold()
    view.ui.readButton.click()
    host.until(lambda: view.panel.case.words.count(" ") >= 1 or bool(view.panel.message))
    assert view.panel.message == ""
    return str(view.panel.case.words)


def read(host: Host, view: Any) -> None:
    view.ui.readButton.click()
    host.until(lambda: view.panel.case.report is not None or bool(view.panel.message))
    assert view.panel.message == ""


def asked(host: Host, view: Any, question: str) -> Any:
    """The turn that a question became."""
    before = len(view.panel.case.kept)
    view.ui.questionEdit.setText(question)
    host.until(lambda: view.ui.askButton.enabled)
    view.ui.askButton.click()
    host.until(lambda: len(view.panel.case.kept) > before or bool(view.panel.message))
    assert view.panel.message == ""
    return view.panel.case.kept[-1]


def within_a_second(host: Host, view: Any, happens: Callable[[], object]) -> str:
    """What the form says, at most a second after something has happened."""
    watch = Stopwatch()
    happens()
    host.until(lambda: bool(view.ui.messageLabel.text))
    assert watch.unhindered() < 1.0
    return str(view.ui.messageLabel.text)


def killed(_: Relay, view: Any) -> None:
    os.kill(view.transport.process.processId(), signal.SIGKILL)


def crashed(_: Relay, view: Any) -> None:
    os.kill(view.transport.process.processId(), signal.SIGSEGV)


def garbage(relay: Relay, _: Any) -> None:
    relay.go_on(garbage=True)


TROUBLE = {
    "killed": (killed, "ended by the system, most likely because memory ran out"),
    "crashed": (crashed, "ended unexpectedly (SIGSEGV)"),
    "garbage": (garbage, "wrote what it should not: no JSON"),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_in_mid_answer_it_is_said_within_a_second_the_words_stay_and_the_next_question_works(
    host: Host, core: SlicerCore, view: list[Any], relay: Relay, kind: str
) -> None:
    (one,), user, (happens, said) = view, everything_of_the_user(core.scene), TROUBLE[kind]
    words = begun(host, one, relay)
    message = within_a_second(host, one, lambda: happens(relay, one))
    assert said in message
    assert "What was written so far is kept" in message
    kept = one.panel.case.kept[0]
    assert (kept.text.startswith(words.strip()), kept.turn.reading.complete) == (True, False)
    assert TINY_TEXT.startswith(kept.text)
    assert "Incomplete" in one.panel.text()
    (relay.folder / "hold").unlink(missing_ok=True)
    assert asked(host, one, "Is there a stone?").turn.reading.complete
    assert one.ui.messageLabel.visible is False or one.ui.messageLabel.text == ""
    assert everything_of_the_user(core.scene) == user


def test_out_of_memory_is_said_and_the_next_question_works(
    host: Host, core: SlicerCore, scan: Any, view: list[Any], relay: Relay
) -> None:
    (one,), user = view, everything_of_the_user(core.scene)
    read(host, one)
    pid = one.panel.client.running.program.pid
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.prlimit(pid, resource.RLIMIT_AS)
    large = core.volume(np.ones((200, 500, 500), np.int16), np.diag([1.0, 1.0, 1.0, 1.0]), "CT large")
    one.panel.choose_scan(large)
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (32 << 20), limits[1]))
    one.panel.ask("What is this?")
    host.until(lambda: bool(one.panel.message))
    resource.prlimit(pid, resource.RLIMIT_AS, limits)
    assert one.panel.message.startswith("The memory ran out. What was written so far is kept.")
    one.panel.choose_scan(scan)
    assert [kept.text for kept in one.panel.case.kept] == [TINY_TEXT]
    assert asked(host, one, "Is there a stone?").turn.reading.complete
    assert one.panel.client.running.program.pid == pid
    core.scene.RemoveNode(large)
    assert everything_of_the_user(core.scene) == user


def test_a_reload_in_mid_answer_keeps_the_words_and_leaves_no_process_behind(
    host: Host, core: SlicerCore, view: list[Any], relay: Relay
) -> None:
    user = everything_of_the_user(core.scene)
    words = begun(host, view[0], relay).strip()
    pid, folder = view[0].panel.client.running.program.pid, view[0].panel.client.running.folder
    view.append(host.reload(view[0]))
    (relay.folder / "hold").unlink()
    now = view[-1]
    host.until(lambda: words in now.ui.reportBrowser.plainText)
    assert "Incomplete" in now.ui.provenanceLabel.text
    host.until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert not folder.exists()
    assert asked(host, now, "Is there a stone?").turn.reading.complete
    assert len(now.panel.case.kept) == 2
    assert everything_of_the_user(core.scene) == user


def test_a_volume_deleted_or_a_scene_closed_in_mid_answer_leaves_nothing(
    host: Host, core: SlicerCore, scan: Any, view: list[Any], relay: Relay
) -> None:
    (one,) = view
    begun(host, one, relay)
    core.show(None)
    core.scene.RemoveNode(scan)
    relay.go_on()
    host.until(lambda: not one.panel.client.busy)
    assert (one.panel.message, one.panel.case) == ("", None)
    assert [node for node in nodes(core.scene, "vtkMRMLTextNode") if node.GetAttribute(ROLE)] == []
    values = np.random.default_rng(2).integers(-50, 99, (9, 12, 13)).astype(np.int16)
    core.show(core.volume(values, np.diag([25.0, 20, 20, 1]), "CT"))
    host.until(lambda: one.ui.readButton.enabled)
    begun(host, one, relay)
    core.close()
    relay.go_on()
    host.until(lambda: not one.panel.client.busy)
    assert (one.panel.message, one.panel.cases) == ("", {})
    assert [node for node in nodes(core.scene, "vtkMRMLNode") if node.GetAttribute(ROLE)] == []


def test_no_action_touches_what_is_the_users(
    host: Host, core: SlicerCore, view: list[Any], relay: Relay, tmp_path: Path
) -> None:
    (one,), user = view, everything_of_the_user(core.scene)
    panel = one.panel

    def same(what: str) -> None:
        host.until(lambda: not panel.client.busy and not one.dirty)
        assert everything_of_the_user(core.scene) == user, what

    read(host, one)
    same("read")
    start, stop = panel.case.kept[0].turn.reading.sentences[1]
    actions: dict[str, Callable[[], object]] = {
        "click": lambda: panel.click(f"sentence:0/{start}-{stop}"),
        "opacity": lambda: one.ui.opacitySlider.setValue(0.3),
        "threshold": lambda: one.ui.thresholdSlider.setValue(3.0),
        "another method": lambda: panel.set(method="attention"),
        "curves": one.ui.plotButton.click,
        "supported?": one.ui.verifyButton.click,
        "what it saw": one.ui.sawButton.click,
        "edit": lambda: one.ui.findingsEdit.setPlainText("Nothing."),
        "the draft again": one.ui.restoreButton.click,
        "copy": one.ui.copyButton.click,
        "a wrong link": lambda: panel.click("https://example.org"),
        "a place": lambda: panel.click("ras:1,2,3"),
        "an empty question": lambda: panel.ask(" "),
        "hide": one.ui.hideButton.click,
        "a model that is not there": lambda: (panel.set(model=str(tmp_path / "none")), panel.ask("Why?")),
        "free": one.ui.freeButton.click,
        "save": lambda: core.save(tmp_path / "scene.mrb"),
    }
    for what, act in actions.items():
        act()
        same(what)
    assert panel.message != "", "the model that is not there was told of"
