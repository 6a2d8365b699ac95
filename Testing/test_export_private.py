"""Whatever an export writes in passing, to whatever temporary file, names nobody; and nothing of it stays."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from MedVLMReaderLib.batch import Desk, Settings, here, read_all
from MedVLMReaderLib.batch.shelf import shelf
from MedVLMReaderLib.batch.studies import studies_of
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.reader import Options, load
from Testing.batch_scans import write_dicom
from Testing.made_readings import SECRETS, WHO, reading_of, write_scan

WATCHED: list[Watch] = []
KINDS = "sr,dicom-pdf,sc,pmap,seg,text,markdown,pdf,fhir,json"


class Watch:
    """What was in each file that was written, as it was before it was removed, renamed or left."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.written: set[str] = set()
        self.last: dict[str, bytes] = {}

    def told(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            flags = arguments[2] or 0
            assert not flags & getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY, "a file without a name cannot be watched"
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.written.add(os.path.abspath(arguments[0]))
        elif event in ("os.remove", "os.rename"):
            self.look(os.path.abspath(arguments[0]))
        elif event == "shutil.rmtree":
            for root, _, names in os.walk(arguments[0]):
                for name in names:
                    self.look(os.path.join(root, name))

    def look(self, path: str) -> None:
        """Keep what a file holds now."""
        self.written.discard(path)
        if os.path.isfile(path) and self.source not in Path(path).parents:
            handle = os.open(path, os.O_RDONLY)
            try:
                self.last[path] = os.read(handle, 1 << 26)
            finally:
                os.close(handle)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in WATCHED:
        watch.told(event, arguments)


sys.addaudithook(_hook)  # it stays until the process ends; without a watch it does nothing


@contextmanager
def watched(source: Path) -> Iterator[Watch]:
    """All files that this process writes meanwhile; those of the scan are left out."""
    watch = Watch(source)
    WATCHED.append(watch)
    try:
        yield watch
    finally:
        WATCHED.remove(watch)
        for path in [*watch.written]:
            watch.look(path)


def named(contents: dict[str, bytes]) -> list[tuple[str, str]]:
    """Every file, and who is named in it or in its name."""
    return [
        (path, secret) for path, content in contents.items() for secret in SECRETS
        if secret.encode() in content or secret in path
    ]  # fmt: skip


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_the_watch_sees_a_name_in_a_file_that_is_gone_again(tmp_path: Path) -> None:
    with watched(tmp_path / "scan") as watch:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "note").write_text(f"of {SECRETS[0]}")
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(f"of {SECRETS[1]}")
            file.flush()
    assert sorted(secret for _, secret in named(watch.last)) == sorted(SECRETS[:2])


def test_an_export_leaves_no_name_in_any_temporary_file(tmp_path: Path, temporary: Path) -> None:
    reading_of(write_scan(tmp_path / "scan")).save(tmp_path / "reading")
    words = ["export", tmp_path / "reading", "--to", KINDS, "--source", tmp_path / "scan", "--out", tmp_path / "out"]
    with watched(tmp_path / "scan") as watch:
        assert main([str(word) for word in words]) == 0
    objects = set((tmp_path / "out").glob("*.dcm"))
    assert len(objects) == 5
    told = {Path(path).with_suffix("") for path, _ in named(watch.last)}
    parts = {path for path in told if path.parent == tmp_path / "out"}  # the objects themselves, before their renaming
    assert told == parts
    assert len(parts) <= len(objects)
    assert not list(temporary.rglob("*"))


def test_batch_leaves_no_name_in_any_temporary_file(tiny_model: Path, tmp_path: Path, temporary: Path) -> None:
    write_dicom(tmp_path / "scan", StudyInstanceUID="1.2.3", FrameOfReferenceUID="1.2.4", **WHO)
    reader, place = load(tiny_model), shelf(tmp_path / "out")
    settings = Settings("m", "r", ("Any nodule?",), Options(longest=4), pictures=True, to=("sr", "pdf", "fhir"))
    with watched(tmp_path / "scan") as watch:
        report = read_all(here(Desk(reader), place, settings), studies_of(tmp_path / "scan"), place, settings)
    assert (report.read, report.refused) == (1, 0)
    told = {Path(path).parent for path, _ in named(watch.last)}
    assert told == {next((tmp_path / "out").rglob("report-sr.dcm")).parent}
    assert not list(temporary.rglob("*"))
