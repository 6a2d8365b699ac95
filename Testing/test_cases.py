"""Data sets: every published layout is read, and whatever is wrong with one is named before training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.cases import Case, checked, faults, findings_of, made_cases, read_cases, shared
from MedVLMReaderLib.training.prepared import Prepared, prepare, published_block, volume_of
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

RECIPE = BlockRecipe((4, 6, 8))


def scan(path: Path, seed: int = 0) -> str:
    grid = oblique_grid((5, 7, 9), (4.0, 2.0, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(np.random.default_rng(seed).integers(-900, 900, grid.shape).astype(np.int16), grid, "CT", "made").save(path)
    return str(path)


def table(path: Path, text: str) -> Path:
    path.write_text(text.strip() + "\n", encoding="utf-8")
    return path


# ---- The published layouts ------------------------------------------------------------------------------------------


def test_captions_of_m3d_are_read_split_by_split_from_words_or_files(tmp_path: Path) -> None:
    scan(tmp_path / "ct" / "1.nii.gz")
    (tmp_path / "ct" / "text.txt").write_text("history: none study_findings: A stone. ")
    content = {"train": [{"image": "ct/1.npy", "text": "ct/text.txt"}], "test": [{"image": "ct/2", "text": "Nothing."}]}
    (tmp_path / "M3D_Cap.json").write_text(json.dumps(content))
    (one,) = read_cases(tmp_path / "M3D_Cap.json", split="train")
    assert one.volume == str(tmp_path / "ct" / "1.nii.gz")  # named .npy there, kept as NIfTI by Med3DVLM
    assert one.report == "A stone."
    assert [case.report for case in read_cases(tmp_path / "M3D_Cap.json")] == ["A stone.", "Nothing."]
    with pytest.raises(ReaderError, match=r"no split 'tests'\. It has: train, test"):
        read_cases(tmp_path / "M3D_Cap.json", split="tests")


def test_questions_of_m3d_have_their_type_and_choices(tmp_path: Path) -> None:
    rows = "Image Path,Question Type,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice\n" \
           "x,3,Which organ?,liver,spleen,lung,heart,spleen,B\nx,1,Which plane?,,,,,axial,"  # fmt: skip
    closed, opened = read_cases(table(tmp_path / "vqa.csv", rows))
    assert (closed.type, closed.letter, closed.expected) == ("organ", "B", "B. spleen")
    assert closed.asked == "Which organ? Choices: A. liver B. spleen C. lung D. heart"
    assert (opened.type, opened.closed, opened.expected, opened.asked) == ("plane", False, "axial", "Which plane?")


def test_reports_of_ct_rate_are_findings_and_impression_in_its_folders(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "train_1" / "train_1_a" / "train_1_a_2.nii.gz")
    rows = "VolumeName,Findings_EN,Impressions_EN\ntrain_1_a_2.nii.gz,Clear lungs.,Normal."
    (one,) = read_cases(table(tmp_path / "reports.csv", rows))
    assert Path(one.volume).is_file()
    assert one.report == "Clear lungs.\nNormal."


def test_plain_tables_have_reports_or_questions_with_choices_either_way(tmp_path: Path) -> None:
    (told,) = read_cases(table(tmp_path / "a.csv", 'volume,report\n1.nii,"A nodule, right."'))
    assert told.report == "A nodule, right."
    rows = "volume,question,answer,choices\n" \
           "1.nii,Side?,left,right|left\n1.nii,Side? Choices: A. right B. left,B. left,"  # fmt: skip
    apart, within = read_cases(table(tmp_path / "b.csv", rows))
    assert apart.asked == within.asked == "Side? Choices: A. right B. left"
    assert apart.expected == within.expected == "B. left"


def test_made_studies_are_cases_with_reports_and_questions() -> None:
    reports, questions = made_cases(range(3, 6), mirrored_every=3), made_cases([4], questions=True)
    assert [case.volume for case in reports] == ["made:3-mirrored", "made:4", "made:5"]
    assert all(case.report.startswith("Findings:") for case in reports)
    assert {"plane", "organ"} <= {case.type for case in questions}
    assert all(case.letter for case in questions if case.closed)
    assert checked(questions, known_types=(*{case.type for case in questions},)) == questions


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a discussion: b", "b"), ("discussion: a study_findings: b", "b"), (" plain ", "plain")],
)
def test_of_a_report_m3d_keeps_the_findings(text: str, kept: str) -> None:
    assert findings_of(text) == kept


# ---- Faults ---------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_table_is_named_with_its_row(tmp_path: Path) -> None:
    scan(tmp_path / "1.nii")
    rows = "volume,question,answer,choices,type\n1.nii,Side?,left,right|left,location\n2.nii,Side?,left,,location\n" \
           "1.nii,Side?,both,right|left,colour\n1.nii,Where?,,,organ\n1.nii,Side?,left,right|left,location"  # fmt: skip
    found = [str(fault) for fault in faults(read_cases(table(tmp_path / "vqa.csv", rows)))]
    assert [one.split(":")[0] for one in found] == [f"vqa.csv, row {n}" for n in (3, 4, 4, 4, 5, 6)]
    whole = "\n".join(found)
    for said in ("there is no", "is 'colour'", "'both' is none of its choices", "the answer is empty", "the same as"):
        assert said in whole


def test_an_empty_report_is_a_fault_and_can_be_left_out(tmp_path: Path) -> None:
    scan(tmp_path / "1.nii")
    cases = read_cases(table(tmp_path / "a.csv", "volume,report\n1.nii,\n1.nii,Clear."))
    with pytest.raises(ReaderError, match=r"1 fault:\n  a.csv, row 2: the report is empty\n.*--skip-faulty"):
        checked(cases)
    assert [case.report for case in checked(cases, skip=True)] == ["Clear."]
    with pytest.raises(ReaderError, match="no case that can be used"):
        checked(cases[:1], skip=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "scan,words\n1,2", "has the columns scan, words. Known tables have: Image Path"),
        ("a.csv", "", "has the columns"),
        ("a.json", "[1, 2]", "lists of images with texts"),
        ("a.json", "{", "no table of cases"),
        ("a.json", '{"train": [{"image": 1}]}', "'image' and 'text'"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_data_set_is_told(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        table(tmp_path / name, text)
    with pytest.raises(ReaderError, match=said):
        read_cases(tmp_path / name)


def test_a_study_of_the_training_that_is_tested_on_is_named(tmp_path: Path) -> None:
    one, other = scan(tmp_path / "train" / "1.nii.gz"), str(tmp_path / "test" / "copy.nii.gz")
    Path(other).parent.mkdir()
    Path(other).write_bytes(Path(one).read_bytes())
    third, fourth = scan(tmp_path / "3.nii.gz", 3), scan(tmp_path / "4.nii.gz", 4)
    train = [Case(one, "A stone."), Case(third, "A  nodule of 8 mm.")]
    test = [Case(other, "Other words."), Case(third, "x"), Case(fourth, "A nodule of 8 MM."), Case("made:1", "clear")]
    found = shared(train, test)
    assert [(Path(s.other).name, s.why) for s in found] == [
        ("copy.nii.gz", "the same content"), ("3.nii.gz", "the same volume"), ("4.nii.gz", "the same report"),
    ]  # fmt: skip


# ---- Preparation ----------------------------------------------------------------------------------------------------


def test_a_volume_is_prepared_once_and_anew_when_the_file_changes(tmp_path: Path) -> None:
    name, prepared = scan(tmp_path / "1.nii.gz"), Prepared(tmp_path / "kept", RECIPE)
    first = np.array(prepared.of(name))
    assert first.shape == RECIPE.shape
    assert first.dtype == np.uint8
    (kept,) = (tmp_path / "kept").iterdir()
    before = kept.stat().st_mtime_ns
    assert np.array_equal(prepared.of(name), first)
    assert kept.stat().st_mtime_ns == before
    scan(tmp_path / "1.nii.gz", seed=1)
    assert not np.array_equal(prepared.of(name), first)
    assert name not in kept.name


def test_a_volume_that_cannot_be_read_is_named_and_refused_or_left_out(tmp_path: Path) -> None:
    good, bad = scan(tmp_path / "1.nii.gz"), tmp_path / "2.nii.gz"
    bad.write_bytes(b"no scan")
    cases, prepared = [Case(str(bad), "a", place="row 2"), Case(good, "b", place="row 3")], Prepared(tmp_path, RECIPE)
    with pytest.raises(ReaderError, match=r"2\.nii\.gz.*--skip-faulty"):
        prepare(cases, prepared)
    kept, left_out = prepare(cases, prepared, skip=True)
    assert [case.place for case in kept] == ["row 3"]
    assert [fault.place for fault in left_out] == ["row 2"]
    with pytest.raises(ReaderError, match="None of the 1 volumes"):
        prepare(cases[:1], prepared, skip=True)


def test_pictures_of_m3d_become_the_published_block(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from PIL import Image

    values = np.random.default_rng(0).integers(1, 255, (11, 20, 24)).astype(np.uint8)
    values[:2], values[:, :3], values[:, :, 21:] = 0, 0, 0
    for n, picture in enumerate(values):
        Image.fromarray(picture).save(tmp_path / f"{n}.png")  # "10.png" after "9.png"
    Image.fromarray(values[0, :5]).save(tmp_path / "99.png")  # of another size: left out
    volume = volume_of(str(tmp_path))
    assert np.array_equal(volume.values, values)
    inside = torch.from_numpy(values[2:, 3:, :21].astype(np.float32) / values.max())[None, None]
    expected = torch.nn.functional.interpolate(inside, (6, 9, 16), mode="trilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(published_block(volume, (6, 9, 16)), expected, atol=1e-6)
    np.save(tmp_path / "one.npy", values[None])
    assert np.array_equal(volume_of(str(tmp_path / "one.npy")).values, values)
