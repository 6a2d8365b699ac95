"""`medvlmreader export`: files where they should be, refusals that say why, and no name in anything but DICOM."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pydicom
import pytest

from MedVLMReaderLib.cli import main
from MedVLMReaderLib.files import read
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.report import report_of
from Testing.made_readings import SECRETS, reading_of, write_scan
from Testing.tiny_scan import write_tiny_scan


@pytest.fixture
def kept(tmp_path):
    """The folder of a reading; its scan is beside it."""
    reading_of(write_scan(tmp_path / "scan")).save(tmp_path / "reading")
    return tmp_path / "reading"


def run(*words: object) -> int:
    return main(["export", *(str(word) for word in words)])


def test_every_kind_is_written_and_only_dicom_names_the_patient(kept, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    kinds = ["sr", "dicom-pdf", "sc", "pmap", "seg", "text", "markdown", "pdf", "fhir", "json"]
    assert run(kept, "--to", *kinds, "--source", tmp_path / "scan", "--sentence", 2) == 0
    said = "".join(capfd.readouterr())
    names = {path.name for path in (kept / "export").iterdir()}
    assert {"report-sr.dcm", "report-pdf.dcm", "key-image-01.dcm", "attention-map.dcm", "attention-region.dcm",
            "report.txt", "report.md", "report.pdf", "report-fhir.json", "report.json"} <= names  # fmt: skip
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "scan" not in path.parts]
    for path in written:
        if path.suffix != ".dcm":
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path.name
    assert not any(secret in said + " ".join(map(str, written)) for secret in SECRETS)
    assert not list((tmp_path / "temporary").iterdir())


def test_kinds_may_be_joined_by_commas_and_an_unknown_one_is_told(kept, capsys):
    assert run(kept, "--to", "text,json", "markdown") == 0
    assert {path.name for path in (kept / "export").iterdir()} == {"report.txt", "report.json", "report.md"}
    with pytest.raises(SystemExit):
        run(kept, "--to", "text,song")
    assert "'song' is none of sr, dicom-pdf" in capsys.readouterr().err


def test_of_several_series_with_the_voxels_that_were_read_one_can_be_named(tmp_path, capsys):
    volume = write_scan(tmp_path / "scan", SeriesNumber=3)
    write_scan(tmp_path / "scan" / "copy", SeriesNumber=4, PatientID="MRN-2")
    reading = reading_of(volume)
    older = {name: value for name, value in reading.preparation.items() if name != "sources"}
    replace(reading, preparation=older).save(tmp_path / "reading")
    words = [tmp_path / "reading", "--to", "sr", "--source", tmp_path / "scan"]
    assert run(*words) == 1
    assert "2 series there have the voxels that were read. Name one of them with --series" in capsys.readouterr().err
    assert run(*words, "--series", 4) == 0
    assert pydicom.dcmread(tmp_path / "reading" / "export" / "report-sr.dcm").PatientID == "MRN-2"
    assert run(*words, "--series", 9) == 1
    assert "No series in" in capsys.readouterr().err


def test_findings_say_whether_the_image_supports_them(tiny_model, tmp_path, capsys):
    write_tiny_scan(tmp_path / "scan.nii.gz")
    words = [tmp_path / "scan.nii.gz", "--model", tiny_model, "--out", tmp_path / "reading", "--longest", 6]
    assert main(["read", *(str(word) for word in words)]) == 0
    told = ["--to", "json", "--source", tmp_path / "scan.nii.gz", "--verify", "--model", tiny_model]
    assert run(tmp_path / "reading", *told) == 0
    report = json.loads((tmp_path / "reading" / "export" / "report.json").read_text())
    reader, reading = load(tiny_model), Reading.load(tmp_path / "reading")
    volume = read(tmp_path / "scan.nii.gz")
    said = reader.verify(volume, reader.see(volume), reading, 0).said
    expected = {"supported": True, "not supported": False, "undecided": None}[said]
    assert report["listed"][0]["supported"] is expected
    assert len(report["listed"]) == len(reading.sentences)


def test_a_reading_without_heatmaps_cannot_be_verified(kept, tiny_model, tmp_path, capsys):
    reading = replace(Reading.load(kept), traces=())
    reading.save(kept)
    told = ["--to", "text", "--source", tmp_path / "scan", "--verify", "--model", tiny_model]
    assert run(kept, *told) == 1
    assert "made without heatmaps" in capsys.readouterr().err


def test_the_kept_edits_are_what_is_exported(kept):
    report_of(Reading.load(kept)).edited("Impression", "By hand.").save(kept)
    assert run(kept, "--to", "text", "fhir") == 0
    assert "By hand." in (kept / "export" / "report.txt").read_text()
    assert json.loads((kept / "export" / "report-fhir.json").read_text())["conclusion"].endswith("By hand.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "sr"], "Name the DICOM series"), (["--to", "text", "--send", "x:1"], "Only DICOM can be sent"),
        (["--to", "sr", "--send", "here"], "is no archive"), (["--to", "text", "--sentence", "99"], "No sentence 99"),
        (["--to", "text", "--source", "nowhere"], "does not exist"), (["--to", "fhir", "--subject", "x"], "Patient/17"),
        (["--to", "text", "--list-findings"], "must see the scan"),
        (["--to", "text", "--verify"], "must see the scan"),
    ],
)  # fmt: skip
def test_a_refusal_says_why_and_writes_nothing(kept, capsys, words, message):
    assert run(kept, *words) == 1
    assert message in capsys.readouterr().err
    assert not (kept / "export").exists()


def test_a_target_that_may_only_be_read_is_told(kept, tmp_path, capsys):
    out = tmp_path / "locked"
    out.mkdir()
    out.chmod(0o500)
    if os.access(out, os.W_OK):
        out.rmdir()
        out.write_text("a file is in the way")  # root may write anywhere
    assert run(kept, "--to", "text", "--out", out) == 1
    assert "--out" in capsys.readouterr().err
