"""Exported objects in Slicer's own readers: what the core reads of them, it reads as it was meant, and where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib.export.source import source_of
from MedVLMReaderLib.export.writing import Draft, export
from MedVLMReaderLib.report import report_of
from Testing.made_readings import reading_of, write_scan
from Testing.slicer.core import SlicerCore


@dataclass(frozen=True)
class Exported:
    draft: Draft
    files: dict[str, Path]


def exported(folder: Path, kinds: Sequence[str], **how: Any) -> Exported:
    reading = reading_of(write_scan(folder / "scan", **how))
    draft = Draft(report_of(reading), reading, source_of(reading, folder / "scan"), words=1)
    return Exported(draft, {path.name: path for path in export(draft, kinds, folder / "out")})


def opened(core: SlicerCore, path: Path, kind: str) -> Any:
    """The node of a file as Slicer's volume reader (GDCM) reads it; None where it does not."""
    node = core.scene.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode")
    reader = core.slicer.vtkMRMLVolumeArchetypeStorageNode()
    reader.SetFileName(str(path))
    reader.SetSingleFile(True)
    return node if reader.ReadData(node) and node.GetImageData() else None


def voxels(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """(k, j, i, ...) values and the 4x4 from (i, j, k) to RAS."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    image, matrix = node.GetImageData(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    across, down, deep = image.GetDimensions()
    placed = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    return values.reshape(deep, down, across, *values.shape[1:]), placed


def test_key_images_have_their_colours(core: SlicerCore, tmp_path: Path) -> None:
    found = exported(tmp_path, ["sc"])
    for name, (_, pixels) in zip(sorted(found.files), found.draft.pictures, strict=True):
        values, _ = voxels(opened(core, found.files[name], "Vector"))
        rows, columns = pixels.shape[:2]
        np.testing.assert_array_equal(values.reshape(rows, columns, 3), pixels)


@pytest.mark.parametrize(
    ("axes", "signs"), [((2, 1, 0), (-1, 1, -1)), ((1, 2, 0), (1, -1, 1)), ((0, 2, 1), (-1, -1, -1))]
)
def test_the_marked_region_lies_where_the_heatmap_is_high(
    core: SlicerCore, tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    shape = (7, 8, 12)  # a multiple of 8: GDCM leaves the last bits of an incomplete byte as they come
    found = exported(tmp_path, ["seg"], axes=axes, signs=signs, shape=shape)
    values, placed = voxels(opened(core, found.files["attention-region.dcm"], "Scalar"))
    marked = np.argwhere(values > 0)[:, ::-1]
    places = (np.c_[marked, np.ones(len(marked))] @ placed.T)[:, :3]
    heat, grid = found.draft.reading.heatmap(1), found.draft.source.volume.grid
    world = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    expected = world[np.nan_to_num(heat.at(world)) >= 0.5 * heat.values.max()]
    assert len(places) == len(expected) > 0
    assert max(np.linalg.norm(expected - place, axis=1).min() for place in places) <= 0.1


def test_reports_and_maps_are_not_taken_for_pictures(core: SlicerCore, tmp_path: Path) -> None:
    """Structured reports, PDF and floating-point maps are for other readers than the core's; it says so."""
    found = exported(tmp_path, ["sr", "dicom-pdf", "pmap"])
    assert [opened(core, path, "Scalar") for path in found.files.values()] == [None] * 3
