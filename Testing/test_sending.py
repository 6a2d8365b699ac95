"""Sending to a real Orthanc on loopback, both ways: right patient; what breaks off goes on, and nothing is twice."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")

from MedVLMReaderLib import ReaderError, dicom
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.export.cstore import CALLER, Target
from MedVLMReaderLib.export.sending import FILE, Sent, send, target_of
from MedVLMReaderLib.export.source import source_of
from MedVLMReaderLib.export.stow import WebTarget
from MedVLMReaderLib.export.writing import DICOM, Draft, export
from MedVLMReaderLib.report import report_of
from Testing.made_readings import SECRETS, WHO, reading_of, write_scan
from Testing.orthanc import PLUGIN, missing


@dataclass
class Orthanc:
    """A server in a folder; it keeps what it has from one start to the next."""

    folder: Path
    dicom_port: int
    web_port: int
    way: str
    """C-STORE or STOW-RS."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> Target | WebTarget:
        if self.way == "C-STORE":
            return Target("127.0.0.1", self.dicom_port, "ORTHANC")
        return WebTarget(f"http://127.0.0.1:{self.web_port}/dicom-web")

    def start(self) -> None:
        settings = {
            "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"),
            "DicomPort": self.dicom_port, "HttpPort": self.web_port, "DicomAet": "ORTHANC",
            "Plugins": [str(PLUGIN)] if self.way == "STOW-RS" else [], "DicomWeb": {"Root": "/dicom-web/"},
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "OverwriteInstances": False,
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        self.process = subprocess.Popen(
            [program(), str(self.folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self.asked("/system")
                return
            except OSError:
                time.sleep(0.1)
        pytest.skip("Orthanc did not start within 30 s")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def file(self, name: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/instances/{name}/file", timeout=10) as answer:
            return answer.read()


def program() -> str:
    found = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(found).exists():
        pytest.skip("Orthanc is missing (Debian's orthanc)")
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(params=["C-STORE", "STOW-RS"])
def orthanc(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Orthanc]:
    folder = tmp_path / "orthanc"
    folder.mkdir()
    if request.param == "STOW-RS" and missing():
        pytest.skip(missing())
    server = Orthanc(folder, free_port(), free_port(), request.param)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan and all that is exported of it."""
    folder = tmp_path_factory.mktemp("made")
    reading = reading_of(write_scan(folder / "scan"))
    export(Draft(report_of(reading), reading, source_of(reading, folder / "scan")), DICOM, folder / "out")
    return folder


@pytest.fixture
def objects(made: Path, tmp_path: Path) -> tuple[Path, ...]:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tuple(sorted((tmp_path / "out").iterdir()))


def test_everything_is_stored_and_fetched_on_the_right_patient_and_study(orthanc, objects, tmp_path):
    source = sorted((tmp_path / "scan").iterdir())
    (tmp_path / "scan-sent").mkdir()
    send(source, orthanc.target, tmp_path / "scan-sent")
    assert send(objects, orthanc.target, tmp_path / "out") == Sent(len(objects), 0)
    (patient,) = orthanc.asked("/patients?expand")
    assert patient["MainDicomTags"]["PatientID"] == WHO["PatientID"]
    assert len(patient["Studies"]) == 1
    names = orthanc.asked("/instances")
    assert len(names) == len(objects) + len(source)
    fetched = {}
    for name in names:
        (tmp_path / "got.dcm").write_bytes(orthanc.file(name))
        one = pydicom.dcmread(tmp_path / "got.dcm")
        fetched[str(one.SOPInstanceUID)] = one
    for path in objects:
        ours = pydicom.dcmread(path)
        theirs = fetched[str(ours.SOPInstanceUID)]
        assert {tag: str(theirs[tag].value) for tag in WHO} == WHO
        assert theirs == ours


def test_a_transfer_that_dies_goes_on_and_stores_nothing_twice(orthanc, objects, tmp_path):
    def die(done: int, total: int) -> None:
        if done == 2:
            orthanc.stop()

    with pytest.raises(ReaderError, match=rf"2 of {len(objects)} are there"):
        send(objects, orthanc.target, tmp_path / "out", die)
    with pytest.raises(ReaderError, match="cannot be reached"):
        send(objects, orthanc.target, tmp_path / "out")
    orthanc.start()
    assert send(objects, orthanc.target, tmp_path / "out") == Sent(len(objects) - 2, 2)
    assert send(objects, orthanc.target, tmp_path / "out") == Sent(0, len(objects))
    assert len(orthanc.asked("/instances")) == len(objects)
    assert not any(secret in (tmp_path / "out" / FILE).read_text() for secret in SECRETS)


def test_an_object_whose_answer_was_lost_is_asked_for_and_not_sent_again(orthanc, objects, tmp_path):
    send(objects[:1], orthanc.target, tmp_path / "out")
    book = json.loads((tmp_path / "out" / FILE).read_text())
    for known in book.values():
        for uid in known:
            known[uid] = "begun"
    (tmp_path / "out" / FILE).write_text(json.dumps(book))
    assert send(objects[:1], orthanc.target, tmp_path / "out") == Sent(0, 1)


def test_the_command_line_exports_and_sends(orthanc, tmp_path, capsys):
    volume = write_scan(tmp_path / "scan")
    reading_of(volume).save(tmp_path / "reading")
    words = ["export", tmp_path / "reading", "--to", "sr", "seg", "--source", tmp_path / "scan", "--json",
             "--send", str(orthanc.target)]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == {"now": 2, "before": 0}
    assert main([str(word) for word in words]) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == {"now": 0, "before": 2}
    assert len(orthanc.asked("/instances")) == 2


@pytest.mark.parametrize("orthanc", ["STOW-RS"], indirect=True)
def test_a_server_that_is_no_archive_is_told_and_says_no_name(orthanc, objects, tmp_path):
    with pytest.raises(ReaderError, match=r"answers 404") as error:
        send(objects, WebTarget(f"http://127.0.0.1:{orthanc.web_port}/nothing"), tmp_path / "out")
    assert not any(secret in str(error.value) for secret in SECRETS)


def test_a_damaged_journal_and_an_odd_target_are_told(tmp_path, objects):
    (tmp_path / "out" / FILE).write_text("[1")
    with pytest.raises(ReaderError, match="is damaged"):
        send(objects, Target("127.0.0.1", 1), tmp_path / "out")
    for text in ("here", "a@b", "x:99999", "ftp://x/y:1 2", ""):
        with pytest.raises(ReaderError, match="is no archive"):
            target_of(text)
    assert target_of(" https://pacs.example/dicom-web/ ") == WebTarget("https://pacs.example/dicom-web")
    with pytest.raises(ReaderError, match="cannot be reached"):
        send(objects, WebTarget("http://127.0.0.1:9/dicom-web"), tmp_path / "other")
    assert Target.of("PACS@[::1]:104") == Target("::1", 104, "PACS")
    assert Target.of("10.0.0.2:4242") == replace(Target("10.0.0.2", 4242))
    assert CALLER.isupper()
    assert dicom.is_dicom(objects[0])
