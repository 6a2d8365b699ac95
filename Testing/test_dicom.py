"""DICOM series: found, told apart, ordered, and put where the patient lay."""

import contextlib
import logging
import os
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEG2000Lossless, RLELossless

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom import list_series, read_series
from MedVLMReaderLib.dicom.slices import header_of
from MedVLMReaderLib.files import read
from MedVLMReaderLib.geometry import Grid
from Testing.made_scans import (
    PATIENT,
    changed,
    damaged,
    oblique_grid,
    plain_header,
    put_pixels,
    tissue,
    write_enhanced,
    write_series,
)

SHAPE = (6, 9, 11)
BRIGHT = (4, 3, 8)


def right_handed(**changes) -> Grid:
    """A grid whose slices follow the normal of DICOM, as a series of one is read back."""
    return oblique_grid(SHAPE, **{"signs": (1, -1, -1), **changes})


def leaning(grid: Grid, degrees: float) -> Grid:
    """Slices that move down the picture as the table moves on: a tilted gantry."""
    affine = grid.affine.copy()
    affine[:3, 0] += np.tan(np.radians(degrees)) * grid.spacing[0] * grid.directions[:, 1]
    return Grid(grid.shape, affine)


def shipped(name: str) -> Path:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / name).exists():
        pytest.skip(f"pydicom ships no {name} here")
    return folder / name


@pytest.mark.parametrize(
    ("axes", "signs"),
    [((2, 1, 0), (1, -1, -1)), ((2, 1, 0), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1)), ((0, 2, 1), (-1, -1, -1))],
    ids=["axial", "axial, columns to anterior", "coronal", "sagittal"],
)
def test_series_lies_where_its_headers_say_and_where_simpleitk_puts_it(tmp_path, axes, signs):
    grid, values = oblique_grid(SHAPE, axes=axes, signs=signs), tissue(SHAPE, BRIGHT)
    uid = write_series(tmp_path, values, grid)
    volume = read(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path), uid))
    image = reader.Execute()
    place = np.array(
        image.TransformIndexToPhysicalPoint(np.argwhere(sitk.GetArrayFromImage(image) == 3000)[0].tolist()[::-1])
    )
    assert volume.grid.shape == SHAPE
    assert volume.values.dtype == np.int16
    assert volume.modality == "CT"
    assert volume.notes == ()
    np.testing.assert_allclose(volume.peak(), grid.to_world(BRIGHT), atol=1e-3)
    np.testing.assert_allclose(volume.peak(), place * [-1, -1, 1], atol=1e-3)
    everywhere = grid.to_world(np.argwhere(np.ones(SHAPE)))
    np.testing.assert_array_equal(volume.at(everywhere), values.ravel())


def test_slices_are_ordered_by_place_not_by_number_or_name(tmp_path):
    values = tissue(SHAPE)
    write_series(tmp_path, values, right_handed())
    for n, path in enumerate(sorted(tmp_path.iterdir())):
        changed(path, InstanceNumber=99 - n)
    np.testing.assert_array_equal(read(tmp_path).values, values)


def test_folder_is_searched_through_and_other_files_are_passed_over(tmp_path):
    write_series(tmp_path / "a" / "b", tissue(SHAPE), right_handed())
    (tmp_path / "readme.txt").write_text("not a scan")
    (tmp_path / "a" / "short").write_bytes(b"\x08\x00")
    assert read(tmp_path).grid.shape == SHAPE


def test_one_file_stands_for_its_whole_series(tmp_path):
    values = tissue(SHAPE)
    write_series(tmp_path, values, right_handed(), prefix="a")
    write_series(tmp_path, values + 7, right_handed(), prefix="b", SeriesNumber=5)
    np.testing.assert_array_equal(read(tmp_path / "b002.dcm").values, values + 7)
    np.testing.assert_array_equal(read(tmp_path / "b002.dcm", series="4").values, values)
    assert [series.number for series in list_series(tmp_path / "b002.dcm")] == [5]


def test_several_series_are_listed_and_any_of_their_names_chooses(tmp_path):
    values = tissue(SHAPE)
    write_series(tmp_path / "x", values, right_handed(), SeriesNumber=2, SeriesDescription="Lung")
    uid = write_series(tmp_path / "y", values[:4] + 1, oblique_grid((4, 9, 11), signs=(1, -1, -1)), SeriesNumber=10)
    with pytest.raises(ReaderError, match="--series") as caught:
        read(tmp_path)
    assert re.search(
        r"2: Lung, CT axial, 6 slices, UID \.\.\.\d+\n  10: Chest 5\.0, CT axial, 4 slices", str(caught.value)
    )
    for name in ("10", uid, uid[-8:], f"...{uid[-8:]}"):
        np.testing.assert_array_equal(read(tmp_path, series=name).values, values[:4] + 1)
    with pytest.raises(ReaderError, match=r"No series .* is '3'.*\n  2: Lung"):
        read(tmp_path, series="3")


def test_series_of_one_number_are_named_by_their_uids(tmp_path):
    uids = [write_series(tmp_path / name, tissue(SHAPE), right_handed()) for name in "ab"]
    with pytest.raises(ReaderError, match="'4' names 2 of the series") as caught:
        read(tmp_path, series="4")
    assert all(f"  {uid[-8:]}: " in str(caught.value) for uid in uids)


def test_scout_and_screenshot_do_not_stand_in_the_way(tmp_path):
    write_series(tmp_path / "ct", tissue(SHAPE), right_handed())
    write_series(tmp_path / "scout", tissue((1, 9, 11)), oblique_grid((1, 9, 11)), SeriesNumber=1)
    shot = plain_header("1.2.3", "OT", SeriesNumber=99)
    put_pixels(shot, np.zeros((4, 4), np.uint16))
    shot.save_as(tmp_path / "shot.dcm", enforce_file_format=True)
    assert read(tmp_path).grid.shape == SHAPE
    with pytest.raises(ReaderError, match="only 1 slice of a series; a volume needs at least 2"):
        read(tmp_path / "scout")
    with pytest.raises(ReaderError, match="1 DICOM picture without a place"):
        read(tmp_path / "shot.dcm")


def test_missing_slices_are_filled_and_told(tmp_path):
    shape = (20, 9, 11)
    grid = oblique_grid(shape, signs=(1, -1, -1))
    ramp = (np.arange(20)[:, None, None] * 10 + tissue((1, 9, 11))).astype(np.int16)
    write_series(tmp_path, ramp, grid, skip=(7, 8))
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.values, ramp)
    assert volume.grid.same_as(grid)
    assert re.fullmatch(
        r"2 of 20 slices are missing between S \d+\.\d and S \d+\.\d mm; the gap was filled by interpolation\.",
        volume.notes[0],
    )


def test_uneven_slices_come_out_even_where_they_were(tmp_path):
    """Thin below, thick above: the thin gap is kept, and a number that grows with place still does."""
    grid = right_handed(spacing=(2.5, 1.5, 2.0))
    shape = (12, 9, 11)
    ramp = (np.arange(12)[:, None, None] * 20 + np.zeros(shape)).astype(np.int16)
    write_series(tmp_path, ramp, Grid(shape, grid.affine), skip=(5, 7, 9), intercept=0)
    volume = read(tmp_path)
    assert volume.grid.spacing[0] == pytest.approx(2.5, abs=1e-4)
    np.testing.assert_array_equal(volume.values, ramp)
    assert "2.50 to 5.00 mm apart" in volume.notes[0] or "3 of 12 slices are missing" in volume.notes[0]


def test_slightly_uneven_slices_are_left_alone(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed(), shift={2: 0.02, 4: -0.03})
    assert read(tmp_path).notes == ()


def test_mostly_missing_series_is_refused(tmp_path):
    shape = (40, 9, 11)
    write_series(tmp_path, tissue(shape), oblique_grid(shape), skip=range(3, 39))
    with pytest.raises(ReaderError, match="mm apart: about 36 of 40 are missing"):
        read(tmp_path)


def test_slice_stored_twice_counts_once(tmp_path):
    values = tissue(SHAPE)
    uid = write_series(tmp_path / "a", values, right_handed())
    write_series(tmp_path / "b", values, right_handed(), uid=uid, skip=(0, 1, 4))
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.values, values)
    assert volume.notes == ("3 slices stored twice were left out.",)


def test_two_pictures_of_one_place_are_refused_where_no_header_tells_them_apart(tmp_path):
    uid = write_series(tmp_path / "a", tissue(SHAPE), right_handed())
    write_series(tmp_path / "b", tissue(SHAPE, seed=1), right_handed(), uid=uid)
    with pytest.raises(ReaderError, match="12 images lie at 6 places, 6 of them with another picture"):
        read(tmp_path)


@pytest.mark.parametrize("tag", ["EchoNumbers", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime"])
def test_phases_of_a_series_are_offered_as_its_parts(tmp_path, tag):
    values = tissue(SHAPE)
    uid = write_series(tmp_path, values, right_handed(), modality="MR", prefix="a", **{tag: 2})
    write_series(tmp_path, values + 1, right_handed(), modality="MR", prefix="b", uid=uid, **{tag: 10})
    first, second = list_series(tmp_path)
    assert (first.part, second.part, first.slices) == (1, 2, 6)
    assert first.description.endswith(" 2")
    with pytest.raises(ReaderError, match=r"holds 2 series(.|\n)*  4:1: (.|\n)*  4:2: "):
        read(tmp_path)
    for name in ("4:2", second.name):
        np.testing.assert_array_equal(read(tmp_path, series=name).values, values + 1)
    np.testing.assert_array_equal(read(tmp_path / "b000.dcm").values, values + 1)


def test_few_images_of_another_direction_are_left_out_and_told(tmp_path):
    uid = write_series(tmp_path / "a", tissue(SHAPE), right_handed())
    write_series(tmp_path / "b", tissue((2, 9, 11)), oblique_grid((2, 9, 11), axes=(1, 2, 0)), uid=uid)
    volume = read(tmp_path)
    assert volume.grid.shape == SHAPE
    assert volume.notes == ("2 of 8 images of another size or direction were left out.",)


def test_localizer_of_three_planes_is_offered_plane_by_plane(tmp_path):
    uid = None
    for n, axes in enumerate([(2, 1, 0), (1, 2, 0), (0, 2, 1)]):
        grid = oblique_grid((3, 9, 11), degrees=(0, 0, 0), axes=axes)
        uid = write_series(tmp_path, tissue((3, 9, 11)), grid, uid=uid, prefix=str(n))
    assert {(series.plane, series.slices) for series in list_series(tmp_path)} == {
        ("axial", 3), ("coronal", 3), ("sagittal", 3),
    }  # fmt: skip
    with pytest.raises(ReaderError, match="holds 3 series"):
        read(tmp_path)


@pytest.mark.parametrize("degrees", [12.0, -20.0])
def test_tilted_gantry_is_straightened_and_a_point_stays_where_it_was(tmp_path, degrees):
    shape = (12, 30, 20)
    grid = leaning(oblique_grid(shape, spacing=(3.0, 1.0, 1.0), signs=(1, -1, -1)), degrees)
    values = np.full(shape, -1000, np.int16)
    spots = [(2, 8, 5), (9, 20, 14)]
    for k, j, i in spots:
        values[k, j - 1 : j + 2, i - 1 : i + 2] = 1000
    write_series(tmp_path, values, grid)
    volume = read(tmp_path)
    assert volume.grid.is_orthogonal
    assert volume.grid.spacing == pytest.approx([3.0, 1.0, 1.0], abs=1e-3)
    assert f"lean by {abs(degrees):.1f} degrees" in volume.notes[0]
    weights = np.clip(volume.values.astype(float) + 1000, 0, None)
    for spot in spots:
        place = grid.to_world(spot)
        near = np.argwhere(weights > 0)
        near = near[np.linalg.norm(volume.grid.to_world(near) - place, axis=1) < 5]
        share = weights[tuple(near.T)]
        found = (volume.grid.to_world(near) * share[:, None]).sum(0) / share.sum()
        np.testing.assert_allclose(found, place, atol=0.05)
        assert volume.at(place) > 500


def test_tilted_series_with_a_missing_slice_is_filled_and_straightened(tmp_path):
    shape = (12, 30, 20)
    grid = leaning(oblique_grid(shape, spacing=(3.0, 1.0, 1.0), signs=(1, -1, -1)), 15)
    field = np.round(grid.to_world(np.argwhere(np.ones(shape))) @ [3.0, 4.0, 5.0]).reshape(shape).astype(np.int16)
    write_series(tmp_path, field, grid, skip=(6,), intercept=0, modality="MR")
    volume = read(tmp_path)
    assert len(volume.notes) == 2
    inside = np.array([2, 5, 5]) + np.argwhere(np.ones((8, 20, 10)))
    places = grid.to_world(inside)
    index = volume.grid.to_index(places)
    nearest = volume.grid.to_world(np.rint(index))
    np.testing.assert_allclose(volume.at(places), nearest @ [3.0, 4.0, 5.0], atol=2)


def test_slices_beside_the_line_are_refused(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed())
    path = next(tmp_path.glob("*.dcm"))
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    across = np.array(pydicom.dcmread(path).ImageOrientationPatient[:3], float)
    changed(path, ImagePositionPatient=[f"{v:.6f}" for v in np.array([x, y, z], float) + 8 * across])
    with pytest.raises(ReaderError, match="do not follow one straight line"):
        read(tmp_path)


@pytest.mark.parametrize("phases", [1, 2])
def test_frames_of_an_enhanced_file_have_their_own_places_and_scales(tmp_path, phases):
    grid, values = right_handed(), tissue(SHAPE, BRIGHT)
    write_enhanced(tmp_path / "one.dcm", values, grid, phases)
    if phases > 1:
        with pytest.raises(ReaderError, match=r"4:1: Chest 5\.0 - time 1"):
            read(tmp_path / "one.dcm")
    volume = read(tmp_path / "one.dcm", series=None if phases == 1 else f"4:{phases}")
    assert volume.grid.same_as(grid, 1e-3)
    np.testing.assert_array_equal(volume.values, values + phases - 1)
    np.testing.assert_allclose(volume.peak(), grid.to_world(BRIGHT), atol=1e-3)


def test_rescale_differs_from_slice_to_slice(tmp_path):
    values = tissue(SHAPE)
    write_series(tmp_path, values, right_handed())
    for n, path in enumerate(sorted(tmp_path.iterdir())):
        header = pydicom.dcmread(path)
        header.RescaleIntercept = float(header.RescaleIntercept) - n
        put_pixels(header, header.pixel_array + np.array(n, np.uint16))
        header.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).values, values)


def test_numbers_are_kept_small(tmp_path):
    """Whole Hounsfield units in 16 bits; fractions in float32; never 64 bits."""
    values = np.abs(tissue(SHAPE))
    write_series(tmp_path / "ct", values, right_handed())
    write_series(tmp_path / "half", values, right_handed(), slope=0.5)
    write_series(tmp_path / "mr", values, right_handed(), modality="MR")
    ct, half, mr = (read(tmp_path / name) for name in ("ct", "half", "mr"))
    assert [volume.values.dtype for volume in (ct, half, mr)] == [np.int16, np.float32, np.uint16]
    assert [volume.modality for volume in (ct, half, mr)] == ["CT", "CT", "MR"]
    np.testing.assert_array_equal(half.values, values)
    np.testing.assert_array_equal(mr.values, values)


def test_mr_whose_bright_is_small_is_inverted_and_hounsfield_units_are_not(tmp_path):
    values = np.abs(tissue(SHAPE))
    common = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}
    write_series(tmp_path / "mr", values, right_handed(), modality="MR", **common)
    write_series(tmp_path / "ct", values, right_handed(), **common)
    np.testing.assert_array_equal(read(tmp_path / "mr").values, 4095 - values)
    assert "inverted" in read(tmp_path / "mr").notes[0]
    np.testing.assert_array_equal(read(tmp_path / "ct").values, values)


def test_numbers_of_a_ct_that_are_no_hounsfield_units_are_told(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed(), RescaleType="MGML")
    assert "does not give Hounsfield units" in read(tmp_path).notes[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compressed_slices_read_like_plain_ones(tmp_path, syntax):
    values = tissue((3, 32, 32))
    write_series(tmp_path, values, oblique_grid((3, 32, 32), signs=(1, -1, -1)))
    for path in tmp_path.iterdir():
        header = pydicom.dcmread(path)
        header.compress(syntax)
        header.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).values, values)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
                                  "MR_small_bigendian.dcm", "MR_small_implicit.dcm"])  # fmt: skip
def test_every_transfer_syntax_gives_the_pixels_of_the_plain_file(tmp_path, name):
    expected = pydicom.dcmread(shipped("MR_small.dcm")).pixel_array
    for n in range(2):
        header = pydicom.dcmread(shipped(name))
        x, y, z = header.ImagePositionPatient
        normal = np.cross(*np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float))
        header.ImagePositionPatient = [f"{v:.6f}" for v in np.array([x, y, z], float) + 5 * n * normal]
        header.SOPInstanceUID = f"1.2.{n}"
        header.save_as(tmp_path / f"{n}.dcm")
    np.testing.assert_array_equal(read(tmp_path).values, np.stack([expected, expected]))


def test_real_studies_of_a_dicomdir_are_listed_and_read():
    folder = shipped("dicomdirtests")
    series = list_series(folder / "98892001")
    assert [(one.number, one.modality, one.slices, one.plane) for one in series] == [(5, "CT", 5, "axial")]
    volume = read(folder / "98892001")
    assert volume.grid.spacing == pytest.approx([2.5, *volume.grid.spacing[1:]])
    assert volume.grid.affine[2, 3] == pytest.approx(-1.2375)
    assert list_series(folder / "98892001" / "CT5N" / "2062") == series
    whole = shipped("dicomdirtests/DICOMDIR")
    assert list_series(whole) == list_series(whole.parent)
    with pytest.raises(ReaderError, match="apart"):
        read(folder / "77654033" / "CT2")


def test_truncated_slice_is_told(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed())
    path = tmp_path / "003.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ReaderError, match=r"Series 4 .*cut short"):
        read(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    (tmp_path / "alone").mkdir()
    path.rename(tmp_path / "alone" / "one.dcm")
    with pytest.raises(ReaderError, match="damaged"):
        read(tmp_path / "alone" / "one.dcm")


def test_damaged_neighbour_is_left_out_and_told(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed())
    (tmp_path / "zz.dcm").write_bytes((tmp_path / "000.dcm").read_bytes()[:600])
    assert read(tmp_path).notes == ("1 file in the folder could not be read and was left out.",)


@pytest.mark.parametrize("enhanced", [False, True])
def test_damage_anywhere_gives_a_scan_or_plain_words(tmp_path, enhanced):
    values, grid = tissue((3, 8, 8)), oblique_grid((3, 8, 8), signs=(1, -1, -1))
    path = tmp_path / "001.dcm"
    write_enhanced(path, values, grid) if enhanced else write_series(tmp_path, values, grid)
    content = path.read_bytes()
    for seed in range(60):
        path.write_bytes(damaged(content, seed))
        with contextlib.suppress(ReaderError):
            assert min(read(tmp_path).grid.shape) >= 2


def test_odd_header_values_do_not_break_the_list(tmp_path):
    write_series(tmp_path, tissue(SHAPE), right_handed())
    for path in tmp_path.iterdir():
        changed(path, SeriesNumber=None, SeriesDescription=None)
    assert (list_series(tmp_path)[0].number, list_series(tmp_path)[0].description) == (None, "")
    assert read(tmp_path).grid.shape == SHAPE


@pytest.mark.parametrize(
    "change",
    [{"ImagePositionPatient": None}, {"PixelSpacing": None}, {"PixelSpacing": [0, 0]},
     {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}],
    ids=["no position", "no spacing", "zero spacing", "no direction"],
)  # fmt: skip
def test_images_without_a_frame_are_refused(tmp_path, change):
    write_series(tmp_path, tissue(SHAPE), right_handed())
    for path in tmp_path.iterdir():
        changed(path, **change)
    with pytest.raises(ReaderError, match="6 DICOM pictures without a place"):
        read(tmp_path)


def test_empty_folder_is_told(tmp_path):
    with pytest.raises(ReaderError, match="holds no DICOM images"):
        read(tmp_path)


def test_patient_appears_nowhere(tmp_path, caplog, capsys):
    """Not in a volume, a list, an error or a log, even where someone typed the name into the description."""
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path / "a", tissue(SHAPE), right_handed(), SeriesDescription="Knows Abdomen S3cret")
    write_series(tmp_path / "b", tissue(SHAPE), right_handed(), SeriesNumber=5, RescaleType=PATIENT)
    with pytest.raises(ReaderError) as caught:
        read(tmp_path)
    volume = read_series(tmp_path, "5")
    said = " ".join([str(caught.value), repr(list_series(tmp_path)), volume.source, *volume.notes, caplog.text,
                     *capsys.readouterr()])  # fmt: skip
    assert "Abdomen" in said
    assert not re.search("nobody|knows|s3cret", said, re.IGNORECASE)
    assert str(tmp_path) not in volume.source
    assert re.fullmatch("[0-9a-f]{16}", volume.source)


def test_same_series_in_another_folder_has_the_same_source(tmp_path):
    uid = write_series(tmp_path / "a", tissue(SHAPE), right_handed())
    write_series(tmp_path / "b", tissue(SHAPE), right_handed(), uid=uid)
    assert read(tmp_path / "a").source == read(tmp_path / "b").source
    assert uid not in read(tmp_path / "a").source


def test_slice_that_may_not_be_read_is_left_out_and_told(tmp_path, monkeypatch):
    """As where a share gives only some of its files; an administrator may read anything, so it is acted."""
    write_series(tmp_path, tissue(SHAPE), right_handed())
    first = min(tmp_path.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != first and allowed(path, mode))
    monkeypatch.setattr("MedVLMReaderLib.dicom.slices.header_of", _locked(first))
    volume = read(tmp_path)
    assert volume.grid.shape[0] == SHAPE[0] - 1
    assert volume.notes == ("1 file in the folder could not be read and was left out.",)


def _locked(path: Path):
    def header_unless_locked(other: Path):
        if other == path:
            raise ReaderError("locked")
        return header_of(other)

    return header_unless_locked
