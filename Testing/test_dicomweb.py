"""Studies of a real DICOMweb server: found, chosen and read as from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.studies import studies_of
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.dicom.web import WebStudy, studies_at
from Testing.batch_scans import write_dicom
from Testing.made_scans import write_series
from Testing.orthanc import missing, server
from Testing.tiny_scan import tiny_scan

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two examinations of two patients, one with a thick and a thin series."""
    folder, thin = tmp_path_factory.mktemp("tree"), tiny_scan(2)
    write_dicom(folder / "a", 1, PatientID="4711", PatientName="Miller^Max", StudyInstanceUID="1.2.1", SeriesNumber=1)
    thick = thin.crop((0, 0, 0), (4, *thin.grid.shape[1:]))
    for name, volume in (("thin", thin), ("few", thick)):
        write_series(folder / name, volume.values, volume.grid, PatientID="2", StudyInstanceUID="1.2.2")
    return folder


@pytest.fixture(scope="module")
def address(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("orthanc"), iter(sorted(tree.rglob("*.dcm")))) as url:
        yield url


def test_a_server_gives_the_same_studies_voxels_and_ids_as_the_folder(address: str, tree: Path) -> None:
    here, there = studies_of(tree), studies_at(address)
    assert [one.id for one in there] == [one.id for one in here]
    for one, other in zip(there, here, strict=True):
        volume, same = one.read(), other.read()
        np.testing.assert_array_equal(volume.values, same.values)
        np.testing.assert_allclose(volume.grid.affine, same.grid.affine)
    assert len(studies_at(address, rule="all")) == 3


def test_a_server_is_asked_for_some_of_its_studies_only(address: str) -> None:
    (one,) = studies_at(address, "PatientID=4711")
    assert one.study == "1.2.1"
    with pytest.raises(ReaderError, match="has no CT or MR series that fits"):
        studies_at(address, "PatientID=nobody")
    with pytest.raises(ReaderError, match="is no condition"):
        studies_at(address, "PatientID")


def test_a_server_is_read_by_batch_and_names_nobody(address: str, tiny_model: Path, tmp_path: Path) -> None:
    words = ["batch", address, "--model", str(tiny_model), "--out", str(tmp_path), "--no-heatmaps", "--longest", "3"]
    assert main(words) == 0
    assert len(list(tmp_path.glob("*/reading.json"))) == 2
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Miller" not in everything
    assert b"4711" not in everything
    assert b"127.0.0.1" not in everything


def test_a_study_that_the_server_has_no_more_fails_without_its_address(address: str) -> None:
    gone = WebStudy("gone", address, "1.2.99", "1.2.99.1")
    with pytest.raises(ReaderError, match=r"answers 404|not what the server said"):
        gone.read()


def test_a_server_that_does_not_answer_is_said() -> None:
    with pytest.raises(ReaderError, match="No server answers at"):
        studies_at("http://127.0.0.1:9/dicom-web")
