"""A tree of DICOM files: looked through once, one series of each study chosen, nothing of a patient kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.studies import studies_of
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.dicom.chosen import chosen_series
from MedVLMReaderLib.dicom.index import Index
from Testing.batch_scans import write_dicom
from Testing.made_scans import changed, oblique_grid, tissue, write_series

STUDY = "1.2.3.4"


def axial(folder: Path, slices: int, spacing: float, **tags: object) -> str:
    grid = oblique_grid((slices, 6, 7), (spacing, 30.0, 30.0))
    return write_series(folder, tissue(grid.shape), grid, StudyInstanceUID=STUDY, **tags)  # type: ignore[arg-type]


def coronal(folder: Path, slices: int, spacing: float, **tags: object) -> str:
    grid = oblique_grid((slices, 6, 7), (spacing, 30.0, 30.0), axes=(1, 2, 0))
    return write_series(folder, tissue(grid.shape), grid, StudyInstanceUID=STUDY, **tags)  # type: ignore[arg-type]


def test_of_each_study_the_thinnest_axial_series_that_covers_the_body_is_read(tmp_path: Path) -> None:
    axial(tmp_path / "thick", 10, 5.0, SeriesNumber=2)
    axial(tmp_path / "thin", 30, 1.5, SeriesNumber=3)
    axial(tmp_path / "a few", 4, 0.5, SeriesNumber=4)
    axial(tmp_path / "scout", 40, 1.0, SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    coronal(tmp_path / "coronal", 60, 0.5, SeriesNumber=5)
    write_dicom(tmp_path / "another study", 3)
    with Index(None) as index:
        index.refresh(tmp_path)
        found = index.series(tmp_path)
        chosen = chosen_series(found)
        assert len(found) == 6
        assert len(chosen_series(found, "all")) == 6
    names = {path.parent.name for one in chosen for path in one.paths}
    assert names == {"thin", "another study"}
    assert {one.read().values.shape[0] for one in chosen} == {30, 9}


def test_only_files_that_are_new_or_changed_are_opened_again(tmp_path: Path) -> None:
    axial(tmp_path / "tree" / "a", 5, 2.0)
    axial(tmp_path / "tree" / "b", 6, 2.0)
    base = tmp_path / "index.sqlite"
    parsed = []

    def slices() -> list[int]:
        with Index(base) as index:
            index.refresh(tmp_path / "tree")
            parsed.append(index.parsed)
            return sorted(one.slices for one in index.series(tmp_path / "tree"))

    assert slices() == [5, 6]
    assert slices() == [5, 6]
    axial(tmp_path / "tree" / "c", 3, 2.0)
    assert slices() == [3, 5, 6]
    next((tmp_path / "tree" / "b").iterdir()).unlink()
    assert slices() == [3, 5, 5]
    changed(next((tmp_path / "tree" / "c").iterdir()), SeriesInstanceUID="1.9")
    assert slices() == [2, 5, 5]
    assert parsed == [11, 0, 3, 0, 1]


def test_a_clock_that_was_set_back_hides_no_change(tmp_path: Path) -> None:
    import os

    axial(tmp_path / "tree", 5, 2.0)
    with Index(None) as index:
        index.refresh(tmp_path)
        one = next((tmp_path / "tree").iterdir())
        os.utime(one, (1, 1))
        index.refresh(tmp_path)
        assert index.parsed == 6


def test_the_index_names_no_patient_and_is_its_owners_alone(tmp_path: Path) -> None:
    axial(tmp_path / "tree", 5, 2.0, PatientName="Miller^Max", PatientID="4711", SeriesDescription="Chest of Miller")
    base = tmp_path / "index.sqlite"
    with Index(base) as index:
        index.refresh(tmp_path / "tree")
        assert index.thumbnail(index.series(tmp_path / "tree")[0]).startswith(b"\x89PNG")
    content = base.read_bytes()
    assert b"Miller" not in content
    assert b"4711" not in content
    assert STUDY.encode() not in content
    assert stat.S_IMODE(base.stat().st_mode) == 0o600


def test_damaged_files_are_a_note_beside_a_series_and_a_failed_study_alone(tmp_path: Path) -> None:
    axial(tmp_path / "good", 5, 2.0)
    (tmp_path / "good" / "bad.dcm").write_bytes(b"")
    (tmp_path / "lost").mkdir()
    for n in range(2):
        (tmp_path / "lost" / f"{n}.dcm").write_bytes(b"x" * n)
    good, lost = studies_of(tmp_path)
    assert good.read().notes[-1] == "1 file in the folder could not be read and was left out."
    with pytest.raises(ReaderError, match="2 damaged DICOM files and no series"):
        lost.read()


def test_a_series_that_changed_since_it_was_indexed_is_refused(tmp_path: Path) -> None:
    axial(tmp_path, 5, 2.0)
    (study,) = studies_of(tmp_path)
    for path in tmp_path.iterdir():
        changed(path, SeriesInstanceUID="1.9")
    with pytest.raises(ReaderError, match="not what it was when it was indexed"):
        study.read()


def test_copies_of_files_elsewhere_in_the_tree_make_no_second_study(tmp_path: Path) -> None:
    uid = axial(tmp_path / "a", 5, 2.0)
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a").iterdir():
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    assert uid
    (study,) = studies_of(tmp_path)
    volume = study.read()
    assert volume.values.shape[0] == 5
    assert np.isfinite(volume.values).all()
    assert any("stored twice" in note for note in volume.notes)


def test_the_command_lists_series_and_marks_what_would_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axial(tmp_path / "tree" / "a", 10, 5.0)
    axial(tmp_path / "tree" / "b", 20, 2.5)
    words = ["index", str(tmp_path / "tree"), "--index", str(tmp_path / "index"), "--json"]
    assert main([*words, "--thumbnails", str(tmp_path / "pictures")]) == 0
    series = json.loads(capsys.readouterr().out)["series"]
    assert [(one["slices"], one["chosen"]) for one in sorted(series, key=lambda one: one["slices"])] == [
        (10, False), (20, True),
    ]  # fmt: skip
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def test_a_file_that_is_no_index_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("something of value " * 99)
    with pytest.raises(ReaderError, match="cannot be used"):
        Index(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("something")
