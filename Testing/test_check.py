"""The check says 'right' or what differs, and only the named command makes a new reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from MedVLMReaderLib import resources
from MedVLMReaderLib.check import differences
from MedVLMReaderLib.cli import main
from Testing.tiny_scan import write_tiny_scan


@pytest.fixture(scope="module")
def shipped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Resources folder with the tiny model as the built-in one, a sample study and its reference."""
    folder = tmp_path_factory.mktemp("shipped") / "Resources"
    shutil.copytree(tiny_model, folder / "models" / "built-in")
    write_tiny_scan(folder / "sample" / "sample.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "resources_folder", lambda: folder)
        patch.setattr("MedVLMReaderLib.check.resources_folder", lambda: folder)
        assert main(["check", "--regenerate"]) == 0
    return folder


@pytest.fixture
def folder(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for one test, which may change it."""
    copy = tmp_path / "Resources"
    shutil.copytree(shipped, copy)
    monkeypatch.setattr(resources, "resources_folder", lambda: copy)
    monkeypatch.setattr("MedVLMReaderLib.check.resources_folder", lambda: copy)
    return copy


@pytest.fixture(scope="module")
def figures(shipped: Path) -> str:
    return (shipped / "sample" / "reference.json").read_text()


def change(folder: Path, **fields: Any) -> Path:
    path = folder / "sample" / "reference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=1, ensure_ascii=False) + "\n")
    return path


def test_the_same_reading_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("right: built-in, revision ")


def test_another_text_is_shown_as_a_difference_and_the_reference_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = change(folder, text="Findings: The left lung is clear.", revision="0")
    before = path.read_bytes()
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert "-Findings: The left lung is clear." in said
    assert "+Findings: The right lung is clear. A stone" in said
    assert "instead of '0'" in said
    assert main(["check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["right"] is False
    assert path.read_bytes() == before


def test_regenerating_shows_what_changed_and_then_all_is_right(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, question="What?")
    assert main(["check", "--regenerate"]) == 0
    said = capsys.readouterr().out
    assert '- "question": "What?"' in said
    assert '+ "question": "Describe the findings."' in said
    assert main(["check"]) == 0


def test_a_missing_sample_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sample" / "sample.nii.gz").unlink()
    assert main(["check"]) == 1
    assert "sample.nii.gz' should have come with MedVLM Reader" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"text": ""}'])
def test_a_damaged_reference_is_named(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sample" / "reference.json").write_text(content)
    assert main(["check"]) == 1
    assert "reference.json'" in capsys.readouterr().err


def test_rounding_is_no_difference_and_more_is(figures: str) -> None:
    expected, found = json.loads(figures), json.loads(figures)
    found["tokens"]["some"][3] += 0.005 * expected["tokens"]["deviation"]
    assert differences(expected, found) == []
    found["tokens"]["some"][3] += 0.1 * expected["tokens"]["deviation"]
    assert len(differences(expected, found)) == 1


def test_a_peak_may_move_by_a_cell_and_no_further(figures: str) -> None:
    expected, found = json.loads(figures), json.loads(figures)
    place = expected["sentences"][1]["peak_ras_mm"]
    found["sentences"][1]["peak_ras_mm"] = [place[0] + 15, place[1], place[2] + 15]
    assert differences(expected, found) == []
    found["sentences"][1]["peak_ras_mm"] = [place[0] + 150, place[1], place[2] + 150]
    assert differences(expected, found) == [
        f"sentence 2: attention peaks at {found['sentences'][1]['peak_ras_mm']} mm instead of {place} mm"
    ]
    found["sentences"][1]["peak_ras_mm"] = None
    assert len(differences(expected, found)) == 1
