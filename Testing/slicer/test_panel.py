"""The panel on the Slicer core with a worker of its own, a tiny model in it. No Qt here, as the panel has none."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import overlay, parameters, results
from MedVLMReaderLib.mrml import ROLE, array_from, matrix_from, nodes, voxels
from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.scene import world_affine
from Testing.made_scans import oblique_grid
from Testing.slicer.core import SlicerCore
from Testing.slicer.driving import read, sentence, settled, until
from Testing.slicer.looks import census, everything_of_the_user
from Testing.tiny_model import TINY_TEXT


def test_the_displayed_volume_is_chosen_and_read(core: SlicerCore, panel: Panel, scan: Any) -> None:
    user = everything_of_the_user(core.scene)
    assert panel.scan is scan
    read(panel)
    state = panel.state()
    assert (state.findings, state.impression) == (
        "The right lung is clear. A stone of 7 mm lies in one kidney.", "Renal calculus.",
    )  # fmt: skip
    assert state.report.count('<a href="sentence:0/') == 3
    assert "Not for clinical use." in state.provenance
    assert "fp32" in state.provenance
    assert everything_of_the_user(core.scene) == user


def test_words_come_before_the_answer_and_the_memory_before_the_model(panel: Panel) -> None:
    came: list[str] = []
    panel.changed = lambda: came.append(panel.case.words if panel.case else "")
    panel.set(model="built-in")
    assert panel.state().memory.startswith("Needs 0.1 GB (fp32); you have")
    panel.set(model="m3d-lamed-llama2", precision="fp32")
    assert panel.state().memory.startswith("Needs 30.4 GB (fp32)")
    panel.ask("What is it?")
    assert panel.confirm.startswith("M3D-LaMed with Llama 2 7B is not on this machine. About 14.0 GB will be fetched")
    panel.agree(False)
    assert not panel.client.busy


def test_a_click_shows_the_sentence_and_moves_nothing_of_the_users(core: SlicerCore, panel: Panel, scan: Any) -> None:
    read(panel)
    user, before = everything_of_the_user(core.scene), core.pictures()
    panel.click(sentence(panel, 1))
    settled(panel)
    node = overlay.shown(core.scene)
    assert panel.message == ""
    assert node.GetAttribute("MedVLM.words") == "A stone of 7 mm lies in one kidney."
    assert node.GetAttribute("MedVLM.method") == "relevance"
    assert "times even" in panel.state().heat
    assert panel.state().heat.endswith("Attention, not a finding.")
    assert any((picture != before[name]).any() for name, picture in core.pictures().items())
    panel.set(opacity=0.4)
    panel.set(threshold=2.0)
    panel.plot()
    panel.set(method="attention")
    settled(panel)
    assert overlay.shown(core.scene).GetAttribute("MedVLM.method") == "attention"
    panel.hide()
    assert everything_of_the_user(core.scene) == user
    assert [one for one in nodes(core.scene, "vtkMRMLNode") if one.GetAttribute(ROLE) in ("overlay", "curve")] == []


def test_questions_queue_and_each_answer_goes_to_the_scan_that_was_asked_about(
    core: SlicerCore, panel: Panel, scan: Any
) -> None:
    grid = oblique_grid((9, 12, 13), (25.0, 20.0, 20.0))
    other = core.volume(np.random.default_rng(2).integers(-50, 99, grid.shape).astype(np.int16), grid.affine, "CT body")
    panel.ask("Is there a stone?")
    panel.choose_scan(other)
    panel.ask("And here?")
    settled(panel)
    first, second = panel.cases[scan.GetID()], panel.cases[other.GetID()]
    assert [kept.turn.question for kept in first.kept] == ["Is there a stone?"]
    assert [kept.turn.question for kept in second.kept] == ["And here?"]
    owners = {
        node.GetText().split("\n")[0]: node.GetNodeReferenceID("MedVLM.source")
        for node in nodes(core.scene, "vtkMRMLTextNode")
        if node.GetAttribute(ROLE) == "reading"
    }
    assert owners == {"Question: Is there a stone?": scan.GetID(), "Question: And here?": other.GetID()}


def test_an_edited_report_is_kept_beside_the_draft_and_its_sentences_can_be_clicked(panel: Panel) -> None:
    read(panel)
    panel.edit("The right lung is clear. A stone of 9 mm lies in one kidney.", "Renal calculus.")
    kept = panel.case.kept[0]
    assert kept.turn.reading.text == TINY_TEXT
    assert "9 mm" in kept.edited
    assert "Edited after it was written." in panel.text()
    panel.click(sentence(panel, 0))
    settled(panel)
    assert panel.case.heat.reading is kept.turn.reading, "an untouched sentence is looked up in the draft"
    state = panel.state()
    panel.edit(*(TINY_TEXT.removeprefix("Findings: ").split("\nImpression: ")))
    assert kept.edited is None
    assert state.edited


def test_a_stop_keeps_the_words_so_far(panel: Panel) -> None:
    panel.read()
    until(panel.client, lambda: bool(panel.case.words))
    panel.stop()
    settled(panel)
    kept = panel.case.kept[0]
    if not kept.turn.reading.complete:
        assert TINY_TEXT.startswith(kept.text)
        assert "Incomplete" in panel.state().provenance
    panel.ask("Go on?")
    settled(panel)
    assert len(panel.case.kept) == 2


def test_a_killed_worker_is_told_of_and_the_next_question_works(panel: Panel) -> None:
    read(panel)
    panel.ask("Is there a stone?")
    until(panel.client, lambda: bool(panel.case.words))
    began = time.monotonic()
    panel.client.running.program.transport.process.kill()
    until(panel.client, lambda: bool(panel.message), 5)
    assert time.monotonic() - began < 2
    settled(panel)
    panel.ask("Is there a stone?")
    settled(panel)
    assert panel.case.kept[-1].turn.reading.complete
    assert panel.message == ""


def test_an_unloadable_model_is_told_of_and_another_one_works(panel: Panel, tmp_path: Path, tiny_model: Path) -> None:
    panel.set(model=str(tmp_path / "nowhere"))
    panel._then = lambda: None
    panel.read()
    settled(panel)
    assert "nowhere" in panel.message
    panel.set(model=str(tiny_model))
    read(panel)
    assert panel.case.kept


def test_a_deleted_volume_takes_all_of_ours_with_it_even_while_it_is_asked_about(
    core: SlicerCore, panel: Panel, scan: Any
) -> None:
    before = {(kind, name) for kind, name in census(core.scene) if "Hierarchy" not in kind}
    read(panel)
    panel.click(sentence(panel, 0))
    settled(panel)
    panel.plot()
    panel.ask("And now?")
    core.show(None)
    core.scene.RemoveNode(scan)
    settled(panel)
    assert panel.message == ""
    assert panel.case is None
    left = {one for one in census(core.scene) - before if one[0] != "vtkMRMLSubjectHierarchyNode"}
    assert left == set()
    panel.read()
    assert panel.message.startswith("There is no volume to read")


def test_closing_the_scene_while_answering_leaves_nothing(core: SlicerCore, panel: Panel) -> None:
    read(panel)
    panel.click(sentence(panel, 0))
    settled(panel)
    panel.ask("And now?")
    core.close()
    settled(panel)
    assert (panel.message, panel.case, panel.cases) == ("", None, {})
    assert [one for one in nodes(core.scene, "vtkMRMLNode") if one.GetAttribute(ROLE)] == []


def planes(core: SlicerCore) -> list[Any]:
    """(4, 4) of each slice view, and where the crosshair is."""
    crosshair = next(nodes(core.scene, "vtkMRMLCrosshairNode"))
    return [*(array_from(view.node.GetSliceToRAS()) for view in core.views.values()), crosshair.GetCrosshairRAS()]


def test_a_saved_scene_brings_everything_back(core: SlicerCore, panel: Panel, tmp_path: Path) -> None:
    read(panel)
    panel.ask("Is there a stone?")
    settled(panel)
    panel.edit("Nothing new.", "Äöü 中文 <b>bold</b>")
    panel.click(sentence(panel, 0, turn=1))
    settled(panel)
    panel.set(opacity=0.6, threshold=1.5)
    was, pictures, at = panel.state(), core.pictures(), planes(core)
    heat = np.array(voxels(overlay.shown(core.scene)))
    assert core.save(tmp_path / "scene.mrb")
    assert core.views["Red"].composite.GetNumberOfAdditionalLayers() == 1, "the layer is back after saving"
    assert core.open(tmp_path / "scene.mrb")
    now = panel.state()
    for one in ("report", "chat", "findings", "impression", "edited", "provenance", "heat"):
        assert getattr(now, one) == getattr(was, one), one
    assert (panel.settings.opacity, panel.settings.threshold) == (0.6, 1.5)
    assert np.array_equal(voxels(overlay.shown(core.scene)), heat)
    for place, before in zip(planes(core), at, strict=True):
        np.testing.assert_allclose(place, before, atol=1e-4)
    for name, picture in core.pictures().items():
        assert (np.abs(picture.astype(int) - pictures[name]).sum(2) > 24).mean() < 0.01, name
    panel.ask("And a third?")
    settled(panel)
    assert len(panel.case.kept) == 3


def test_a_scene_of_a_newer_version_is_left_as_it_is(core: SlicerCore, panel: Panel, scan: Any) -> None:
    read(panel)
    (record,) = [one for one in nodes(core.scene, "vtkMRMLTextNode") if one.GetAttribute(ROLE) == "record"]
    record.SetText(record.GetText().replace('"format": 1, "question"', '"format": 7, "question"'))
    text = record.GetText()
    panel.cases.clear()
    panel.loaded()
    assert "saved by a newer MedVLM Reader (format 7" in panel.message
    panel.read()
    assert "newer" in panel.message
    assert record.GetText() == text
    parameters.node_of(core.scene).SetParameter("format", "9")
    panel.loaded()
    panel.set(opacity=0.1)
    assert "newer" in panel.message
    assert parameters.node_of(core.scene).GetParameter("opacity") != "0.1"
    parameters.node_of(core.scene).SetParameter("format", "1")


def test_a_disk_that_is_full_loses_no_text(panel: Panel, tmp_path: Path) -> None:
    read(panel)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        panel.save(tmp_path / "report.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert panel.message.startswith("The text could not be saved")
    assert list(tmp_path.iterdir()) == []
    panel.save(tmp_path / "report.txt")
    saved = (tmp_path / "report.txt").read_text()
    assert saved == panel.text()
    assert "Not for clinical use." in saved


def test_html_in_an_answer_is_text(panel: Panel) -> None:
    from dataclasses import replace

    from MedVLMReaderLib.results import Kept
    from MedVLMReaderLib.session import Turn

    read(panel)
    reading = panel.case.kept[0].turn.reading
    evil = replace(reading, text='<img src="x" onerror="boom"> & <b>clear</b>.', traces=())
    panel.case.kept[0] = Kept(Turn("<script>", evil), np.eye(4), is_report=True)
    panel.case.kept.append(Kept(Turn("<script>", evil), np.eye(4)))
    state = panel.state()
    for html in (state.report, state.chat):
        assert "<img" not in html
        assert "<script" not in html
        assert "&lt;b&gt;clear" in html


def test_a_scan_that_was_moved_takes_its_heatmap_and_its_places_along(
    core: SlicerCore, panel: Panel, scan: Any
) -> None:
    read(panel)
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 60)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix_from(shift))
    scan.SetAndObserveTransformNodeID(transform.GetID())
    panel.click(sentence(panel, 0))
    settled(panel)
    assert np.allclose(world_affine(overlay.shown(core.scene)), shift @ panel.case.heat.times.grid.affine)


def test_a_slice_or_a_region_is_what_a_question_is_about(core: SlicerCore, panel: Panel) -> None:
    panel.set(context="axial")
    panel.ask("What is this?")
    settled(panel)
    assert panel.case.kept[0].turn.reading.question.startswith("About axial slice")
    panel.set(context="region")
    panel.ask("What is this?")
    assert "no region to ask about" in panel.message
    region = core.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    region.SetCenter(*panel.case.view.cursor_ras)
    region.SetSize(30, 40, 50)
    panel.choose_region(region)
    panel.ask("What is this?")
    settled(panel)
    assert panel.case.kept[1].turn.reading.question.startswith("About the region of 30 x 40 x 50 mm")


def test_what_the_model_saw_and_whether_the_image_supports_a_sentence(panel: Panel) -> None:
    read(panel)
    panel.show_what_it_saw()
    settled(panel)
    assert panel.saw.startswith(b"\x89PNG")
    panel.verify()
    assert panel.message == "No sentence is chosen. Click one first."
    panel.click(sentence(panel, 0))
    settled(panel)
    panel.verify()
    settled(panel)
    assert "by the image" in panel.state().verdict


def test_text_is_under_the_scan_and_names_nobody(core: SlicerCore, panel: Panel, scan: Any) -> None:
    scan.SetName("DOE^JANE 1970")
    read(panel)
    tree = core.scene.GetSubjectHierarchyNode()
    (text,) = [one for one in nodes(core.scene, "vtkMRMLTextNode") if one.GetAttribute(ROLE) == "reading"]
    assert tree.GetItemParent(tree.GetItemByDataNode(text)) == tree.GetItemByDataNode(scan)
    assert "DOE" not in panel.text() + text.GetText() + text.GetName()
    assert results.kept_of(core.scene, scan)[0].text == TINY_TEXT
