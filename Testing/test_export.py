"""DICOM and FHIR objects: valid, read back, in their place, on the right patient; and every source that is refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from MedVLMReaderLib import ReaderError, dicom
from MedVLMReaderLib.export.fhir import diagnostic_report
from MedVLMReaderLib.export.source import files_of, source_of
from MedVLMReaderLib.export.sr_back import report_from
from MedVLMReaderLib.export.writing import DICOM, KINDS, Draft, export, files
from MedVLMReaderLib.listing import listed
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.report import BANNER, report_of
from Testing.made_readings import SECRETS, WHO, reading_of, write_scan
from Testing.made_scans import changed, oblique_grid, tissue, write_enhanced

# What dciodvfy says that is no error of ours.
FALSE_ALARMS = {
    "Unrecognized defined term = <99MEDVLM>": "our own coding scheme; PS3.16 8.2 lets private ones begin with 99",
    "Unrecognized defined term = <QUANTITY>": "PS3.3 C.8.32.3.1.4 has it for parametric maps; the tool is of 2022",
    "is only permitted to be empty when actually unknown": "Laterality: which part is paired is unknown, and without "
    "the empty attribute the tool reports an error",
}


def complaints(path: Path) -> list[str]:
    """What dciodvfy says of a file, without the false alarms."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is missing (Debian's dicom3tools)")
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not any(known in line for known in FALSE_ALARMS)]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scan")
    return tmp_path / "scan"


@pytest.fixture
def reading(scan: Path) -> Reading:
    return reading_of(dicom.read_series(scan))


@pytest.fixture
def draft(reading: Reading, scan: Path) -> Draft:
    report = replace(report_of(reading), listed=listed(reading))
    return Draft(
        report.edited("Impression", "Kein Stein: größer µ 日本.\nSecond line."), reading, source_of(reading, scan)
    )


def test_every_object_is_valid_and_on_the_right_patient_and_study(draft, tmp_path):
    for path in export(draft, DICOM, tmp_path / "out"):
        found = pydicom.dcmread(path)
        assert complaints(path) == [], path.name
        assert {tag: str(found[tag].value) for tag in WHO} == WHO
        assert found.StudyInstanceUID == draft.source.study_uid
        assert found.SeriesInstanceUID != draft.source.first.SeriesInstanceUID
        assert BANNER in found.SeriesDescription
        assert found.SpecificCharacterSet == "ISO_IR 192"


def test_the_same_export_is_the_same_objects_and_an_edit_makes_others(draft):
    again = files(draft, DICOM)
    assert again == files(replace(draft), DICOM)
    other = files(replace(draft, report=draft.report.edited("Impression", "Other.")), DICOM)

    def uids(made):
        return {str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID) for content in made.values()}

    assert not uids(again) & uids(other)
    assert len(uids(again)) == len(again)


def test_a_report_comes_back_from_its_structured_report(draft, tmp_path):
    path, *_ = export(draft, ["sr", "sc"], tmp_path)
    document = highdicom.sr.srread(path)
    assert report_from(document) == draft.report
    assert (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag) == (
        "PARTIAL", "UNVERIFIED", "PRELIMINARY",
    )  # fmt: skip
    assert "not for clinical use" in str(document)
    with pytest.raises(ReaderError, match="not written by"):
        report_from(pydicom.Dataset())


@pytest.mark.parametrize(
    ("axes", "signs"), [((2, 1, 0), (-1, 1, -1)), ((1, 2, 0), (1, -1, 1)), ((0, 2, 1), (-1, -1, -1))]
)
def test_heatmap_objects_lie_where_the_heatmap_lies(tmp_path, axes, signs):
    volume = write_scan(tmp_path / "scan", axes, signs)
    reading = reading_of(volume)
    draft = Draft(report_of(reading), reading, source_of(reading, tmp_path / "scan"), words=1)
    paths = export(draft, ["pmap", "seg"], tmp_path / "out")
    heat = reading.heatmap(1)
    kept = highdicom.imread(paths[0]).get_volume(apply_real_world_transform=False)
    _same_places(kept, heat.grid, heat.values)
    marked = highdicom.seg.segread(paths[1]).get_volume(combine_segments=True)
    high = np.zeros(volume.grid.shape)
    places = volume.grid.to_world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))
    at = heat.at(places)
    high[np.nan_to_num(at) >= 0.5 * heat.values.max()] = 1
    assert high.any()
    found = _ras(marked, np.argwhere(marked.array))
    expected = places[high > 0]
    assert len(found) == len(expected)
    for place in found:
        assert np.linalg.norm(expected - place, axis=1).min() < 0.1


def _ras(volume, index):
    places = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return places * [-1, -1, 1]


def _same_places(kept, grid, values):
    index = np.argwhere(np.ones(kept.array.shape))
    places = _ras(kept, index)
    nearest = grid.to_index(places)
    assert np.abs(grid.to_world(np.rint(nearest)) - places).max() < 0.1
    k, j, i = np.rint(nearest).astype(int).T
    np.testing.assert_array_equal(kept.array[tuple(index.T)], values[k, j, i])
    assert len({tuple(one) for one in np.rint(nearest).astype(int)}) == values.size


def test_the_core_of_slicer_reads_the_key_images(draft, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    (path,) = [one for one in export(draft, ["sc"], tmp_path) if "01" in one.name]
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # GDCM, as in Slicer's core
    np.testing.assert_array_equal(picture.reshape(480, 1200, 3), draft.pictures[0][1])


def test_the_pdf_comes_out_of_its_object_as_it_went_in(draft, tmp_path):
    (path,) = export(draft, ["dicom-pdf"], tmp_path)
    found = pydicom.dcmread(path)
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == draft.pdf


def test_a_multi_frame_source_has_its_region_in_the_same_place(tmp_path):
    grid = oblique_grid()
    tmp_path.joinpath("scan").mkdir()
    path = tmp_path / "scan" / "one.dcm"
    write_enhanced(path, tissue(grid.shape), grid)
    changed(path, StudyInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid(), **WHO)
    reading = reading_of(dicom.read_series(path.parent))
    draft = Draft(report_of(reading), reading, source_of(reading, path.parent))
    made = export(draft, ["sr", "seg"], tmp_path / "out")
    assert pydicom.dcmread(made[0]).PatientID == WHO["PatientID"]
    marked = highdicom.seg.segread(made[1]).get_volume(combine_segments=True)
    places = _ras(marked, np.argwhere(marked.array))
    heat = reading.heatmap()
    assert (heat.at(places) >= 0.5 * heat.values.max()).all()
    assert np.abs(np.rint(grid.to_index(places)) - grid.to_index(places)).max() < 0.05


def test_fhir_says_text_conclusion_and_images_and_names_nobody(draft):
    found = json.loads(diagnostic_report(draft.report, draft.source, draft.captures, draft.pdf, "Patient/17"))
    assert found["status"] == "preliminary"
    assert found["conclusion"].endswith("Second line.")
    assert BANNER in found["text"]["div"]
    assert found["meta"]["security"][0]["code"] == "AIAST"
    study = next(one for one in found["contained"] if one["resourceType"] == "ImagingStudy")
    assert study["identifier"][0]["value"] == f"urn:oid:{draft.source.study_uid}"
    uids = {one["uid"] for series in study["series"] for one in series["instance"]}
    assert {str(one.SOPInstanceUID) for one in (*draft.source.headers, *draft.captures)} <= uids
    sizes = [one["component"][0]["valueQuantity"]["value"] for one in found["contained"] if "component" in one]
    assert sizes == [7.0]
    assert not any(secret in json.dumps(found) for secret in SECRETS)
    with pytest.raises(ReaderError, match="Patient/17"):
        diagnostic_report(draft.report, subject="Jane Doe")


def test_nothing_but_dicom_names_the_patient(draft, tmp_path, caplog, capfd):
    made = files(draft, KINDS)
    for name, content in made.items():
        if not name.endswith(".dcm"):
            for secret in SECRETS:
                assert secret.encode() not in content, (name, secret)
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(secret in said for secret in SECRETS)


def refused(reading: Reading, place: object) -> str:
    with pytest.raises(ReaderError) as error:
        source_of(reading, place)
    assert not any(secret in str(error.value) for secret in SECRETS)
    return str(error.value)


def test_a_source_that_is_gone_is_refused(reading, scan, tmp_path):
    assert "is not there" in refused(replace(reading, preparation={"study": "x", "sources": ["y"]}), scan)
    shutil.rmtree(scan)
    assert "does not exist" in refused(reading, scan)
    (tmp_path / "empty").mkdir()
    assert "no DICOM images" in refused(reading, tmp_path / "empty")


def test_a_source_that_was_anonymised_differently_is_refused(reading, scan):
    for path in scan.iterdir():
        changed(path, SeriesInstanceUID="1.2.3.4", PatientID="ANON", PatientName="Anon")
    assert "anonymised differently" in refused(reading, scan)


def test_a_source_of_two_patients_is_refused(reading, scan):
    for keyword, value in (("PatientID", "MRN-2"), ("PatientName", "Roe^Jane"), ("StudyInstanceUID", "1.2.3"),
                           ("FrameOfReferenceUID", "1.2.3"), ("AccessionNumber", None)):  # fmt: skip
        path = sorted(scan.iterdir())[2]
        before = pydicom.dcmread(path).get(keyword)
        changed(path, **{keyword: value})
        assert f"disagree on {keyword}" in refused(reading, scan)
        changed(path, **{keyword: before})
    source_of(reading, scan)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PatientID": ""}, "no Patient ID"), ({"PatientID": None}, "no Patient ID"),
        ({"PatientID": "  "}, "no Patient ID"),
        ({"StudyInstanceUID": None}, "no valid StudyInstanceUID"), ({"StudyInstanceUID": "1.b.3"}, "no valid Study"),
    ],
)  # fmt: skip
def test_a_source_by_which_nothing_can_be_filed_is_refused(reading, scan, tags, message):
    for path in scan.iterdir():
        changed(path, **tags)
    assert message in refused(reading, scan)


def test_a_source_with_other_voxels_or_in_another_place_is_refused(reading, scan):
    for path in scan.iterdir():
        changed(path, RescaleIntercept="-1000")
    assert "not those that were read" in refused(reading, scan)
    for path in scan.iterdir():
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        changed(path, RescaleIntercept="-1024", ImagePositionPatient=[x, y, f"{float(z) + 0.5:.6f}"])
    assert "lies elsewhere" in refused(reading, scan)


def test_a_source_that_is_not_dicom_is_refused(reading, tmp_path):
    path = tmp_path / "scan.nii.gz"
    dicom.read_series(tmp_path / "scan").save(path)
    assert "is not DICOM" in refused(reading, path)
    with pytest.raises(ReaderError, match="Name the DICOM series"):
        files(Draft(report_of(reading), reading), ["sr"])
    assert files(Draft(report_of(reading), reading), ["text", "fhir", "pdf", "markdown"])


def test_heatmap_objects_need_a_frame_of_reference_and_a_report_does_not(tmp_path):
    volume = write_scan(tmp_path / "scan", FrameOfReferenceUID="")
    reading = reading_of(volume)
    draft = Draft(report_of(reading), reading, source_of(reading, tmp_path / "scan"))
    assert files(draft, ["sr", "dicom-pdf"])
    with pytest.raises(ReaderError, match="no frame of reference"):
        files(draft, ["seg"])


def test_a_scene_finds_its_source_by_the_instance_uids_that_it_keeps(reading, scan):
    known = {str(pydicom.dcmread(path).SOPInstanceUID): str(path) for path in scan.iterdir()}
    source = source_of(reading, files_of(known, known.__getitem__))
    assert source.identity.PatientID == WHO["PatientID"]
    with pytest.raises(ReaderError, match="not loaded from DICOM"):
        files_of([], known.__getitem__)
    with pytest.raises(ReaderError, match="1 of 7 DICOM files"):
        files_of([*known, "1.2"], lambda uid: known.get(uid, ""))


def test_a_very_long_report_is_exported_whole(scan, reading, tmp_path):
    report = report_of(reading).edited("Findings", "The liver is normal. \n" * 20000)
    draft = Draft(report, reading, source_of(reading, scan))
    (path,) = export(draft, ["sr"], tmp_path / "out")
    assert complaints(path) == []
    assert report_from(pydicom.dcmread(path)) == report


def test_all_or_nothing_is_written(draft, tmp_path):
    with pytest.raises(ReaderError, match="no kind"):
        export(draft, ["sr", "song"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    empty = replace(draft, report=draft.report.edited("Findings", "").edited("Impression", ""))
    with pytest.raises(ReaderError, match="no words"):
        export(empty, ["sr"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
