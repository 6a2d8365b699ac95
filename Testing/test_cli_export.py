"""`medvlmreader export`: files where they should be, refusals that say why, and no name in anything but DICOM."""

from __future__ import annotations

import json
import os

import pytest

from MedVLMReaderLib.cli import main
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.report import report_of
from Testing.made_readings import SECRETS, reading_of, write_scan


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
