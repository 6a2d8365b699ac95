"""Reports out of the scene: exported by the worker, on the right patient or not at all, nothing written over."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from MedVLMReaderLib.dicom import read_series, series_files
from MedVLMReaderLib.mrml import matrix_from
from MedVLMReaderLib.panel import Panel
from MedVLMReaderLib.paper import UIDS, exported_report, unused
from Testing.made_readings import SECRETS, WHO, write_scan
from Testing.made_scans import oblique_grid, write_series
from Testing.slicer.core import SlicerCore
from Testing.slicer.driving import read, sentence, settled

NEEDED = ("highdicom", "fhir.resources", "reportlab")


@pytest.fixture
def dicom_scan(core: SlicerCore, panel: Panel, files: dict[str, str], tmp_path: Path) -> Any:
    """A patient's series as Slicer loads it: counted from the other end, its instances known."""
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))  # as large as a patient
    values = np.random.default_rng(1).integers(-20, 120, grid.shape).astype(np.int16)
    values[2:5, 3:6, 8:12] = -900
    who = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "SliceThickness": "21", **WHO}
    write_series(tmp_path / "series", values, grid, **who)
    volume = read_series(tmp_path / "series").flip(0, 1)
    for path in sorted((tmp_path / "series").iterdir()):
        files[str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = str(path)
    node = core.volume(np.ascontiguousarray(volume.values), volume.grid.affine, "CT of a patient")
    node.SetAttribute(UIDS, " ".join(files))
    core.window(node, 400, 40)
    core.show(node)
    panel.choose_scan(node)
    return node


def exported(panel: Panel, folder: Path, kinds: str) -> list[Path]:
    panel.set(kinds=kinds)
    panel.export(folder)
    settled(panel)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_edited_report_goes_out_as_text_and_pdf_and_names_nobody(panel: Panel, tmp_path: Path) -> None:
    pytest.importorskip("reportlab")
    read(panel)
    panel.ask("Is there a stone?")
    settled(panel)
    panel.edit("The right lung is clear.", "No stone.")
    written = exported(panel, tmp_path / "out", "text json pdf markdown")
    assert panel.message == ""
    assert panel.note == f"{len(written)} files in {written[0].parent.name}."
    assert {"report.txt", "report.json", "report.pdf", "report.md"} <= {path.name for path in written}
    text = (written[0].parent / "report.txt").read_text()
    report_text, chat_text = text.split("Questions and answers")
    assert "No stone." in report_text
    assert "Renal calculus" not in report_text
    assert "Is there a stone?" in chat_text
    assert "Edited by hand" in text
    assert "AI GENERATED DRAFT, NOT FOR CLINICAL USE" in text
    report = exported_report(panel.case, 0)
    assert report.undone().sections != report.sections, "the draft is still behind it"
    assert len({path.parent for path in exported(panel, tmp_path / "out", "text")}) == 2, "the first stays as it was"


def test_a_scan_that_is_not_dicom_belongs_to_no_patient(panel: Panel, tmp_path: Path) -> None:
    read(panel)
    assert exported(panel, tmp_path / "out", "sr text") == []
    assert panel.message.startswith("This volume was not loaded from DICOM")
    assert exported(panel, tmp_path / "out", "fhir text")[0].exists(), "what is no patient's goes out"


@pytest.mark.slow
def test_dicom_objects_are_on_the_patient_of_the_series_that_the_scene_was_loaded_from(
    core: SlicerCore, panel: Panel, dicom_scan: Any, files: dict[str, str], tmp_path: Path
) -> None:
    for one in NEEDED:
        pytest.importorskip(one)
    read(panel)
    panel.set(method="attention")
    panel.click(sentence(panel, 1))
    settled(panel)
    assert panel.message == ""
    assert panel.case.heat.method == "attention", "what is shown is what goes out"
    written = exported(panel, tmp_path / "out", "sr seg sc fhir")
    assert panel.message == ""
    objects = [pydicom.dcmread(path) for path in written if path.suffix == ".dcm"]
    source = pydicom.dcmread(next(iter(files.values())), stop_before_pixels=True)
    assert {one.Modality for one in objects} == {"SR", "SEG", "OT"}
    assert {str(one.PatientID) for one in objects} == {WHO["PatientID"]}
    assert {str(one.StudyInstanceUID) for one in objects} == {str(source.StudyInstanceUID)}
    fhir = next(path for path in written if path.suffix == ".json").read_text()
    assert str(source.StudyInstanceUID) in fhir
    assert not any(secret in fhir for secret in SECRETS)
    assert len(series_files(tmp_path / "series")) == 1


def test_a_series_that_is_gone_or_another_is_refused(
    core: SlicerCore, panel: Panel, dicom_scan: Any, files: dict[str, str], tmp_path: Path
) -> None:
    read(panel)
    gone = Path(files[next(iter(files))])
    gone.rename(tmp_path / "aside.dcm")
    assert exported(panel, tmp_path / "out", "sr") == []
    assert panel.message.startswith(f"1 of {len(files)} DICOM files of this volume are gone")
    (tmp_path / "aside.dcm").rename(gone)
    other = tmp_path / "other"
    write_scan(other, axes=(1, 2, 0), signs=(1, 1, -1), PatientID="ANOTHER")
    dicom_scan.SetAttribute(UIDS, "1.2.3")
    files["1.2.3"] = str(next(other.iterdir()))
    assert exported(panel, tmp_path / "out", "sr") == []
    assert "DICOM" in panel.message
    assert not any(secret in panel.message for secret in SECRETS)


def test_a_scan_that_was_moved_since_is_not_the_one_that_was_read(
    core: SlicerCore, panel: Panel, dicom_scan: Any, tmp_path: Path
) -> None:
    read(panel)
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 60)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix_from(shift))
    dicom_scan.SetAndObserveTransformNodeID(transform.GetID())
    assert exported(panel, tmp_path / "out", "sr") == []
    assert panel.message.startswith("This scan was moved or changed since it was read")


def test_a_full_disk_is_said_and_nothing_half_written_stays(panel: Panel, tmp_path: Path) -> None:
    read(panel)
    pid = panel.client.running.program.pid
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    (tmp_path / "out").mkdir()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (10, limits[1]))
    assert exported(panel, tmp_path / "out", "text") == []
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert "Make room on the disk" in panel.message
    assert len(exported(panel, tmp_path / "out", "text")) == 1


def test_without_a_report_or_a_kind_there_is_nothing_to_export(panel: Panel, tmp_path: Path) -> None:
    assert exported(panel, tmp_path, "text") == []
    assert panel.message.startswith("There is no report to export")
    read(panel)
    assert exported(panel, tmp_path, "") == []
    assert panel.message.startswith("No kind of file is chosen")


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    from datetime import datetime

    now = datetime(2026, 2, 3, 4, 5, 6)
    first = unused(tmp_path, now)
    first.mkdir()
    assert (first.name, unused(tmp_path, now).name) == ("report-20260203-040506", "report-20260203-040506-2")
