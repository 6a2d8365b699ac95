"""`evaluate report|vqa|retrieval|segmentation` from the command line, on made studies and on a table of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib.cases import made_cases
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid
from Testing.tiny_med3dvlm import write_tiny_pair


def figures(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_kept_answers_are_scored_without_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = made_cases([3, 4], questions=True)
    lines = [{"volume": c.volume, "question": c.asked, "answer": c.expected} for c in cases]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figures(capsys, "vqa", "--seeds", "3-4", "--answers", tmp_path / "answers.jsonl")
    assert found["closed"]["one_choice_only"]["all"]["value"] == 1
    assert found["open"]["bleu"]["value"] > 0.99


def test_a_tiny_model_answers_the_questions_of_a_table(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0))
    values = np.random.default_rng(1).integers(-20, 120, grid.shape).astype(np.int16)
    Volume(values, grid, "CT", "made").save(tmp_path / "1.nii.gz")
    (tmp_path / "vqa.csv").write_text("volume,question,answer,choices\n1.nii.gz,Side?,left,right|left\n")
    answers = tmp_path / "kept" / "answers.jsonl"
    found = figures(capsys, "vqa", "--cases", tmp_path / "vqa.csv", "--model", tiny_model, "--answers", answers)
    assert found["closed"]["one_choice_only"]["all"]["value"] == 0
    shutil.rmtree(tmp_path / "kept", ignore_errors=False)
    assert main(["evaluate", "report", "--cases", str(tmp_path / "vqa.csv")]) == 1
    assert "holds questions" in capsys.readouterr().err


def test_a_tiny_pair_looks_for_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDVLMREADER_CACHE", str(tmp_path / "cache"))
    write_tiny_pair(tmp_path / "pair")
    found = figures(capsys, "retrieval", "--seeds", "3-4", "--model", tmp_path / "pair")
    assert found["pairs"] == 2
    assert found["pool_2"]["text_of_image"]["recall_5"]["value"] == 1


def test_label_maps_of_two_folders_are_compared_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = oblique_grid((6, 9, 9), (5.0, 1.0, 1.0))
    true = np.zeros(grid.shape, np.int16)
    true[1:3, 2:5, 2:5] = 1
    for name in ("found", "true"):
        (tmp_path / name).mkdir()
        Volume(true, grid, "", "made").save(tmp_path / name / "1.nii.gz")
    folders = "--found", tmp_path / "found", "--true", tmp_path / "true"
    assert figures(capsys, "segmentation", *folders)["dice"]["all"]["value"] == 1
    Volume(true, grid.flip(0), "", "made").save(tmp_path / "found" / "1.nii.gz")
    assert main(["evaluate", "segmentation", *map(str, folders)]) == 1
    assert "do not lie in the same place" in capsys.readouterr().err


def test_scores_of_a_table_are_measured_against_true_labels_whatever_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "true.csv").write_text("VolumeName,stone,nodule\na.nii.gz,1,0\nb.nii.gz,0,0\nc.nii.gz,1,1\n")
    (tmp_path / "found.csv").write_text("volume,nodule,stone\nc.nii.gz,.2,.9\na.nii.gz,.1,.8\nb.nii.gz,.6,.3\n")
    tables = "--found", tmp_path / "found.csv", "--true", tmp_path / "true.csv"
    shown = figures(capsys, "classification", *tables, "--figure", tmp_path / "drawn" / "figures.png")
    assert (tmp_path / "drawn" / "figures.png").read_bytes()[1:4] == b"PNG"
    assert shown["accuracy"]["stone"]["value"] == 1
    assert shown["accuracy"]["nodule"]["value"] == pytest.approx(1 / 3, abs=1e-3)
    assert shown["precision"]["all"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert shown["recall"]["all"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert shown["f1"]["all"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert (shown["auc"]["stone"]["value"], shown["auc"]["nodule"]["value"]) == (1, 0.5)
    for change, said in (
        (("found.csv", "volume,nodule\na.nii.gz,.1\nb.nii.gz,.1\nc.nii.gz,.1\n"), "no column 'stone'"),
        (("found.csv", "volume,nodule,stone\na.nii.gz,.1,.1\n"), "no row for 2 volumes"),
        (("true.csv", "volume,stone\na.nii.gz,maybe\nb.nii.gz,1\n"), "not 0 or 1: row 2"),
        (("true.csv", "scan,stone\na.nii.gz,1\n"), "a column 'volume'"),
        (("true.csv", "volume,stone\na.nii.gz,1\na.nii.gz,0\n"), "names a volume twice"),
    ):
        (tmp_path / change[0]).write_text(change[1])
        assert main(["evaluate", "classification", *map(str, tables)]) == 1
        assert said in capsys.readouterr().err


def test_a_tiny_pair_labels_made_studies_without_being_taught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDVLMREADER_CACHE", str(tmp_path / "cache"))
    write_tiny_pair(tmp_path / "pair")
    shown = figures(capsys, "classification", "--seeds", "3-4", "--model", tmp_path / "pair")
    assert shown["studies"] == 2
    assert "stone of the kidney" in shown["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classification"], "--true FILE.csv"),
        (["report"], "--cases FILE, or made studies"),
        (["phantom"], "--seeds A-B"),
        (["segmentation"], "--found DIR"),
        (["vqa", "--cases", "none.csv"], "cannot be read"),
    ],
)
def test_what_is_missing_is_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 1
    assert said in capsys.readouterr().err
