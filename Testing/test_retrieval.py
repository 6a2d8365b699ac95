"""Finding studies by a text and scoring findings: the same for both pairs, and nothing is encoded twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.retrieval import (
    Embeddings,
    Hit,
    Pair,
    Skipped,
    Study,
    cache_folder,
    classify,
    load,
    search,
    studies,
)
from MedVLMReaderLib.weights import Shards
from Testing.made_scans import write_series
from Testing.tiny_m3d import write_tiny_m3d, write_tiny_m3d_clip
from Testing.tiny_med3dvlm import write_tiny_pair
from Testing.tiny_scan import tiny_scan, write_tiny_scan

WRITERS: dict[str, Callable[[Path], Any]] = {"m3d-clip": write_tiny_m3d_clip, "med3dvlm-siglip": write_tiny_pair}


@pytest.fixture(scope="module", params=WRITERS)
def pair_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / request.param
    WRITERS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def pair(pair_folder: Path) -> Pair:
    return load(pair_folder)


def write_dicom(folder: Path) -> None:
    scan = tiny_scan(3)
    write_series(folder, scan.values, scan.grid)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three scans, one of them a DICOM series, beside what is none."""
    folder = tmp_path / "archive"
    write_tiny_scan(folder / "b" / "scan.nii.gz", seed=1)
    write_tiny_scan(folder / "a.mha", seed=2)
    write_dicom(folder / "dicom")
    (folder / "b" / "notes.txt").write_text("no scan")
    (folder / "cut.nii.gz").write_bytes((folder / "b" / "scan.nii.gz").read_bytes()[:300])
    return folder


def counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list to which each encoding of a scan adds."""
    calls: list[str] = []
    encode = pair.of_volume
    monkeypatch.setattr(pair, "of_volume", lambda volume: calls.append(volume.key) or encode(volume))
    return calls


# ---- Ranking --------------------------------------------------------------------------------------------------------


def test_the_studies_are_ranked_by_the_product_of_their_vectors_with_the_texts(pair, archive, tmp_path):
    found = search(pair, "stone in left", archive, Embeddings(tmp_path / "kept"))
    assert {hit.study.path.relative_to(archive).as_posix() for hit in found.hits} == {"a.mha", "b/scan.nii.gz", "dicom"}
    likenesses = [hit.likeness for hit in found.hits]
    assert likenesses == sorted(likenesses, reverse=True)
    text = pair.of_texts(["stone in left"])[0]
    for hit in found.hits:
        if hit.study.path.name == "scan.nii.gz":
            assert hit.likeness == pytest.approx(float(pair.of_volume(tiny_scan(1)) @ text), abs=1e-5)


def test_what_cannot_be_read_is_named_and_left_out(pair, archive, tmp_path):
    found = search(pair, "stone", archive, Embeddings(tmp_path / "kept"))
    why = {one.path.name: one.why for one in found.skipped}
    assert why.keys() == {"notes.txt", "cut.nii.gz"}
    assert "not a scan" in why["notes.txt"]
    assert "cut.nii.gz" in why["cut.nii.gz"]


def test_a_second_search_encodes_nothing(pair, archive, tmp_path, monkeypatch):
    calls = counted(pair, monkeypatch)
    first = search(pair, "stone", archive, Embeddings(tmp_path / "kept"))
    assert (len(calls), first.encoded) == (3, 3)
    again = search(pair, "stone", archive, Embeddings(tmp_path / "kept"))
    other = search(pair, "nodule", archive, Embeddings(tmp_path / "kept"))
    assert (len(calls), again.encoded, other.encoded) == (3, 0, 0)
    assert [hit.likeness for hit in again.hits] == [hit.likeness for hit in first.hits]


def test_a_moved_study_is_known_again_and_a_changed_one_is_not(pair, archive, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    search(pair, "stone", archive, Embeddings(kept))
    calls = counted(pair, monkeypatch)
    (archive / "b" / "scan.nii.gz").rename(archive / "elsewhere.nii.gz")
    search(pair, "stone", archive, Embeddings(kept))
    assert not calls
    write_tiny_scan(archive / "elsewhere.nii.gz", seed=5)
    search(pair, "stone", archive, Embeddings(kept))
    assert len(calls) == 1


# ---- Vectors on disk ------------------------------------------------------------------------------------------------


def test_another_model_or_preparation_or_modality_has_its_own_vectors(pair, tmp_path, monkeypatch):
    kept, scan = Embeddings(tmp_path), tiny_scan()
    kept.of(pair, scan)
    monkeypatch.setattr(pair, "revision", "another")
    kept.of(pair, scan)
    monkeypatch.setattr(pair, "recipe", replace(pair.recipe, foreground=0.1))
    kept.of(pair, scan)
    kept.of(pair, replace(scan, modality="MR"))
    assert kept.encoded == len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_vector_is_made_anew(pair, tmp_path, content):
    kept, scan = Embeddings(tmp_path), tiny_scan()
    vector = kept.of(pair, scan)
    (path,) = tmp_path.iterdir()
    if content is None:
        np.savez(path, vector=np.zeros(3, np.float32))
    else:
        path.write_bytes(content)
    np.testing.assert_array_equal(kept.of(pair, scan), vector)
    assert kept.encoded == 2


def test_a_file_of_the_cache_says_nothing_of_the_patient(pair, archive, tmp_path):
    search(pair, "stone", archive, Embeddings(tmp_path / "kept"))
    for path in (tmp_path / "kept").iterdir():
        assert len(path.stem) == 32
        assert b"archive" not in path.read_bytes()


def test_where_vectors_cannot_be_kept_the_search_goes_on_and_says_so(pair, archive, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = search(pair, "stone", archive, Embeddings(tmp_path / "file"))
    assert len(found.hits) == 3
    assert "cannot be written" in found.trouble


def test_vectors_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVLMREADER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "embeddings"
    monkeypatch.delenv("MEDVLMREADER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "medvlmreader" / "embeddings"


# ---- Studies of a folder --------------------------------------------------------------------------------------------


def test_a_folder_of_folders_shows_each_series_once(tmp_path):
    write_dicom(tmp_path / "outer")
    write_dicom(tmp_path / "outer" / "inner")
    found = list(studies(tmp_path))
    assert all(isinstance(one, Study) for one in found)
    assert len({one.series for one in found if isinstance(one, Study)}) == len(found) == 2


def test_the_voxels_beside_a_header_are_no_study_of_their_own(tmp_path):
    write_tiny_scan(tmp_path / "scan.mhd")
    assert [one.path.name for one in studies(tmp_path)] == ["scan.mhd"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_locked_folder_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    (only,) = studies(tmp_path)
    assert isinstance(only, Skipped)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: folder.write_text("x"), "is a file"),
        (lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("x")), r"1 skipped; notes.txt"),
    ],
)
def test_a_folder_without_studies_is_refused(pair, tmp_path, make, said):
    make(tmp_path / "folder")
    with pytest.raises(ReaderError, match=said):
        search(pair, "stone", tmp_path / "folder", Embeddings(tmp_path / "kept"))


def test_an_empty_text_is_refused(pair, archive):
    with pytest.raises(ReaderError, match="text is empty"):
        search(pair, "  ", archive)


# ---- Scores ---------------------------------------------------------------------------------------------------------


def test_findings_are_scored_one_by_one_in_the_order_asked(pair, tmp_path):
    kept = Embeddings(tmp_path)
    both = classify(pair, tiny_scan(), ["stone", " nodule "], kept)
    assert [one.finding for one in both] == ["stone", "nodule"]
    (alone,) = classify(pair, tiny_scan(), ["nodule"], kept)
    assert alone.score == pytest.approx(both[1].score, abs=1e-5)
    assert all(0 < one.score < 1 for one in both)
    assert kept.encoded == 1


@pytest.mark.parametrize(
    ("findings", "said"), [([], "No finding"), ([" "], "No finding"), (["a", "A"], "'A' is named twice")]
)
def test_findings_that_are_none_are_refused(pair, findings, said):
    with pytest.raises(ReaderError, match=said):
        classify(pair, tiny_scan(), findings)


def test_each_pair_says_what_its_score_is(pair, pair_folder):
    assert ("softmax" if pair_folder.name == "m3d-clip" else "sigmoid") in pair.score_is


# ---- The commands ---------------------------------------------------------------------------------------------------


def test_search_prints_the_best_studies_and_names_what_it_skipped(pair_folder, archive, tmp_path, capsys):
    words = ["search", "stone in left", str(archive), "--model", str(pair_folder), "--cache", str(tmp_path / "kept")]
    assert main([*words, "--top", "2"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["1", "2"]
    assert "and 1 more" in out
    assert "Skipped cut.nii.gz" in err
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["rank"] for one in found["studies"]] == [1, 2, 3]
    assert (found["encoded"], found["model"], len(found["skipped"])) == (0, pair_folder.name, 2)


def test_classify_prints_scores_and_what_they_are(pair_folder, tmp_path, capsys):
    scan = write_tiny_scan(tmp_path / "scan.nii.gz")
    words = ["classify", str(scan), "--labels", "stone, nodule", "--model", str(pair_folder), "--cache", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Score: s" in out
    assert "Note: The model read the scan as" in out
    scores = [float(line.split()[0]) for line in out.splitlines()[1:] if not line.startswith("Note")]
    assert scores == sorted(scores, reverse=True)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["finding"] for one in found["findings"]] == ["stone", "nodule"]
    assert found["score"]


def test_a_model_that_writes_cannot_search(archive, tmp_path, capsys):
    write_tiny_m3d(tmp_path / "lamed")
    assert main(["search", "stone", str(archive), "--model", str(tmp_path / "lamed")]) == 1
    assert "'lamed' writes, it cannot search" in capsys.readouterr().err
    assert main(["search", "stone", str(archive), "--model", "nothing"]) == 1
    assert "No model 'nothing'" in capsys.readouterr().err


def test_weights_from_a_pickle_are_told(pair_folder, archive, tmp_path, capsys):
    folder = tmp_path / "pickled"
    shutil.copytree(pair_folder, folder)
    torch.save(dict(Shards.open(folder)), folder / "pytorch_model.bin")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    assert main(["search", "stone", str(archive), "--model", str(folder), "--cache", str(tmp_path / "kept")]) == 0
    assert "come as a Python pickle" in capsys.readouterr().out


def test_a_pair_cannot_write(pair_folder, tmp_path, capsys):
    scan = write_tiny_scan(tmp_path / "scan.nii.gz")
    assert main(["read", str(scan), "--model", str(pair_folder), "--out", str(tmp_path / "out")]) == 1
    assert "writes nothing. Use it with 'medvlmreader search'" in capsys.readouterr().err


def test_a_hit_is_plain_data():
    study = Study(Path("a.nii.gz"))
    assert Hit(study, 0.5) == Hit(study, 0.5)
