"""NIfTI, NRRD and MetaImage: voxels and frames as SimpleITK gives them, and plain words for what cannot be read."""

import contextlib
import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.files import read
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.voxels import looks_like_ct
from Testing.made_scans import damaged, oblique_grid, tissue, write_nifti

SHAPE = (6, 9, 11)
BRIGHT = (4, 3, 8)
ENDINGS = ("nii", "nii.gz", "nrrd", "mha")
REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def image_of(values, grid) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    flat = grid.lps_affine
    image.SetSpacing(grid.spacing[::-1].tolist())
    image.SetOrigin(flat[:3, 3].tolist())
    image.SetDirection((flat[:3, :3] / grid.spacing[::-1]).ravel().tolist())
    return image


def ras_of_peak(image: sitk.Image) -> np.ndarray:
    values = sitk.GetArrayFromImage(image)
    index = np.unravel_index(int(values.argmax()), values.shape)[::-1]
    return np.array(image.TransformIndexToPhysicalPoint([int(n) for n in index])) * [-1, -1, 1]


def rows_of(grid: Grid) -> np.ndarray:
    """(3, 4) from (i, j, k, 1) to RAS, as NIfTI stores it."""
    return grid.affine[:3, [2, 1, 0, 3]]


def agrees(path: Path) -> None:
    """Our voxels and the places of the corners and the peak against SimpleITK's own."""
    volume, image = read(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.values, sitk.GetArrayFromImage(image))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.grid.shape], indexing="ij")).reshape(3, -1).T
    theirs = np.array([image.TransformIndexToPhysicalPoint(corner[::-1].tolist()) for corner in corners]) * [-1, -1, 1]
    np.testing.assert_allclose(volume.grid.to_world(corners), theirs, atol=1e-3)
    np.testing.assert_allclose(volume.peak(), ras_of_peak(image), atol=1e-3)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("degrees", "axes", "signs"),
    [
        ((0, 0, 0), (2, 1, 0), (1, 1, 1)),
        ((0, 0, 0), (2, 1, 0), (-1, -1, 1)),
        ((0, 0, 0), (0, 2, 1), (-1, 1, -1)),
        ((25, -40, 15), (2, 1, 0), (1, -1, -1)),
        ((-10, 35, 50), (1, 0, 2), (1, 1, 1)),
    ],
    ids=["plain", "flipped", "permuted", "oblique", "oblique, permuted, left-handed"],
)
def test_scan_lies_where_simpleitk_puts_it(tmp_path, ending, degrees, axes, signs):
    grid = oblique_grid(SHAPE, degrees=degrees, axes=axes, signs=signs)
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image_of(tissue(SHAPE, BRIGHT), grid), str(path), useCompression=True)
    agrees(path)
    np.testing.assert_allclose(read(path).peak(), grid.to_world(BRIGHT), atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    mirrored=st.booleans(),
)
@example(degrees=(0.0, 0.0, 1.0), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), mirrored=True)  # nearly half a turn
def test_any_frame_in_a_nifti_header_is_simpleitks(tmp_path_factory, degrees, spacing, origin, mirrored):
    grid = oblique_grid((3, 4, 5), spacing, degrees, signs=(1, 1, -1 if mirrored else 1), origin=origin)
    path = tmp_path_factory.mktemp("any") / "scan.nii"
    sitk.WriteImage(image_of(tissue((3, 4, 5), (1, 2, 3)), grid), str(path))
    agrees(path)
    raw = bytearray(path.read_bytes())
    raw[254:256] = b"\0\0"  # the quaternion alone
    path.write_bytes(raw)
    agrees(path)


@pytest.mark.parametrize(("sform", "qform"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (4, 1)])
def test_of_two_frames_in_a_nifti_header_the_one_is_taken_that_simpleitk_takes(tmp_path, sform, qform):
    path = tmp_path / "scan.nii"
    rows = rows_of(oblique_grid(SHAPE))
    write_nifti(path, tissue(SHAPE, BRIGHT), rows, sform=sform, qform=qform,
                quatern=(0.1, -0.2, 0.3, 5, 6, 7), pixdim=(-1, 2.0, 1.5, 4.0))  # fmt: skip
    agrees(path)
    told = " ".join(read(path).notes)
    assert ("do not agree" in told) == bool(sform and qform)
    assert ("left and right are not certain" in told) == (not sform and not qform)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_every_number_type_is_read_and_kept_small(tmp_path, kind, order):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    write_nifti(tmp_path / "scan.nii.gz", values, rows_of(oblique_grid((2, 3, 4))), order=order)
    volume = read(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.values, values)
    assert volume.values.dtype.itemsize <= (4 if kind[0] == "f" else 2)
    assert volume.values.dtype.isnative


@pytest.mark.parametrize(("scale", "dtype"), [((2, -1024), np.int16), ((0.5, 3), np.float32), ((0, 7), np.int16)])
def test_numbers_are_rescaled_as_the_header_says(tmp_path, scale, dtype):
    values = tissue(SHAPE)
    write_nifti(tmp_path / "scan.nii", values, rows_of(oblique_grid(SHAPE)), scale=scale)
    volume = read(tmp_path / "scan.nii")
    assert volume.values.dtype == dtype
    np.testing.assert_array_equal(volume.values, values if scale[0] == 0 else values * scale[0] + scale[1])


def test_compressed_scan_is_read_though_a_plain_one_of_the_same_name_lies_beside_it(tmp_path):
    grid = oblique_grid(SHAPE)
    write_nifti(tmp_path / "scan.nii", tissue(SHAPE), rows_of(grid))
    write_nifti(tmp_path / "scan.nii.gz", tissue(SHAPE) + 7, rows_of(grid))
    np.testing.assert_array_equal(read(tmp_path / "scan.nii.gz").values, tissue(SHAPE) + 7)


def test_nifti_of_two_files_and_of_version_two_are_read(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = tissue(SHAPE)
    affine = np.vstack([rows_of(oblique_grid(SHAPE)), [0, 0, 0, 1]])
    nibabel.Nifti1Pair(values.T, affine).to_filename(tmp_path / "pair.hdr")
    nibabel.Nifti2Image(values.T, affine).to_filename(tmp_path / "two.nii.gz")
    agrees(tmp_path / "pair.hdr")
    two = read(tmp_path / "two.nii.gz")  # SimpleITK reads no version two
    assert two.grid.same_as(oblique_grid(SHAPE))
    np.testing.assert_array_equal(two.values, values)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ReaderError, match=r"no \.img file beside it"):
        read(tmp_path / "pair.hdr")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_leaning_nifti_is_straightened_and_a_number_stays_at_its_place(tmp_path, axis):
    """SimpleITK refuses the file; a linear field must come through at every place."""
    shape = (14, 16, 18)
    grid = oblique_grid(shape, (3.0, 1.5, 2.0))
    affine = grid.affine.copy()
    affine[:3, axis] += 0.25 * grid.spacing[axis] * grid.directions[:, (axis + 1) % 3]
    grid = Grid(shape, affine)
    field = (grid.to_world(np.argwhere(np.ones(shape))) @ [1.0, 2.0, -3.0]).reshape(shape).astype(np.float32)
    write_nifti(tmp_path / "scan.nii", field, rows_of(grid), pixdim=(1, *grid.spacing[::-1]))
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "scan.nii"))
    volume = read(tmp_path / "scan.nii")
    assert volume.grid.is_orthogonal
    assert "lean by 14.0 degrees" in volume.notes[0]
    places = volume.grid.to_world(np.argwhere(np.ones(volume.grid.shape)))
    index = grid.to_index(places)
    inside = np.all((index >= 0) & (index <= np.array(shape) - 1), axis=1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(volume.values.ravel()[inside], places[inside] @ [1.0, 2.0, -3.0], atol=0.01)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    assert volume.grid.contains(grid.to_world(corners)).all()


@pytest.mark.parametrize(
    ("rows", "sform", "qform", "pixdim"),
    [
        (np.zeros((3, 4)), 1, 0, (1, 1, 1, 1)),
        (np.diag([1.0, 1, 0, 0])[:3], 1, 0, (1, 1, 1, 1)),
        (np.full((3, 4), np.nan), 1, 0, (1, 1, 1, 1)),
        (np.zeros((3, 4)), 0, 0, (1, 0, 0, 0)),
        (np.zeros((3, 4)), 0, 1, (1, 2, 0, 2)),
    ],
    ids=["zero matrix", "flat matrix", "not numbers", "zero sizes", "one zero size"],
)
def test_frame_without_volume_is_refused(tmp_path, rows, sform, qform, pixdim):
    write_nifti(tmp_path / "scan.nii", tissue(SHAPE), rows, sform=sform, qform=qform, pixdim=pixdim)
    with pytest.raises(ReaderError, match="cannot be inverted"):
        read(tmp_path / "scan.nii")


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        ("mha", b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 0"),
        ("mha", b"Matrix = 1 0 0 0 1 0 0 0 1", b"Matrix = 1 0 0 0 1 0 0 0 0"),
        ("nrrd", b"(0,1,0) (0,0,1)", b"(0,1,0) (1,0,0)"),
    ],
    ids=["zero spacing", "flat matrix", "flat directions"],
)
def test_frame_without_volume_is_refused_in_nrrd_and_mha(tmp_path, ending, old, new):
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(tissue(SHAPE)), str(path))
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ReaderError, match="cannot be inverted"):
        read(path)


def test_leaning_mha_is_straightened(tmp_path):
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.GetImageFromArray(tissue(SHAPE)), str(path))
    leaning = b"Matrix = 1 0 0 0 1 0 0.3 0 1"
    path.write_bytes(path.read_bytes().replace(b"Matrix = 1 0 0 0 1 0 0 0 1", leaning))
    volume = read(path)
    assert volume.grid.is_orthogonal
    assert "lean by 16.7 degrees" in volume.notes[0]


def test_voxel_sizes_of_zero_do_not_matter_where_the_matrix_holds(tmp_path):
    grid = oblique_grid(SHAPE)
    write_nifti(tmp_path / "scan.nii", tissue(SHAPE), rows_of(grid), pixdim=(1, 0, 0, 0))
    assert read(tmp_path / "scan.nii").grid.same_as(grid)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_truncated_file_is_told(tmp_path, ending, kept):
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image_of(tissue((20, 30, 40)), oblique_grid((20, 30, 40))), str(path), useCompression=True)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ReaderError, match="damaged or cut short"):
        read(path)


def test_damaged_compressed_file_is_told(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, tissue((20, 30, 40)), rows_of(oblique_grid((20, 30, 40))))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ReaderError, match="damaged or cut short"):
        read(path)


def test_header_that_asks_for_more_than_the_file_can_hold_is_told_before_memory_is_taken(tmp_path):
    write_nifti(
        tmp_path / "scan.nii.gz", tissue(SHAPE), rows_of(oblique_grid(SHAPE)), dim=(3, 30000, 30000, 30000, 1, 1, 1, 1)
    )
    with pytest.raises(ReaderError, match="cut short"):
        read(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_several_frames_are_counted_and_a_single_one_is_read(tmp_path, ending):
    path = str(tmp_path / f"scan.{ending}")
    frames = [image_of(tissue(SHAPE, BRIGHT, seed), oblique_grid(SHAPE)) for seed in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), path)
    with pytest.raises(
        ReaderError, match=r"holds 3 (volumes in a row|values a voxel).* Extract one|colours or vectors"
    ):
        read(path)
    sitk.WriteImage(sitk.JoinSeries(frames[:1]), path)
    volume = read(path)
    np.testing.assert_array_equal(volume.values, sitk.GetArrayFromImage(frames[0]))
    np.testing.assert_allclose(volume.peak(), oblique_grid(SHAPE).to_world(BRIGHT), atol=1e-3)


@pytest.mark.parametrize("ending", ENDINGS)
def test_colours_and_vectors_are_refused(tmp_path, ending):
    path = str(tmp_path / f"scan.{ending}")
    for kind in (np.uint8, np.float32):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5, 6, 3), kind), isVector=True), path)
        with pytest.raises(ReaderError, match=r"colours|a voxel"):
            read(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_slice_is_refused(tmp_path, ending):
    path = tmp_path / f"scan.{ending}"
    for shape in ((1, 9, 11), (9, 1, 11)):
        sitk.WriteImage(sitk.GetImageFromArray(tissue((9, 9, 11))[: shape[0], : shape[1]]), str(path))
        with pytest.raises(ReaderError, match="only 1 slice; a volume needs at least 2"):
            read(path)
    sitk.WriteImage(sitk.GetImageFromArray(tissue((9, 9, 11))[0]), str(path))
    with pytest.raises(ReaderError, match="only 1 slice; a volume needs at least 2"):
        read(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_voxels_that_are_no_numbers_become_the_lowest_and_are_counted(tmp_path, ending):
    path = str(tmp_path / f"scan.{ending}")
    values = np.random.default_rng(0).normal(5, 1, SHAPE).astype(np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    sitk.WriteImage(sitk.GetImageFromArray(values), path)
    volume = read(path)
    lowest = values[np.isfinite(values)].min()
    np.testing.assert_array_equal(volume.values, np.where(np.isfinite(values), values, lowest))
    assert any(note.startswith("3 of 594 voxels were not numbers") for note in volume.notes)
    values[:4] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values), path)
    with pytest.raises(ReaderError, match="of 594 voxels are not numbers"):
        read(path)


def test_numbers_beyond_single_precision_count_as_infinite(tmp_path):
    values = np.arange(24.0).reshape(2, 3, 4)
    values[1, 1, 1] = 1e300
    write_nifti(tmp_path / "scan.nii", values, rows_of(oblique_grid((2, 3, 4))))
    assert read(tmp_path / "scan.nii").notes[0].startswith("1 of 24 voxels were not numbers")


@pytest.mark.parametrize("ending", ENDINGS)
def test_constant_picture_is_refused(tmp_path, ending):
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.full(SHAPE, 7, np.int16)), str(path))
    with pytest.raises(ReaderError, match="same value, 7"):
        read(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "scan.dcm", "scan.png", "scan"])
def test_file_that_is_no_scan_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not a scan" * 40)
    with pytest.raises(ReaderError, match=re.escape(str(tmp_path / name)) + "' is not"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ReaderError, match="is empty"):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_anywhere_gives_a_scan_or_plain_words(tmp_path, ending):
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image_of(tissue((3, 8, 8)), oblique_grid((3, 8, 8))), str(path))
    content = path.read_bytes()
    for seed in range(60):
        path.write_bytes(damaged(content, seed))
        with contextlib.suppress(ReaderError):
            assert min(read(path).grid.shape) >= 2


def test_damaged_compressed_beginning_is_told(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(b"x" * 1000)[:15])
    with pytest.raises(ReaderError, match="is not NIfTI or its header is damaged"):
        read(tmp_path / "scan.nii.gz")


def test_missing_path_is_told(tmp_path):
    with pytest.raises(ReaderError, match="does not exist"):
        read(tmp_path / "nowhere.nii")
    with pytest.raises(ReaderError, match="does not exist"):
        read("x" * 5000)


def test_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "scan.nii").write_bytes(b"x")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read anything
    for place in (tmp_path / "scan.nii", tmp_path):
        with pytest.raises(ReaderError, match="may not be read"):
            read(place)


def test_series_of_a_file_that_is_not_dicom_is_refused(tmp_path):
    write_nifti(tmp_path / "scan.nii", tissue(SHAPE), rows_of(oblique_grid(SHAPE)))
    with pytest.raises(ReaderError, match="has no series"):
        read(tmp_path / "scan.nii", series="2")


def test_source_is_opaque_and_changes_with_the_file(tmp_path):
    path = tmp_path / "Nobody.nii"
    write_nifti(path, tissue(SHAPE), rows_of(oblique_grid(SHAPE)))
    first = read(path).source
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert read(str(path)).source == first
    os.utime(path, (1, 1))
    assert read(path).source != first


def test_saved_volume_is_read_back(tmp_path, oblique_ct):
    for ending in ENDINGS:
        oblique_ct.save(tmp_path / f"scan.{ending}")
        volume = read(tmp_path / f"scan.{ending}")
        assert volume.grid.same_as(oblique_ct.grid)
        np.testing.assert_array_equal(volume.values, oblique_ct.values)
        assert volume.modality == "CT"


def test_ct_is_told_by_its_numbers():
    rng = np.random.default_rng(0)
    shape = (20, 40, 40)
    body = np.where(rng.random(shape) < 0.4, rng.normal(-1000, 30, shape), rng.normal(30, 60, shape))
    padded = body.copy()
    padded[:, :8, :8] = -3024
    assert looks_like_ct(body.astype(np.int16))
    assert looks_like_ct(body.astype(np.float32))
    assert looks_like_ct(padded.astype(np.int16))
    assert not looks_like_ct(np.abs(body).astype(np.int16))  # magnitudes
    assert not looks_like_ct(rng.integers(-4096, 4096, shape).astype(np.int16))  # phase
    assert not looks_like_ct(rng.normal(0, 1, shape).astype(np.float32))  # standardised
    assert not looks_like_ct(np.full(shape, -1000, np.int16))  # air alone


@pytest.mark.parametrize("name", ["CT_pitch.nii.gz", "MR_Gd.nii.gz"])
def test_real_scan_agrees_with_simpleitk(name):
    if not (REAL / name).exists():
        pytest.skip(f"no {name} in a folder shared/data beside the repository")
    agrees(REAL / name)
    volume = read(REAL / name)
    assert volume.modality == ""  # eight-bit grey levels and MR: neither has Hounsfield units
