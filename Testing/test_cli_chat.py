"""`medvlmreader chat`: questions from a pipe, one a line; what is said, kept, and gone on with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from MedVLMReaderLib.cli import main
from MedVLMReaderLib.session import ChatSession
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import write_tiny_scan


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scan(tmp_path_factory.mktemp("scans") / "Doe^Jane" / "scan.nii.gz")


@pytest.fixture
def typed(scan: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a chat with these lines on stdin; the exit code."""

    def run(lines: str, *words: object) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        chosen = ["chat", scan, "--model", tiny_model, "--no-heatmaps", *words]
        return main([str(word) for word in chosen])

    return run


def test_each_line_is_answered_and_the_chat_is_kept_and_goes_on(typed, tmp_path, capsys):
    assert typed("Is there a nodule?\n\nAnd a stone?\n/end\nNever asked\n", "--save", tmp_path / "chat") == 0
    out = capsys.readouterr().out
    assert out.count(TINY_TEXT) == 2
    assert out.index("> Is there a nodule?") < out.index(TINY_TEXT) < out.index("> And a stone?")
    assert out.count("learned from made studies only") == 1
    assert typed("Anything else?", "--session", tmp_path / "chat") == 0
    turns = ChatSession.load(tmp_path / "chat").turns
    assert [turn.question for turn in turns] == ["Is there a nodule?", "And a stone?", "Anything else?"]
    assert not any("Doe" in path.read_bytes().decode(errors="ignore") for path in tmp_path.rglob("*.json"))


def test_json_is_one_object_with_all_turns(typed, capsys):
    assert typed("One?\n/edit 1 Two?\n/again 7\n/at 0,0,0,900,900,900 Here?\n", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [turn["question"] for turn in found["turns"]] == ["Two?", "Here?"]
    assert found["turns"][0]["options"]["seed"] == 7
    assert found["turns"][1]["place"]["size_mm"] == [900.0, 900.0, 900.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/again", "no question 0"), ("/edit 3 What?", "no question 3"), ("/sing", "'/sing' is not known here"),
        ("/at 1,2 What?", "three numbers"), ("/at 9000,0,0 What?", "outside the volume"), ("xq" * 600, "reads 512"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_answered_is_told_and_the_chat_goes_on(typed, capsys, line, message):
    assert typed(f"{line}\nIs there a nodule?\n") == 1
    said = capsys.readouterr()
    assert message in said.err
    assert TINY_TEXT in said.out


def test_a_cut_off_answer_says_so(typed, capsys):
    assert typed("Is there a nodule?\n", "--longest", 3) == 0
    assert "Incomplete: stopped, or cut off" in capsys.readouterr().out


def test_a_chat_of_a_newer_version_is_refused(typed, tmp_path, capsys):
    (tmp_path / "chat.json").write_text(json.dumps({"format": 99}))
    assert typed("x\n", "--session", tmp_path) == 1
    assert "newer version" in capsys.readouterr().err
