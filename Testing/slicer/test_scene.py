"""Volumes out of the scene, what the views show, and jumps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.mrml import matrix_from
from MedVLMReaderLib.scene import (
    add_masks,
    cursor,
    displayed,
    jump,
    place_of_region,
    place_of_slice,
    slices,
    view_of,
    volume_from,
)
from Testing.made_scans import turn
from Testing.slicer.core import SlicerCore


def linear(core: SlicerCore, matrix: Any) -> Any:
    node = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(matrix_from(matrix))
    return node


def test_a_volume_comes_out_with_its_voxels_and_exact_place(core: SlicerCore, ct: Any, grid: Grid) -> None:
    volume = volume_from(ct)
    assert volume.grid.shape == grid.shape
    assert np.abs(volume.grid.affine - grid.affine).max() < 1e-12
    assert volume.values.dtype == np.int16
    assert volume.values[3, 2, 1] == -1000
    assert volume.modality == "CT"
    assert "chest" not in volume.source


def test_a_linear_transform_moves_the_volume_that_is_read_and_not_the_node(
    core: SlicerCore, ct: Any, grid: Grid
) -> None:
    first, second = np.eye(4), np.eye(4)
    first[:3, :3], first[:3, 3] = turn((20, 5, -30)), (10, -20, 30)
    second[:3, 3] = (0, 0, 100)
    above, top = linear(core, first), linear(core, second)
    above.SetAndObserveTransformNodeID(top.GetID())
    ct.SetAndObserveTransformNodeID(above.GetID())
    moved = volume_from(ct)
    assert np.abs(moved.grid.affine - second @ first @ grid.affine).max() < 1e-9
    assert ct.GetTransformNodeID() == above.GetID()


def test_a_transform_that_bends_is_refused_with_what_to_do(core: SlicerCore, ct: Any) -> None:
    import vtk

    spline = vtk.vtkThinPlateSplineTransform()
    points, there = vtk.vtkPoints(), vtk.vtkPoints()
    for n, place in enumerate(np.eye(4)[:, :3] * 50):
        points.InsertNextPoint(place)
        there.InsertNextPoint(place + n)
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(there)
    node = core.scene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(spline)
    ct.SetAndObserveTransformNodeID(node.GetID())
    with pytest.raises(ReaderError, match=r"'CT chest' lies under a transform that bends it. Harden"):
        volume_from(ct)


def test_a_transform_that_shears_is_refused(core: SlicerCore, ct: Any) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.3
    ct.SetAndObserveTransformNodeID(linear(core, shear).GetID())
    with pytest.raises(ReaderError, match="right angles"):
        volume_from(ct)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("LabelMap", (4, 5, 6), "is a label map. Choose the scan"),
        ("Vector", (4, 5, 6, 3), "no grey-valued scan"),
        ("Scalar", (1, 5, 6), "a single slice"),
    ],
)
def test_what_is_no_scan_is_refused(core: SlicerCore, kind: str, shape: tuple[int, ...], said: str) -> None:
    node = core.volume(np.zeros(shape, np.uint8), np.eye(4), "thing", kind)
    with pytest.raises(ReaderError, match=said):
        volume_from(node)


def test_no_volume_and_an_empty_one_are_refused(core: SlicerCore) -> None:
    with pytest.raises(ReaderError, match=r"There is no volume to read. Load"):
        volume_from(None)
    with pytest.raises(ReaderError, match="'empty' has no voxels"):
        volume_from(core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))


def test_the_modality_is_the_one_of_dicom_where_the_scene_knows_it(core: SlicerCore, ct: Any) -> None:
    tree = core.scene.GetSubjectHierarchyNode()
    tree.SetItemAttribute(tree.CreateItem(tree.GetSceneItemID(), ct), "DICOM.Modality", "MR")
    assert volume_from(ct).modality == "MR"


def test_the_view_is_the_window_and_the_place_where_the_planes_cross(core: SlicerCore, ct: Any, grid: Grid) -> None:
    place = grid.to_world((4.3, 20.2, 11.7))
    jump(core.scene, place, ct)
    view = view_of(core.scene, ct, volume_from(ct))
    assert (view.window, view.level) == (300, 50)
    assert np.abs(np.array(view.cursor_ras) - place).max() < 1e-3
    assert [plane.name for plane in slices(core.scene, ct)] == ["axial", "coronal", "sagittal"]


def test_planes_that_cross_beside_the_scan_mean_its_nearest_voxel(core: SlicerCore, ct: Any, grid: Grid) -> None:
    jump(core.scene, grid.to_world((100, 15, 20)))
    assert grid.contains(cursor(core.scene, ct, grid))


def test_without_a_view_of_it_a_scan_is_looked_at_in_its_middle(core: SlicerCore, ct: Any, grid: Grid) -> None:
    core.show(None)
    assert np.allclose(cursor(core.scene, ct, grid), grid.centre)


def test_the_displayed_volume_is_what_lies_behind(core: SlicerCore, ct: Any, grid: Grid) -> None:
    pet = core.volume(np.ones((4, 5, 6), np.float32), grid.resize((4, 5, 6)).affine, "PET")
    core.show(ct, pet)
    assert displayed(core.scene).GetID() == ct.GetID()
    core.show(None)
    assert displayed(core.scene) is None


def test_a_jump_moves_only_the_views_that_show_the_scan(core: SlicerCore, ct: Any, grid: Grid) -> None:
    other = core.volume(np.ones((4, 5, 6), np.float32), grid.resize((4, 5, 6)).affine, "other")
    core.views["Green"].composite.SetBackgroundVolumeID(other.GetID())
    before = core.views["Green"].node.GetSliceOffset()
    jump(core.scene, grid.to_world((2, 3, 4)), ct)
    assert core.views["Green"].node.GetSliceOffset() == before


def test_a_slice_on_the_screen_is_a_place_to_ask_about(core: SlicerCore, ct: Any, grid: Grid) -> None:
    jump(core.scene, grid.to_world((4, 20, 11)), ct)
    place = place_of_slice(core.scene, ct, grid, "coronal")
    assert place.plane == "coronal"
    assert place.about(volume_from(ct)).startswith("About coronal slice")
    core.show(None)
    with pytest.raises(ReaderError, match="No view shows 'CT chest' as coronal slices"):
        place_of_slice(core.scene, ct, grid, "coronal")


def test_a_region_is_the_box_around_the_roi_as_it_lies(core: SlicerCore) -> None:
    region = core.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    region.SetCenter(10, 20, 30)
    region.SetSize(10, 20, 40)
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 5)
    region.SetAndObserveTransformNodeID(linear(core, shift).GetID())
    place = place_of_region(region)
    assert np.allclose(place.ras, (10, 20, 35))
    assert np.allclose(place.size_mm, (10, 20, 40))
    with pytest.raises(ReaderError, match="no region to ask about"):
        place_of_region(None)


# ---- Masks ----------------------------------------------------------------------------------------------------------


def test_masks_become_segments_that_lie_where_their_voxels_lie(core: SlicerCore, ct: Any, grid: Grid) -> None:
    labels = np.zeros(grid.shape, np.uint8)
    labels[3:6, 20:25, 5:9], labels[9:12, 4:8, 30:33] = 1, 3
    node = add_masks(core.scene, ct, labels, ["background", "liver", "spleen", "stone"])
    segmentation = node.GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
    assert names == ["liver", "stone"]
    for n, value in ((0, 1), (1, 3)):
        place = node.GetSegmentCenterRAS(segmentation.GetNthSegmentID(n))
        expected = grid.to_world(np.argwhere(labels == value).mean(0))
        assert np.abs(np.array(place) - expected).max() < 4  # Slicer takes a voxel near the middle
        assert segmentation.GetNthSegment(n).GetLabelValue() == value
    tree = core.scene.GetSubjectHierarchyNode()
    assert tree.GetItemParent(tree.GetItemByDataNode(node)) == tree.GetItemByDataNode(ct)


def test_masks_of_another_shape_are_refused_and_nothing_found_is_no_segment(
    core: SlicerCore, ct: Any, grid: Grid
) -> None:
    with pytest.raises(ReaderError, match="has"):
        add_masks(core.scene, ct, np.zeros((2, 3, 4), np.uint8), ["background", "liver"])
    node = add_masks(core.scene, ct, np.zeros(grid.shape, np.uint8), ["background", "liver"])
    assert node.GetSegmentation().GetNumberOfSegments() == 0
