"""Many studies: each kept whole or not at all, failures said and passed over, gone on with after any interruption."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch import Desk, Progress, Report, Settings, here, read_all
from MedVLMReaderLib.batch.shelf import FolderShelf, shelf
from MedVLMReaderLib.batch.studies import AnyStudy, given, of_csv, studies_of
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.volume import Volume
from Testing.batch_scans import DAMAGES, write_dicom, write_studies
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import tiny_scan, write_tiny_scan

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("--no-heatmaps", "--longest", 3)
QUICK = Options(heatmaps=False, longest=4)


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    import torch

    torch.set_num_threads(1)
    return load(tiny_model)


def read(
    reader: Reader, studies: list[AnyStudy], out: Path, options: Options = QUICK, ahead: bool = True, **how: Any
) -> Report:
    settings = Settings(reader.model.name, reader.model.revision, ("Is there a nodule?",), options)
    place = shelf(out)
    return read_all(here(Desk(reader), place, settings, ahead), studies, place, settings, **how)


def scans(folder: Path, count: int) -> list[AnyStudy]:
    return studies_of(write_studies(folder, count, 0))


def run(*words: object) -> int:
    return main([str(word) for word in words])


def command(model: object, place: Path) -> tuple[object, ...]:
    """The words that read `place`/in into `place`/out."""
    return "batch", place / "in", "--model", model, "--out", place / "out"


def kept(folder: Path) -> dict[str, bytes]:
    """All files but those that say when and how fast, and the lock."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name not in ("made.json", ".lock")
    }


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "summary.csv").read_text("utf-8-sig"))))


# What is kept


def test_a_folder_of_studies_becomes_readings_a_table_and_a_page(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    write_studies(tmp_path / "in", 2, 0)
    write_dicom(tmp_path / "in" / "dicom")
    out = tmp_path / "out"
    assert run(*command(tiny_model, tmp_path), "--pictures", "--threads", 1) == 0
    assert "3 studies read, 0 failed" in capsys.readouterr().out
    rows = table(out)
    assert [row["state"] for row in rows] == ["read"] * 3
    assert {row["answer"] for row in rows} == {TINY_TEXT}
    for row in rows:
        assert Reading.load(out / row["study"]).text == TINY_TEXT
        assert (out / row["study"] / "report.html").exists()
    assert parquet.read_table(out / "summary.parquet").column("answer").to_pylist() == [TINY_TEXT] * 3
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_every_question_of_a_file_is_asked_of_every_study(tiny_model: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "in", 2, 0)
    (tmp_path / "questions.txt").write_text("# two\nIs there a nodule?\n\nIs there a stone?\n")
    words = (*command(tiny_model, tmp_path), *SHORT)
    assert run(*words, "--questions", tmp_path / "questions.txt") == 0
    rows = table(tmp_path / "out")
    assert [(row["number"], row["question"]) for row in rows] == [
        ("1", "Is there a nodule?"), ("2", "Is there a stone?"),
    ] * 2  # fmt: skip
    assert Reading.load(tmp_path / "out" / rows[0]["study"] / "02").question == "Is there a stone?"


def test_readings_are_the_same_bytes_with_and_without_working_ahead_and_whatever_was_read_before(
    reader: Reader, tmp_path: Path
) -> None:
    studies = scans(tmp_path / "in", 4)
    read(reader, studies, tmp_path / "one", Options())
    read(reader, studies[::-1], tmp_path / "two", Options(), ahead=False)
    assert kept(tmp_path / "one") == kept(tmp_path / "two")


def test_when_and_how_fast_is_kept_apart_and_found_again(reader: Reader, tmp_path: Path) -> None:
    (study,) = scans(tmp_path / "in", 1)
    read(reader, [study], tmp_path / "out")
    folder = tmp_path / "out" / study.id
    assert json.loads((folder / "reading.json").read_bytes())["created"] == ""
    reading = Reading.load(folder)
    assert reading.created.startswith("20")
    assert {"scan", "encoder", "answer"} <= set(reading.timings)
    host = json.loads((folder / "made.json").read_bytes())["host"]
    assert host["packages"]["torch"]


def test_volumes_that_are_handed_in_are_read_without_a_thread(reader: Reader, tmp_path: Path) -> None:
    import threading

    names: list[str] = []
    volumes = [tiny_scan(1), tiny_scan(2), tiny_scan(1)]
    report = read(
        reader, given(volumes), tmp_path, ahead=False, progress=lambda _: names.append(threading.current_thread().name)
    )
    assert report == Report(3, 3, 0, 0)
    assert set(names) == {threading.current_thread().name}
    assert [row["same_as"] for row in table(tmp_path)].count("") == 2


def test_progress_says_how_long_the_rest_will_take(reader: Reader, tmp_path: Path) -> None:
    seen: list[Progress] = []
    read(reader, scans(tmp_path / "in", 3), tmp_path / "out", progress=seen.append)
    assert [(now.total, now.done) for now in seen] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert seen[0].left_s is None
    assert seen[1].left_s is not None
    assert seen[1].left_s > 0
    assert seen[3].left_s == 0


# Going on


def test_what_is_there_is_skipped_and_what_is_incomplete_is_read_again(reader: Reader, tmp_path: Path) -> None:
    studies = scans(tmp_path / "in", 3)
    read(reader, studies, tmp_path / "out")
    whole = kept(tmp_path / "out")
    (tmp_path / "out" / studies[1].id / "reading.json").unlink()
    assert read(reader, studies, tmp_path / "out") == Report(3, 1, 2, 0)
    assert kept(tmp_path / "out") == whole


def test_a_stop_ends_between_words_leaves_no_half_study_and_is_gone_on_with(reader: Reader, tmp_path: Path) -> None:
    studies, done = scans(tmp_path / "in", 5), []
    report = read(reader, studies, tmp_path / "out", progress=done.append, stopped=lambda: len(done) > 2)
    assert report.stopped
    assert 2 <= report.read < 5
    assert not list((tmp_path / "out").glob(".part-*"))
    assert len(table(tmp_path / "out")) == report.read
    assert read(reader, studies, tmp_path / "out").missing == 0
    read(reader, studies, tmp_path / "whole")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    from MedVLMReaderLib.commands import batch as commands

    write_studies(tmp_path / "in", 6, 0)
    words = (*command(tiny_model, tmp_path), *SHORT)
    shown = commands._left
    with monkeypatch.context() as patch:
        asked: list[float] = []

        def interrupting(left: float | None) -> str:
            if left and not asked:
                asked.append(left)
                signal.raise_signal(signal.SIGINT)
            return shown(left)

        patch.setattr(commands, "_left", interrupting)
        assert run(*words) == 130
    assert run(*words) == 0
    assert "still to be read: start the same command again" in capsys.readouterr().out
    assert len(table(tmp_path / "out")) == 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_at_ten_random_moments_the_readings_are_those_of_an_undisturbed_run(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_studies(tmp_path / "in", 12, 10)
    killer = [sys.executable, "-m", "Testing.kill_batch", str(tmp_path / "in"), str(tiny_model)]
    for out, kills in (("killed", 10), ("whole", 0)):
        done = subprocess.run([*killer, str(tmp_path / out), str(kills)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert kills == 0 or int(done.stdout) >= 5
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


def test_studies_that_were_in_work_when_the_program_died_come_last(reader: Reader, tmp_path: Path) -> None:
    studies, order = scans(tmp_path / "in", 3), []
    FolderShelf(tmp_path / "out").begin(studies[0].id)
    FolderShelf(tmp_path / "out").begin("gone")
    read(reader, studies, tmp_path / "out", ahead=False, progress=lambda now: order.append(now.last))
    assert [one.study for one in order[1:]] == [studies[1].id, studies[2].id, studies[0].id]
    assert not list((tmp_path / "out").glob(".part-*"))


def test_other_questions_or_another_model_want_another_folder(reader: Reader, tmp_path: Path) -> None:
    studies = scans(tmp_path / "in", 1)
    read(reader, studies, tmp_path / "out")
    with pytest.raises(ReaderError, match=r"asked for otherwise \(options: .*Choose another --out"):
        read(reader, studies, tmp_path / "out", Options(heatmaps=False, longest=5))


def test_two_runs_never_write_into_one_folder(reader: Reader, tmp_path: Path) -> None:
    with shelf(tmp_path / "out").alone(), pytest.raises(ReaderError, match="Another run is writing into"):
        read(reader, scans(tmp_path / "in", 1), tmp_path / "out")


def test_readings_can_go_to_any_store_that_fsspec_knows(reader: Reader, tmp_path: Path) -> None:
    studies = scans(tmp_path / "in", 2)
    read(reader, studies, tmp_path / "out")
    settings = Settings(reader.model.name, reader.model.revision, ("Is there a nodule?",), QUICK)
    place = shelf("memory://readings")
    for expected in (Report(2, 2, 0, 0), Report(2, 0, 2, 0)):
        assert read_all(here(Desk(reader), place, settings), studies, place, settings) == expected
    here_too = kept(tmp_path / "out")
    assert {name: place.get(name) for name in here_too} == here_too


# Bad input


def test_ten_kinds_of_damage_cost_nothing_but_themselves_and_say_what_is_wrong(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_studies(tmp_path / "in", 5, 10)
    out = tmp_path / "out"
    assert run(*command(tiny_model, tmp_path), *SHORT) == 1
    errors = {path.parent.name: json.loads(path.read_bytes())["error"] for path in out.glob("*/error.json")}
    assert len(errors) == 10
    assert len(list(out.glob("*/reading.json"))) == 5
    states = [row["state"] for row in table(out)]
    assert (states.count("read"), states.count("failed")) == (5, 10)
    said = " | ".join(sorted(errors.values()))
    for words_ in ("cut short", "is empty", "is not NIfTI", "one grey value", "2 volumes in a row", "1 slice",
                   "cannot be inverted", "not numbers", "GB of memory"):  # fmt: skip
        assert words_ in said, said
    assert not [name for name in DAMAGES if name in said]


@pytest.mark.slow
def test_of_two_hundred_studies_twenty_are_damaged_and_nothing_else_is_lost(tiny_model: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "in", 180, 20)
    assert run(*command(tiny_model, tmp_path), *SHORT) == 1
    out = tmp_path / "out"
    assert len(list(out.glob("*/reading.json"))) == 180
    errors = [json.loads(path.read_bytes())["error"] for path in out.glob("*/error.json")]
    assert len(errors) == 20
    assert all(len(said) > 20 for said in errors)
    assert len(table(out)) == 200
    assert not list(out.glob(".part-*"))


def test_a_model_that_fails_on_one_study_reads_the_others(tiny_model: Path, tmp_path: Path) -> None:
    class Fails(Reader):
        def see(self, volumes: Any, view: Any = None, stopped: Callable[[], bool] = lambda: False) -> Any:
            if volumes.values.max() > 3000:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return super().see(volumes, view, stopped)

        def ask(self, seen: Any, question: str, **how: Any) -> Iterator[str | Reading]:
            if seen.key == self.refused:
                raise MemoryError
            return super().ask(seen, question, **how)

    whole = load(tiny_model)
    reader = Fails(whole.model, whole.checkpoint)
    bright = tiny_scan(3)
    volumes = [tiny_scan(1), Volume(bright.values + 3000, bright.grid, "CT"), tiny_scan(2), tiny_scan(4)]
    reader.refused = whole.see(volumes[2]).key
    assert read(reader, given(volumes), tmp_path) == Report(4, 2, 0, 2)
    errors = sorted(json.loads(path.read_bytes())["error"] for path in tmp_path.glob("*/error.json"))
    assert errors[0].startswith("Memory ran out while answering.")
    assert errors[1] == "RuntimeError while looking at the scan: mat1 and mat2 shapes cannot be multiplied"


def test_a_failed_study_is_tried_again_and_its_error_goes_when_it_can_be_read(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert read(reader, studies_of(tmp_path / "in"), tmp_path / "out").failed == 1
    write_tiny_scan(path)
    assert read(reader, studies_of(tmp_path / "in"), tmp_path / "out").read == 1
    assert not list((tmp_path / "out").glob("*/error.json"))
    assert table(tmp_path / "out")[0]["state"] == "read"


def test_the_same_scan_under_two_names_is_read_twice_and_said_to_be_the_same(reader: Reader, tmp_path: Path) -> None:
    write_tiny_scan(tmp_path / "in" / "a.nii.gz", 5)
    write_tiny_scan(tmp_path / "in" / "b.nii.gz", 5)
    read(reader, studies_of(tmp_path / "in"), tmp_path / "out")
    first, second = table(tmp_path / "out")
    assert (first["same_as"], second["same_as"]) == ("", first["study"])


def test_two_patients_in_one_folder_are_two_studies_even_under_one_uid(reader: Reader, tmp_path: Path) -> None:
    uid = write_dicom(tmp_path / "in", 1, PatientID="1", prefix="a")
    write_dicom(tmp_path / "in", 2, PatientID="2", prefix="b", uid=uid)
    studies = studies_of(tmp_path / "in")
    assert read(reader, studies, tmp_path / "out") == Report(2, 2, 0, 0)
    assert {row["slices"] for row in table(tmp_path / "out")} == {"9"}


def test_a_full_disk_ends_the_run_with_words_and_keeps_what_was_finished(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies, put = scans(tmp_path / "in", 4), FolderShelf.put

    def fills(self: FolderShelf, study: str, files: dict[str, bytes]) -> None:
        if len(list(self.folder.glob("*/study.json"))) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, study, files)

    with monkeypatch.context() as patch:
        patch.setattr(FolderShelf, "put", fills)
        with pytest.raises(ReaderError, match=r"No space left on device.*make room"):
            read(reader, studies, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*/study.json"))) == 2
    assert read(reader, studies, tmp_path / "out") == Report(4, 2, 2, 0)


def test_a_folder_that_cannot_be_made_is_said(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReaderError, match=r"cannot be written .*Choose another place with --out"):
        read(reader, given([tiny_scan()]), tmp_path / "file" / "out")


def test_a_clock_that_goes_backwards_changes_nothing(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies, seen, clock = scans(tmp_path / "in", 3), [], [2e9]

    def backwards() -> float:
        clock[0] -= 3600
        return clock[0]

    monkeypatch.setattr(time, "time", backwards)
    assert read(reader, studies, tmp_path / "out", progress=seen.append).read == 3
    assert all(now.left_s is None or now.left_s >= 0 for now in seen)
    os.utime(tmp_path / "out" / studies[0].id / "study.json", (0, 0))
    assert read(reader, studies, tmp_path / "out").there == 3


def test_names_of_patients_in_paths_are_in_no_file_and_no_folder(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_scan(tmp_path / "in" / "Doe^Jane" / "Doe_Jane_1950.nii.gz")
    (tmp_path / "in" / "Doe^Jane" / "Roe_Richard.nii").write_bytes(b"no scan" * 99)
    write_dicom(tmp_path / "in" / "Miller^Max", 1, PatientName="Miller^Max", PatientID="4711")
    (tmp_path / "in" / "Poe^Ed").mkdir()
    (tmp_path / "in" / "Poe^Ed" / "Poe.dcm").write_bytes(b"")
    words = (*command(tiny_model, tmp_path), "--longest", 3, "--pictures")
    assert run(*words) == 1
    said = capsys.readouterr()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    everything += " ".join(map(str, (tmp_path / "out").rglob("*"))).encode() + said.err.encode()
    for name in (b"Doe", b"Jane", b"Roe", b"Miller", b"Poe", b"4711", b"1950"):
        assert name not in everything
    assert run(*words, "--names", tmp_path / "names.csv") == 1
    assert "Doe_Jane_1950.nii.gz" in (tmp_path / "names.csv").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,study\na.nii,one\nb.nii,one\n", "Rows 2 and 3 .* have the id 'one'"),
        ("path\na.nii\n\na.nii\n", "Rows 2 and 4 .* have the same scan"),
        ("path,study\na.nii,../up\n", "The id in row 2 .* cannot name a folder"),
        ("scan\na.nii\n", "no column 'path'"),
        ("path,study\n,one\n", "Row 2 .* has no path"),
        ("", "no column 'path'"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_before_anything_is_read(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "studies.csv").write_text(text)
    with pytest.raises(ReaderError, match=said):
        of_csv(tmp_path / "studies.csv")


def test_a_csv_names_scans_from_its_own_folder_with_ids_of_its_own(reader: Reader, tmp_path: Path) -> None:
    write_tiny_scan(tmp_path / "scans" / "a.nii.gz")
    write_dicom(tmp_path / "scans" / "dicom", 2)
    (tmp_path / "studies.csv").write_bytes(
        "\ufeffStudy;Path\ncase-1;scans/a.nii.gz\ncase-2;scans/dicom\nx;gone.nii\n".encode()
    )
    studies = studies_of(tmp_path / "studies.csv")
    assert read(reader, studies, tmp_path / "out") == Report(3, 2, 0, 1)
    assert [row["study"] for row in table(tmp_path / "out")] == ["case-1", "case-2", "x"]


def test_a_questions_file_without_a_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_studies(tmp_path / "in", 1, 0)
    (tmp_path / "questions.txt").write_text("# none\n")
    assert run(*command("built-in", tmp_path), "--questions", tmp_path / "questions.txt") == 1
    assert "holds no question" in capsys.readouterr().err


def test_what_would_be_read_can_be_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_studies(tmp_path / "in", 2, 0)
    assert run("batch", tmp_path / "in", "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["studies"]
    assert [Path(one["path"]).name for one in listed] == ["scan0.nii.gz", "scan1.nii.gz"]
    assert run("batch", tmp_path / "in") == 1
    assert "--out" in capsys.readouterr().err
