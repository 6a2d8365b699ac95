"""Readings that batch exports as well: on the right patient, gone on with, and refused without costing the reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from MedVLMReaderLib.batch import Desk, Report, Settings, here, read_all
from MedVLMReaderLib.batch.shelf import Shelf, shelf
from MedVLMReaderLib.batch.studies import AnyStudy, GivenStudy, studies_of
from MedVLMReaderLib.dicom import read_series
from MedVLMReaderLib.reader import Options, Reader, load
from Testing.batch_scans import write_dicom
from Testing.made_readings import SECRETS, WHO
from Testing.made_scans import changed
from Testing.test_batch import command, kept, run, table
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import write_tiny_scan


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


def exported(
    reader: Reader, studies: list[AnyStudy], place: Shelf, *to: str, questions: tuple[str, ...] = ("Any nodule?",)
) -> Report:
    settings = Settings(reader.model.name, reader.model.revision, questions, Options(longest=4), to=to)
    return read_all(here(Desk(reader), place, settings, ahead=False), studies, place, settings)


def patients(folder: Path) -> dict[str, str]:
    """Study -> patient of each SR under a folder of readings."""
    return {path.parts[-3]: str(pydicom.dcmread(path).PatientID) for path in folder.rglob("report-sr.dcm")}


def write_patients(folder: Path, count: int) -> list[AnyStudy]:
    for n in range(count):
        write_dicom(folder / f"{n}", n, **{**WHO, "PatientID": f"MRN-{n}", "StudyInstanceUID": f"1.2.3.{n}"})
    return studies_of(folder)


def test_the_command_reads_and_exports_each_study_on_its_own_patient(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_patients(tmp_path / "in", 2)
    write_tiny_scan(tmp_path / "in" / "scan.nii.gz")
    assert run(*command(tiny_model, tmp_path), "--longest", 4, "--to", "sr,pdf,markdown") == 1
    said = capsys.readouterr()
    assert "3 studies read, 0 failed, 1 not exported" in said.out
    assert "belongs to a patient and a study" in said.err
    out = tmp_path / "out"
    assert sorted(patients(out).values()) == ["MRN-0", "MRN-1"]
    for name in patients(out):
        assert len((out / name / "export" / "report.pdf").read_bytes()) > 1000
        assert TINY_TEXT[:4] in (out / name / "export" / "report.md").read_text()
    assert sorted(row["exported"][:16] for row in table(out)) == ["markdown, pdf, s"] * 2 + ["sr: a DICOM obje"]
    assert not [secret for secret in SECRETS if secret in said.out + said.err]


def test_what_is_there_is_exported_later_and_only_once(reader: Reader, tmp_path: Path) -> None:
    studies, place = write_patients(tmp_path / "in", 2), shelf(tmp_path / "out")
    assert exported(reader, studies, place) == Report(2, 2, 0, 0)
    readings = kept(tmp_path / "out")
    assert exported(reader, studies, place, "sr") == Report(2, 0, 2, 0)
    objects = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm")}
    assert len(objects) == 2
    times = {path: path.stat().st_mtime_ns for path in objects}
    assert exported(reader, studies, place, "sr", "text") == Report(2, 0, 2, 0)
    assert exported(reader, studies, place, "sr") == Report(2, 0, 2, 0)
    assert {path: path.read_bytes() for path in objects} == objects  # the same export is the same object
    first = next(iter(times))
    exported(reader, studies, place, "text", "sr")
    assert first.stat().st_mtime_ns >= times[first]
    now = kept(tmp_path / "out")
    assert all(now[name] == content for name, content in readings.items() if name.count("/") and "export" not in name)
    (tmp_path / "out" / studies[0].id / "export" / "export.json").unlink()
    assert exported(reader, studies, place, "sr") == Report(2, 0, 2, 0)


def test_every_answer_of_a_study_is_exported(reader: Reader, tmp_path: Path) -> None:
    (study,) = write_patients(tmp_path / "in", 1)
    exported(reader, [study], shelf(tmp_path / "out"), "sr", questions=("Any nodule?", "Any stone?"))
    found = sorted(path.relative_to(tmp_path / "out").parts[1] for path in (tmp_path / "out").rglob("*.dcm"))
    assert found == ["01", "02"]


def test_a_source_of_two_names_keeps_its_reading_and_exports_nothing(reader: Reader, tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "a", 1, StudyInstanceUID="1.2.3", **WHO)
    changed(next((tmp_path / "in" / "a").iterdir()), PatientName="Roe^Richard")
    report = exported(reader, studies_of(tmp_path / "in"), shelf(tmp_path / "out"), "sr")
    assert (report.read, report.refused, report.failed) == (1, 1, 0)
    (path,) = (tmp_path / "out").rglob("export.json")
    said = json.loads(path.read_bytes())["error"]
    assert "disagree on PatientName" in said
    assert not any(name in said for name in ("Roe", *SECRETS))


def test_scans_of_a_scene_are_exported_by_the_files_that_they_were_loaded_from(reader: Reader, tmp_path: Path) -> None:
    write_dicom(tmp_path / "in", 1, StudyInstanceUID="1.2.3", FrameOfReferenceUID="1.2.4", **WHO)
    volume = read_series(tmp_path / "in")
    turned = replace(volume.anatomical(), source="vtkMRMLScalarVolumeNode1")
    loaded = GivenStudy("one", turned, files=tuple((tmp_path / "in").iterdir()))
    alone = GivenStudy("two", volume)
    report = exported(reader, [loaded, alone], shelf(tmp_path / "out"), "sr")
    assert (report.read, report.refused) == (2, 1)
    assert patients(tmp_path / "out") == {"one": WHO["PatientID"]}


def test_exports_go_to_any_store_too(reader: Reader, tmp_path: Path) -> None:
    studies, place = write_patients(tmp_path / "in", 1), shelf("memory://exports")
    assert exported(reader, studies, place, "sr") == Report(1, 1, 0, 0)
    content = place.get(f"{studies[0].id}/export/report-sr.dcm")
    assert content is not None
    assert content[128:132] == b"DICM"
    assert exported(reader, studies, place, "sr") == Report(1, 0, 1, 0)
