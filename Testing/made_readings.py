"""A DICOM series on disk and a reading of it, for tests of what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import generate_uid

from MedVLMReaderLib import dicom
from MedVLMReaderLib.reading import Reading, Trace
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid, tissue, write_series

TEXT = (
    "Findings: Axial CT with contrast. Stone of 7 mm in the right kidney. The spleen is normal.\n"
    "Impression: Stone in the right kidney."
)
WHO = {
    "PatientName": "Doe^Jane Quincy", "PatientID": "MRN-00417", "PatientBirthDate": "19530709", "PatientSex": "F",
    "AccessionNumber": "ACC-9931", "StudyDate": "20240229", "StudyTime": "101112", "StudyID": "77",
    "ReferringPhysicianName": "House^Gregory", "StudyDescription": "CT thorax", "PatientAge": "070Y",
}  # fmt: skip
SECRETS = ("Doe", "Quincy", "MRN-00417", "19530709", "ACC-9931", "House", "Gregory")


def write_scan(
    folder: Path, axes: Sequence[int] = (2, 1, 0), signs: Sequence[int] = (-1, 1, -1),
    shape: tuple[int, int, int] = (6, 9, 11), **tags: Any,
) -> Volume:  # fmt: skip
    """A turned and flipped CT series of one patient; the volume that the reader makes of it."""
    grid = oblique_grid(shape, axes=axes, signs=signs)
    who = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "SliceThickness": "4", **WHO}
    write_series(folder, tissue(grid.shape), grid, **{**who, **tags})
    return dicom.read_series(folder)


def reading_of(volume: Volume, text: str = TEXT, model: str = "built-in", **fields: Any) -> Reading:
    """A reading with a heatmap a sentence on coarse cells of the volume, as the command line keeps it."""
    cells = volume.grid.resize((3, 5, 3))  # no voxel lies on a border of two cells
    reading = Reading(
        "Describe the findings.", text, True, (), (cells,), model, "5e8dbd489162", options={"precision": "fp32"},
        boxes=(volume.grid,), preparation={"study": volume.key, "sources": [volume.source]},
        notes=("This model has learned from made studies only.",), created="2026-02-03T04:05:06+00:00", **fields,
    )  # fmt: skip
    weights = np.random.default_rng(1).random((len(reading.sentences), reading.cells)).astype(np.float32) ** 6
    return replace(reading, traces=(Trace("relevance", reading.sentences, weights),))
