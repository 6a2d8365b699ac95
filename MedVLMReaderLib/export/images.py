"""Pictures and heatmaps as DICOM: secondary captures, a parametric map, and a segmentation of where attention is high.

The parametric map has the heatmap's own cells; the segmentation has the source's own slices, so that viewers can lay it
over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.made import common, device, local, references, short, stamp
from MedVLMReaderLib.export.source import Source
from MedVLMReaderLib.geometry import LPS, Array, Grid
from MedVLMReaderLib.heatmap import shared
from MedVLMReaderLib.pictures import LARGEST
from MedVLMReaderLib.report import BANNER, Report
from MedVLMReaderLib.volume import Volume

ATTENTION = "Attention, not a finding."


# ---- Secondary captures ---------------------------------------------------------------------------------------------


def secondary_captures(report: Report, source: Source, pictures: Sequence[tuple[str, Array]]) -> tuple[Any, ...]:
    """One series of key images: `pictures` are words and (rows, columns, 3) uint8."""
    return tuple(_capture(report, source, words, pixels, n) for n, (words, pixels) in enumerate(pictures, 1))


def _capture(report: Report, source: Source, words: str, pixels: Array, number: int) -> Any:
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    shared_by_all = common(report, "sc", source.study_uid, number, words)
    image: Any = SCImage(
        np.ascontiguousarray(pixels), "RGB", 8, "PATIENT", study_instance_uid=source.study_uid,
        patient_orientation=("L", "P"), transfer_syntax_uid=ExplicitVRLittleEndian,
        **{**shared_by_all, "instance_number": number},
    )  # fmt: skip
    stamp(image, report, "sc")
    image.PatientOrientation = None  # three planes in one picture
    image.BurnedInAnnotation = "NO"  # words of the model, none that tell who the patient is
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD"
    image.Laterality = None
    moment = local(report.provenance.created)
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    image.DerivationDescription = f"Heatmap of {report.provenance.model} over three planes. {ATTENTION}"[:1024]
    image.ImageComments = f"{BANNER}. {ATTENTION} {words}".replace("\n", "\r\n")[:10240]
    image.SourceImageSequence = references(source.headers)
    return image


# ---- Heatmaps -------------------------------------------------------------------------------------------------------


def parametric_map(report: Report, source: Source, heat: Volume, words: str) -> Any:
    """The heatmap's shares in its own cells. ReaderError where the source has no frame, or the cells lean."""
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    _check_frame(source)
    uniform = 1 / heat.values.size
    values = np.ascontiguousarray(heat.values, np.float32)
    meaning = RealWorldValueMapping(
        "share", short("Share of the attention for some words"), codes.UCUM.NoUnits,
        (float(values.min()), float(values.max())), slope=1.0, intercept=0.0,
    )  # fmt: skip
    window = VOILUTTransformation(uniform * (1 + LARGEST) / 2, uniform * (LARGEST - 1), voi_lut_function="LINEAR_EXACT")
    image = ParametricMap(
        list(source.headers), values, **common(report, "pmap", source.study_uid, words), **device(report),
        contains_recognizable_visual_features=False, real_world_value_mappings=[meaning],
        voi_lut_transformations=[window],
        content_description=short(f"{ATTENTION} {words}"), content_label="ATTENTION", **_places(heat.grid),
    )  # fmt: skip
    stamp(image, report, "pmap")
    image.Laterality = None
    image.ImageComments = f"{BANNER}. {ATTENTION} {words}"[:10240]
    return image


def segmentation(report: Report, source: Source, heat: Volume, words: str, least: float = 0.5) -> Any:
    """The source's pixels whose cell has at least `least` of the heatmap's largest share.

    ReaderError where the source has no frame, or no pixel of it is so high.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    _check_frame(source)
    masks = np.stack([_high(heat, grid, least) for header in source.headers for grid in frames(header)])
    if not masks.any():
        raise ReaderError("The heatmap is highest outside the source's slices; there is nothing to mark in them.")
    said = report.provenance
    algorithm = AlgorithmIdentificationSequence(
        short(said.model), codes.cid7162.ArtificialIntelligence, short(said.revision) or "unknown"
    )
    segment = SegmentDescription(
        1, short(f"Attention of {said.model}, not a finding"), codes.SCT.SpatialAndRelationalConcept,
        codes.DCM.ImageRegion, SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
    )  # fmt: skip
    image = _segmentation(report, source, masks, segment, SegmentationTypeValues.BINARY, words)
    stamp(image, report, "seg")
    image.ImageComments = f"{BANNER}. {ATTENTION} At least {least:g} of the largest share. {words}"[:10240]
    return image


def _segmentation(report: Report, source: Source, masks: Array, segment: Any, kind: Any, words: str) -> Any:
    from highdicom.seg import Segmentation

    return Segmentation(
        list(source.headers), masks.astype(np.uint8), kind, [segment],
        **common(report, "seg", source.study_uid, words), **device(report),
        content_description=short(f"{ATTENTION} {words}"), content_label="ATTENTION",
    )  # fmt: skip


def _check_frame(source: Source) -> None:
    if not source.first.get("FrameOfReferenceUID"):
        raise ReaderError("The source has no frame of reference: nothing can be laid over it. Export a report instead.")


def frames(header: Any) -> list[Grid]:
    """The place of each picture of a file, as grids of one slice, in the order of its frames."""
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [_frame(header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing, header)]
    common_groups = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    return [_frame_of(group, common_groups, header) for group in groups]


def _frame_of(group: Any, all_of_them: Any, header: Any) -> Grid:
    def value(sequence: str, keyword: str) -> Any:
        owner = group if sequence in group else all_of_them
        return owner[sequence].value[0][keyword].value

    return _frame(
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        value("PixelMeasuresSequence", "PixelSpacing"),
        header,
    )


def _frame(position: Any, turn: Any, spacing: Any, header: Any) -> Grid:
    across, down = np.array(turn[:3], float), np.array(turn[3:], float)
    affine = np.eye(4)
    affine[:3, 0] = np.cross(across, down)
    affine[:3, 1], affine[:3, 2] = down * float(spacing[0]), across * float(spacing[1])
    affine[:3, 3] = np.array(position, float)
    return Grid((1, int(header.Rows), int(header.Columns)), LPS @ affine)


def _high(heat: Volume, grid: Grid, least: float) -> Array:
    """(rows, columns) bool: the nearest cell, where there is one, is high."""
    mask = np.zeros(grid.shape, bool)
    region, nearest, inside = shared(heat.grid, grid)
    mask[region] = inside & (heat.values[nearest] >= least * heat.values.max())
    return mask[0]


def _places(grid: Grid) -> dict[str, Any]:
    """A grid as highdicom has it: one orientation, and a position for each of its slices."""
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence

    flat = LPS @ grid.affine
    across, down = flat[:3, 2] / grid.spacing[2], flat[:3, 1] / grid.spacing[1]
    if abs(across @ down) > 1e-4:
        raise ReaderError("The heatmap's cells lean; DICOM holds only rows and columns at right angles.")
    positions = [(flat @ [k, 0, 0, 1])[:3] for k in range(grid.shape[0])]
    thick = abs(float(np.cross(across, down) @ flat[:3, 0]))
    spacing = float(np.linalg.norm(flat[:3, 0]))
    return {
        "plane_orientation": PlaneOrientationSequence("PATIENT", [*map(float, across), *map(float, down)]),
        "plane_positions": [PlanePositionSequence("PATIENT", [*map(float, place)]) for place in positions],
        "pixel_measures": PixelMeasuresSequence(
            [float(grid.spacing[1]), float(grid.spacing[2])], slice_thickness=thick, spacing_between_slices=spacing
        ),
    }


# ---- The report's PDF -----------------------------------------------------------------------------------------------


def encapsulated(report: Report, source: Source, pdf: bytes) -> Any:
    """The PDF inside DICOM. It names nobody; the object around it does."""
    from highdicom import SOPClass
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

    document = SOPClass(
        study_instance_uid=source.study_uid, sop_class_uid=EncapsulatedPDFStorage, modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian, **common(report, "dicom-pdf", source.study_uid, len(pdf)),
    )  # fmt: skip
    stamp(document, report, "dicom-pdf")
    document.ConversionType = "WSD"
    document.BurnedInAnnotation = "NO"
    document.AcquisitionDateTime = local(report.provenance.created).strftime("%Y%m%d%H%M%S")
    document.DocumentTitle = short(f"{BANNER}: report")
    document.ConceptNameCodeSequence = [_title()]
    document.VerificationFlag = "UNVERIFIED"
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.SourceInstanceSequence = references(source.headers)
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    document.EncapsulatedDocumentLength = len(pdf)
    return document


def _title() -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
