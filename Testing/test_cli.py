"""What can be typed, what it prints and which files it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from MedVLMReaderLib.calibration import Calibration
from MedVLMReaderLib.cli import main, parser
from MedVLMReaderLib.phantom import made_truth
from MedVLMReaderLib.reading import Reading
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import write_tiny_scan

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "models", "read", "ask", "chat", "batch", "index", "heatmap", "preview", "search", "classify", "check", "phantom",
    "train", "calibrate", "evaluate",
)  # fmt: skip
SENTENCES = ("The right lung is clear.", "A stone of 7 mm lies in one kidney.", "Renal calculus.")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scan(tmp_path_factory.mktemp("scans") / "Doe^Jane" / "scan.nii.gz")


@pytest.fixture(scope="module")
def report(scan: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a reading, and what was printed."""
    out, said = tmp_path_factory.mktemp("readings") / "one", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["read", str(scan), "--model", str(tiny_model), "--out", str(out)]) == 0
    return out, said.getvalue()


def run(*words: object) -> int:
    return main([str(word) for word in words])


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


# Help and usage


def test_help_costs_little_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, time\nfrom MedVLMReaderLib.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'numpy', 'torch', 'tqdm', 'importlib.metadata'} & set(sys.modules)\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stderr) <= 0.3
    assert all(f"\n    {command} " in done.stdout for command in COMMANDS)


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "MedVLMReaderLib.cli", "--version"]
    assert "medvlmreader 0." in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example_that_can_be_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    examples = capsys.readouterr().out.split("example")[-1].splitlines()[1:]
    for example in examples:
        name, *words = shlex.split(example)
        assert name == "medvlmreader"
        assert parser().parse_args(words).run
    assert examples


@pytest.mark.parametrize(
    "words",
    [
        [], ["reed"], ["read"], ["ask", "scan.nii"], ["read", "scan.nii", "--longest", "0"], ["phantom", "--seed", "3"],
        ["phantom", "--seed", "-3", "--out", "x"], ["evaluate", "phantom", "--seeds", "9-3"],
        ["evaluate", "phantom", "--seeds", "all"], ["heatmap", "x", "--words", "lung", "--sentence", "1"],
        ["train", "data", "--minutes", "nan"],
    ],
)  # fmt: skip
def test_what_is_typed_wrongly_ends_with_2_and_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: medvlmreader" in capsys.readouterr().err


def test_models_are_listed_with_what_they_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    table = capsys.readouterr().out
    assert "built-in" in table
    assert "CT and MR" in table
    assert run("models", "--json") == 0
    assert printed(capsys)["models"][0]["name"] == "built-in"


def test_models_are_listed_fast_and_without_torch() -> None:
    program = (
        "import sys, time\nfrom MedVLMReaderLib.cli import main\nassert main(['models']) == 0\n"
        "assert not {'numpy', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stderr) <= 0.5


def test_every_model_says_what_memory_it_needs_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    found = printed(capsys)
    rows = {row["name"]: row for row in found["models"]}
    assert rows["built-in"]["fits"] == "fp32"
    assert rows["built-in"]["tried"]
    assert not rows["med3dvlm"]["tried"]
    assert set(rows["med3dvlm"]["memory_bytes"]) == {"fp32", "bf16", "int8", "nf4"}
    for row in rows.values():
        fits = row["fits"]
        assert fits is None or row["memory_bytes"][fits] <= found["free_bytes"]
    assert rows["medgemma-1.5"]["gated"]


def test_what_is_installed_and_what_is_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run("models", "--installed") == 0
    assert "Nothing of the hub" in capsys.readouterr().out
    assert run("models", "--remove", "m3d-clip") == 1
    assert "'m3d-clip' is not in the cache" in capsys.readouterr().err
    part = tmp_path / "models--GoodBaiBai88--M3D-CLIP" / "blobs" / "half"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    assert run("models", "--installed", "--json") == 0
    assert [(one["name"], one["whole"]) for one in printed(capsys)["models"]] == [("GoodBaiBai88/M3D-CLIP", False)]
    assert run("models", "--remove", "m3d-clip") == 0
    assert not part.parent.parent.exists()


def test_a_model_that_is_not_here_and_may_not_be_fetched_says_how_to_get_it(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run("read", scan, "--model", "med3dvlm", "--offline", "--out", tmp_path / "out") == 1
    assert "medvlmreader models --get MagicXin/Med3DVLM-Qwen-2.5-7B" in capsys.readouterr().err


def test_a_precision_is_typed_and_kept_with_the_reading(
    scan: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("ask", scan, "Is there a nodule?", "--model", tiny_model, "--longest", 3, "--no-heatmaps", "--json")
    assert run(*words, "--precision", "bf16", "--device", "cpu", "--out", tmp_path / "out") == 0
    assert printed(capsys)["options"]["precision"] == "bf16"
    assert run(*words, "--precision", "fp16", "--out", tmp_path / "out") == 1
    assert "fp16 is not offered" in capsys.readouterr().err


def test_a_check_of_a_model_says_what_fewer_bits_cost(
    tiny_model: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from MedVLMReaderLib import check
    from MedVLMReaderLib.files import read

    monkeypatch.setattr(check, "sample", lambda: read(scan))
    assert run("check", "--model", tiny_model, "--json") == 0
    full, *others = printed(capsys)["fidelity"]
    assert (full["precision"], full["top_1"], full["divergence"], full["report"]) == ("fp32", 1.0, 0.0, 1.0)
    assert [one["precision"] for one in others] == ["bf16", "int8", "nf4"]
    assert all(0 <= one["top_1"] <= 1 and one["divergence"] >= 0 for one in others)
    assert others[0]["divergence"] < others[2]["divergence"]


# Reading and asking


def test_read_prints_notes_then_the_text_then_where_it_comes_from(report: tuple[Path, str]) -> None:
    folder, said = report
    reading = Reading.load(folder)
    assert reading.text == TINY_TEXT
    order = [
        said.index(part)
        for part in (*reading.notes, TINY_TEXT, reading.revision, "Not for clinical use", "sentence-03.png")
    ]
    assert order == sorted(order)
    assert said.startswith("Note: This model has learned from made studies only.")


def test_the_report_says_first_what_must_be_known_and_last_what_wrote_it(report: tuple[Path, str]) -> None:
    folder, _ = report
    reading = Reading.load(folder)
    notes, text, written = (folder / "report.txt").read_text().strip().split("\n\n")
    assert notes.splitlines() == [f"Note: {note}" for note in reading.notes]
    assert text == TINY_TEXT
    assert written == f"Written by tiny, revision {reading.revision}, {reading.created}. Not for clinical use."


def test_the_folder_holds_a_picture_a_sentence_and_the_heatmap_in_its_place(report: tuple[Path, str]) -> None:
    folder, _ = report
    files = ("report.txt", "report.html", "reading.json", "arrays.npz", "heatmap.nii.gz")
    names = {*files, *(f"sentence-0{n}.png" for n in (1, 2, 3))}
    assert {path.name for path in folder.iterdir()} == names
    heat, kept = Reading.load(folder).heatmap(), sitk.ReadImage(str(folder / "heatmap.nii.gz"))
    i, j, k = kept.TransformPhysicalPointToIndex([float(x) for x in heat.peak() * (-1, -1, 1)])
    assert kept[i, j, k] == heat.values.max()


def test_without_out_the_folder_is_named_by_an_opaque_key_and_nothing_names_the_patient(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("read", scan, "--model", tiny_model, "--no-heatmaps") == 0
    (folder,) = (tmp_path / "readings").iterdir()
    assert len(folder.name) == 16
    said = capsys.readouterr()
    texts = [said.out, said.err, *(path.read_bytes().decode(errors="ignore") for path in folder.iterdir())]
    assert {path.suffix for path in folder.iterdir()} == {".txt", ".html", ".json", ".npz"}
    assert not any("Doe" in text or "scan.nii" in text for text in texts)


def test_json_is_one_object_on_stdout_and_the_notes_go_aside(
    scan: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path / "new" / "out", "--json") == 0
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert content["text"] == TINY_TEXT
    assert content["complete"] is True
    assert tuple(sentence["text"] for sentence in content["sentences"]) == SENTENCES
    assert content["sentences"][1]["picture"] == "sentence-02.png"
    assert 1 <= content["sentences"][1]["effective_cells"] <= content["sentences"][1]["cells"]
    assert all(Path(path).is_file() for path in content["files"])
    assert "learned from made studies only" in said.err


def test_a_text_that_was_cut_off_says_so(
    scan: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("read", scan, "--model", tiny_model, "--out", tmp_path, "--longest", "3", "--no-heatmaps") == 0
    assert "Incomplete" in capsys.readouterr().out
    assert "Findings: The right\n\nIncomplete" in (tmp_path / "report.txt").read_text()
    assert not Reading.load(tmp_path).complete


def test_an_answer_is_kept_with_its_question_beside_the_report(
    scan: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    question = "Is there a nodule? Choices: A. yes B. no"
    assert run("read", scan, "--model", tiny_model, "--no-heatmaps") == 0
    assert run("ask", scan, question, "--model", tiny_model, "--no-heatmaps") == 0
    first, second = sorted(path.name for path in (tmp_path / "readings").iterdir())
    assert second.startswith(f"{first}-")
    assert Reading.load(tmp_path / "readings" / second).question == question
    assert f"\n\nQuestion: {question}\n\nFindings:" in (tmp_path / "readings" / second / "report.txt").read_text()


def test_pictures_of_an_older_reading_go_and_other_files_stay(scan: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sentence-07.png").write_text("somebody else's")
    read = ("read", scan, "--model", tiny_model, "--out", tmp_path)
    assert run(*read) == 0
    assert (tmp_path / "sentence-07.png").exists()
    assert run(*read, "--no-heatmaps") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "arrays.npz",
        "reading.json",
        "report.html",
        "report.txt",
    ]


# From a kept reading


def test_heatmap_of_a_sentence_lies_where_the_reading_says(
    report: tuple[Path, str], scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "two.nrrd"
    assert run("heatmap", report[0], "--sentence", "2", "--study", scan, "--out", out, "--json") == 0
    found, heat = printed(capsys), Reading.load(report[0]).heatmap(1)
    assert found["words"] == SENTENCES[1]
    assert np.allclose(found["peak_ras_mm"], heat.peak(), atol=0.01)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out))), heat.values)
    assert out.with_name("two.png").read_bytes().startswith(b"\x89PNG")


def test_heatmap_of_words_goes_into_the_readings_folder(
    report: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("heatmap", report[0], "--words", "one kidney") == 0
    path = report[0] / "heatmap-one-kidney.nii.gz"
    assert path.exists()
    path.unlink()
    assert "one kidney\nPeak at R, A, S" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--words", "left lung"], "does not say 'left lung'"),
        (["--sentence", "4"], "the text has 3"),
        (["--method", "attention"], "Recorded with this answer: relevance"),
        (["--out", "heat.jpg"], "End it in .nii.gz"),
        (["--verify"], "Name it with --study"),
        (["--relative", "--look"], "Add: --look --method attention"),
    ],
)
def test_heatmap_says_what_the_reading_lacks(
    words: list[str], message: str, report: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("heatmap", report[0], *words) == 1
    assert message in capsys.readouterr().err


def test_a_picture_on_another_scan_comes_with_a_warning(
    report: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_scan(tmp_path / "other.nii.gz", seed=1)
    assert run("heatmap", report[0], "--study", other, "--out", tmp_path / "heat.nii.gz") == 0
    assert "not the file that was read" in capsys.readouterr().err


# Without torch


def test_preview_needs_no_torch_and_read_says_how_to_get_it(scan: Path, tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'transformers', 'tokenizers', 'safetensors']))\n"
        "from MedVLMReaderLib.cli import main\n"
        "study, model, out = sys.argv[1:]\n"
        "assert main(['preview', study, '--model', model, '--out', out, '--json']) == 0\n"
        "assert main(['read', study, '--model', model, '--out', out + '.folder']) == 1\n"
    )
    command = [sys.executable, "-c", program, str(scan), str(tiny_model), str(tmp_path / "sheet.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'medvlmreader[models]'" in done.stderr
    content = json.loads(done.stdout)
    assert [stack["title"] for stack in content["stacks"]] == ["Axial", "Coronal", "Sagittal"]
    assert content["recipe"]["size"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_phantom_writes_a_study_with_its_truth_report_and_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("phantom", "--seed", "3", "--out", tmp_path / "plain", "--json") == 0
    content = printed(capsys)
    assert content["truth"] == json.loads((tmp_path / "plain" / "truth.json").read_text())
    assert (tmp_path / "plain" / "report.txt").read_text().strip() == content["report"]
    questions = json.loads((tmp_path / "plain" / "questions.json").read_text())["questions"]
    assert {"plane", "phase", "organ", "abnormality"} <= {question["type"] for question in questions}
    masks = sorted((tmp_path / "plain").glob("mask-*.nii.gz"))
    assert len(masks) == len(content["truth"]["findings"])
    assert {Path(path) for path in content["files"]} == set((tmp_path / "plain").iterdir())


# Training and measuring


def test_the_stages_are_those_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    from MedVLMReaderLib.training.recipe import STAGES

    assert run("train") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()] == list(STAGES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wards", "--runs", "."], "No stage 'wards'. Stages: data"),
        (["encoder"], "--runs DIR"),
        (["encoder", "--runs", "."], "Run: medvlmreader train data --runs ."),
        (["export", "--runs", "."], "--out DIR"),
    ],
)
def test_a_stage_says_what_it_needs_first(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *words) == 1
    assert message in capsys.readouterr().err


def test_figures_are_shown_with_their_intervals() -> None:
    from MedVLMReaderLib.commands.evaluate import table

    nothing = {"value": None, "low": None, "high": None, "n": 0}
    rows = list(
        table({"studies": 2, "f1": {"value": 0.5, "low": 0.4, "high": 0.625, "n": 7}, "by": {"stone": nothing}})
    )
    assert [row.split() for row in rows] == [
        ["studies", "2"], ["f1", "0.500", "(0.400", "to", "0.625,", "n", "=", "7)"], ["by"], ["stone", "-"],
    ]  # fmt: skip


@pytest.mark.slow
def test_evaluate_heatmaps_goes_on_from_what_it_kept_and_writes_its_page(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = next(n for n in range(40) if len(made_truth(n).findings) == 1)
    kept, page = tmp_path / "rows.jsonl", tmp_path / "heatmaps.md"
    asked = ("evaluate", "heatmaps", "--seeds", seed, "--model", tiny_model, "--kept", kept, "--json")
    assert run(*asked) == 0
    content = printed(capsys)
    assert {"chance", "methods", "best", "best_above_last_layer"} <= set(content)
    before = kept.read_bytes()
    assert run(*asked, "--page", page) == 0
    assert printed(capsys) == content
    assert kept.read_bytes() == before
    assert "| relevance |" in page.read_text()
    assert run("evaluate", "verification", *asked[2:]) == 1
    assert "another measurement" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrate_keeps_its_heads_where_it_is_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(n for n in range(60) if made_truth(n).findings and made_truth(n + 1).findings)
    out = tmp_path / "heads.json"
    asked = ("calibrate", "--model", tiny_model, "--seeds", f"{first}-{first + 1}", "--out", out)
    assert run(*asked, "--json") == 0
    found = printed(capsys)
    assert found["heads"]
    assert Calibration.load(out).seeds == (first, first + 1)
    assert not (tiny_model / "calibration.json").exists()


@pytest.mark.slow
def test_evaluate_prints_one_object_and_keeps_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert run("evaluate", "phantom", "--seeds", "5", "--model", tiny_model, "--json", "--out", out) == 0
    content = printed(capsys)
    assert content == json.loads(out.read_text())
    assert {"findings_f1", "baseline_f1", "side_accuracy", "pointing", "studies"} <= set(content)
