"""Scans that cannot be read, models that do not fit, a disk that is full, Ctrl-C: clear words, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import pictures, reading
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.commands import terminal
from MedVLMReaderLib.reading import Reading
from Testing.made_scans import PATIENT, oblique_grid, tissue, write_nifti, write_series
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import write_tiny_scan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scan(tmp_path_factory.mktemp("scans") / "scan.nii.gz")


def run(*words: object) -> int:
    return main([str(word) for word in words])


# Scans


def nothing(path: Path) -> None:
    pass


def text(path: Path) -> None:
    path.write_text("This is no scan.")


def no_files(path: Path) -> None:
    path.mkdir()


def cut_short(path: Path) -> None:
    content = write_tiny_scan(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_slice(path: Path) -> None:
    write_nifti(path, np.zeros((1, 5, 4), np.int16), np.eye(3, 4))


def several_volumes(path: Path) -> None:
    write_nifti(path, np.zeros((3, 4, 5, 6), np.int16), np.eye(3, 4))


def no_frame(path: Path) -> None:
    write_nifti(path, np.zeros((4, 5, 6), np.int16), np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "does not exist"), (text, "is not NIfTI"), (no_files, "holds no"), (cut_short, "cut short"),
        (one_slice, "slice"), (several_volumes, "4-D"), (no_frame, "inverted"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["read", "preview"])
def test_a_scan_that_cannot_be_read_is_named_and_nothing_is_left(
    command: str,
    make: Callable[[Path], None],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "scan.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    assert run(command, "scan.nii.gz", "--model", tiny_model) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("medvlmreader: ")
    assert "scan.nii.gz" in said.err
    assert message in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_series_in_a_folder_one_must_be_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = oblique_grid((3, 5, 6), (40.0, 30.0, 30.0))
    for number, prefix in ((3, "a"), (5, "b")):
        write_series(tmp_path / "disc", tissue(grid.shape), grid, prefix=prefix, SeriesNumber=number)
    preview = ("preview", tmp_path / "disc", "--model", tiny_model, "--out", tmp_path / "sheet.png")
    assert run(*preview) == 1
    said = capsys.readouterr().err
    assert "holds 2 series. Name one with --series" in said
    assert "\n  3: " in said
    assert PATIENT not in said
    assert run(*preview, "--series", "5") == 0


# Models


def test_a_model_that_lacks_a_tensor_is_refused_by_name(
    scan: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["bridge.to_decoder.weight"]
    save_file(tensors, broken / "model.safetensors")
    assert run("read", scan, "--model", broken, "--out", tmp_path / "out") == 1
    assert "lacks the tensor 'bridge.to_decoder.weight'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["read", "preview"])
def test_an_unknown_model_is_answered_with_the_known_ones(
    command: str, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, scan, "--model", "gpt", "--out", tmp_path / "out.png") == 1
    assert "No model 'gpt'. Known: built-in" in capsys.readouterr().err


def test_an_empty_question_is_asked_back(
    scan: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ask", scan, "  ", "--model", tiny_model, "--out", tmp_path / "out") == 1
    assert "The question is empty" in capsys.readouterr().err


# Disks


@pytest.mark.parametrize(
    "words", [["read", "SCAN"], ["ask", "SCAN", "Is there a nodule?"], ["phantom", "--seed", "3"]], ids=lambda w: w[0]
)
def test_a_folder_that_cannot_be_made_is_noticed_before_the_long_work(
    words: list[str],
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("MedVLMReaderLib.phantom.made_study", None)
    monkeypatch.setattr(terminal, "loaded_packages", None)
    out = tmp_path / "file" / "out"
    assert run(*(str(scan) if word == "SCAN" else word for word in words), "--out", out) == 1
    assert f"'{out}' cannot be written (Not a directory). Choose another place with --out." in capsys.readouterr().err


def full_disk(monkeypatch: pytest.MonkeyPatch, *folders: Path, pictures_only: bool = False) -> None:
    """No more room in the folders."""
    write = reading.write_whole

    def refused(contents: dict[Path, bytes]) -> None:
        if any(path.is_relative_to(folder) for path in contents for folder in folders):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(contents)

    for module in [pictures] if pictures_only else [reading, pictures]:
        monkeypatch.setattr(module, "write_whole", refused)


@pytest.fixture
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for temporary folders."""
    folder = tmp_path / "spare"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_a_full_disk_refuses_is_kept_in_a_temporary_folder(
    scan: Path,
    tiny_model: Path,
    tmp_path: Path,
    spare: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_disk(monkeypatch, tmp_path / "out")
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out", "--json") == 1
    said = capsys.readouterr()
    (kept,) = spare.iterdir()
    assert "No space left on device" in said.err
    assert f"kept in '{kept}'" in said.err
    assert json.loads(said.out)["folder"] == str(kept)
    assert Reading.load(kept).text == TINY_TEXT
    assert (kept / "sentence-03.png").exists()


def test_where_nothing_can_be_written_the_text_is_printed(
    scan: Path,
    tiny_model: Path,
    tmp_path: Path,
    spare: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_disk(monkeypatch, tmp_path)
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out", "--json") == 1
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert content["text"] == TINY_TEXT
    assert content["folder"] is None
    assert "The text was printed" in said.err


def test_a_disk_that_is_full_after_the_text_leaves_the_reading_where_it_is(
    scan: Path,
    tiny_model: Path,
    tmp_path: Path,
    spare: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_disk(monkeypatch, tmp_path / "out", pictures_only=True)
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out") == 1
    assert "The reading is there" in capsys.readouterr().err
    assert Reading.load(tmp_path / "out").text == TINY_TEXT
    assert list(spare.iterdir()) == []


def test_a_volume_that_the_disk_cut_short_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from MedVLMReaderLib.commands.keeping import save_whole
    from MedVLMReaderLib.volume import Volume
    from Testing.tiny_scan import tiny_scan

    save = Volume.save

    def short(volume: Volume, path: Path) -> None:
        save(volume, path)
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(Volume, "save", short)
    with pytest.raises(OSError, match=r".+"):
        save_whole(tiny_scan(), tmp_path / "heat.nii")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_costs_no_reading(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out", "--no-heatmaps") == 0
        monkeypatch.undo()
    assert Reading.load(tmp_path / "out").text == TINY_TEXT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_costs_no_reading(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.Unprinted, "reason", "")
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out", "--no-heatmaps") == 1
    assert "not all could be printed (No space left on device)" in capsys.readouterr().err
    assert Reading.load(tmp_path / "out").text == TINY_TEXT


# Ctrl-C


def interrupted_at(word: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, so many times, as soon as a word is written."""
    from MedVLMReaderLib.reader import Answer

    take = Answer.take

    def taken(answer: Answer, token: int) -> str:
        new = take(answer, token)
        for _ in range(times if word in new else 0):
            signal.raise_signal(signal.SIGINT)
        return new

    monkeypatch.setattr(Answer, "take", taken)


def test_what_was_written_before_an_interrupt_is_kept_and_marked_incomplete(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupted_at("clear", 1, monkeypatch)
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path) == 130
    kept = Reading.load(tmp_path)
    assert kept.text == "Findings: The right lung is clear."
    assert not kept.complete
    assert "Incomplete" in (tmp_path / "report.txt").read_text()
    assert "Incomplete" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_at_once(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupted_at("clear", 2, monkeypatch)
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


SLOW_WORDS = """
import sys, time
from MedVLMReaderLib import reader
take = reader.Answer.take
def slowly(answer, token):
    time.sleep(0.2)
    return take(answer, token)
reader.Answer.take = slowly
from MedVLMReaderLib.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_keeps_the_words_so_far(scan: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["read", str(scan), "--model", str(tiny_model), "--out", str(tmp_path)]
    program = subprocess.Popen([sys.executable, "-c", SLOW_WORDS, *words], cwd=ROOT, stdout=subprocess.PIPE)
    assert program.stdout is not None
    said = b""
    while b"right" not in said and (new := program.stdout.read1(100)):
        said += new
    program.send_signal(signal.SIGINT)
    program.stdout.read()
    assert program.wait(60) == 130
    kept = Reading.load(tmp_path)
    assert kept.text.startswith("Findings: The right")
    assert not kept.complete
