"""The scene of 3D Slicer as the reader needs it: volumes out of it, what the slice views show, and jumps.

The scene is always handed in; nothing here knows the application around it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.mrml import (
    ROLE,
    Node,
    array_from,
    at_once,
    below,
    made,
    matrix_from,
    nodes,
    own_affine,
    to_world,
    voxels,
)
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.volume import PLANES, Modality, PlaneName, View, Volume, default_view
from MedVLMReaderLib.voxels import MIN_SLICES, looks_like_ct, narrowed

_HOUNSFIELD = "[hnsf'U]"
MASKS = "masks"
"""The role of segmentations that a network drew."""
LABELMAP = "Binary labelmap"
"""What Slicer calls a picture of label values."""


# Volumes


def volume_from(node: Node) -> Volume:
    """The voxels of a volume node and their place in the patient, a linear transform above it included.

    The voxels are the node's own, not a copy. Raises ReaderError for what is no scan that can be read.
    """
    check_readable(node)
    values = narrowed(voxels(node))
    grid = Grid(values.shape, world_affine(node))
    if not grid.is_orthogonal:
        raise ReaderError(
            f"The axes of '{node.GetName()}' do not stand at right angles. Resample it (module Resample Image) and "
            "choose the result."
        )
    return Volume(values, grid, modality_of(node, values), source=str(node.GetID()))


def check_readable(node: Node) -> None:
    """Raise ReaderError where the node is no scan: none, a label map, colours, empty, or bent by a transform."""
    if node is None:
        raise ReaderError("There is no volume to read. Load a CT or MR scan, or choose one.")
    name, image = node.GetName(), node.GetImageData() if node.IsA("vtkMRMLVolumeNode") else None
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise ReaderError(f"'{name}' is a label map. Choose the scan that it was drawn on.")
    if not node.IsA("vtkMRMLScalarVolumeNode") or (image and image.GetNumberOfScalarComponents() != 1):
        raise ReaderError(f"'{name}' is no grey-valued scan. Choose a CT or MR volume.")
    if node.GetAttribute(ROLE):
        raise ReaderError(f"'{name}' is a heatmap of MedVLM Reader. Choose the scan itself.")
    if image is None or image.GetPointData().GetScalars() is None:
        raise ReaderError(f"'{name}' has no voxels. Load it again, or choose another volume.")
    if min(image.GetDimensions()) < MIN_SLICES:
        raise ReaderError(f"'{name}' has a single slice; a volume of at least {MIN_SLICES} is needed. Choose another.")
    if not is_straight(node):
        raise ReaderError(
            f"'{name}' lies under a transform that bends it. Harden the transform (module Transforms), "
            "or take the volume out from under it."
        )


def is_straight(node: Node) -> bool:
    """Whether all transforms above a node are linear."""
    above = node.GetParentTransformNode()
    return above is None or bool(above.IsTransformToWorldLinear())


def world_affine(node: Node) -> Array:
    """(4, 4) from index (k, j, i, 1) to (r, a, s, 1) in the patient, the linear transforms above the node included."""
    return np.asarray(to_world(node) @ own_affine(node))


def grid_of(node: Node) -> Grid:
    """A volume node's box in the patient."""
    columns, rows, count = node.GetImageData().GetDimensions()
    return Grid((count, rows, columns), world_affine(node))


def stamp(node: Node) -> tuple[int, bytes]:
    """Changes with a volume node's voxels or their place."""
    return int(node.GetImageData().GetMTime()), world_affine(node).tobytes()


def scans(scene: Node) -> list[Node]:
    """The scene's grey-valued volumes, our heatmaps left out."""
    found = nodes(scene, "vtkMRMLScalarVolumeNode")
    return [one for one in found if not one.IsA("vtkMRMLLabelMapVolumeNode") and not one.GetAttribute(ROLE)]


def modality_of(node: Node, values: Array) -> Modality:
    """As DICOM or the voxels' unit says; else CT where the numbers look like it, "" where they do not."""
    tree = node.GetScene() and node.GetScene().GetSubjectHierarchyNode()
    item = tree.GetItemByDataNode(node) if tree else 0
    said = (tree.GetItemAttribute(item, "DICOM.Modality") if item else "") or node.GetAttribute("DICOM.Modality")
    units = node.GetVoxelValueUnits()
    if said == "CT" or (units and units.GetCodeValue() == _HOUNSFIELD):
        return "CT"
    if said in ("MR", "PT", "NM", "US"):
        return "MR" if said == "MR" else ""
    return "CT" if looks_like_ct(values) else ""


# Masks


def add_masks(scene: Node, scan: Node, labels: Array, classes: Sequence[str]) -> Node:
    """A segmentation node below a scan, with a segment for each class that is there.

    `labels` (k, j, i): of each of the scan's own voxels the number of its class, 0 for nothing; a segment's label value
    is that number. Raises ReaderError where the labels have another shape than the scan.
    """
    if labels.shape != voxels(scan).shape:
        raise ReaderError(f"The masks have {labels.shape} voxels, '{scan.GetName()}' has {voxels(scan).shape}.")
    node = made(scene, MASKS, "vtkMRMLSegmentationNode", f"{scan.GetName()}: masks of a network")
    with at_once(node):
        node.SetReferenceImageGeometryParameterFromVolumeNode(scan)
        node.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
        _fill(node.GetSegmentation(), labels, classes, matrix_from(own_affine(scan)[:, [2, 1, 0, 3]]))
    below(scene, scan, node)
    return node


def _fill(segmentation: Node, labels: Array, classes: Sequence[str], place: Node) -> None:
    """Empty segments share one picture of label values, which is then filled in once."""
    there = [n for n in np.unique(labels).tolist() if 0 < n < len(classes)]
    segmentation.SetSourceRepresentationName(LABELMAP)
    for n in there:
        colour = list(colorsys.hsv_to_rgb(n * 0.618 % 1, 0.65, 0.95))  # neighbours in the list far apart in hue
        segment = segmentation.GetSegment(segmentation.AddEmptySegment("", classes[n], colour))
        segment.SetLabelValue(n)
    if not there:
        return
    picture = segment.GetRepresentation(LABELMAP)
    kept = np.where(np.isin(labels, there), labels, 0).astype(np.uint8)
    picture.SetExtent(0, kept.shape[2] - 1, 0, kept.shape[1] - 1, 0, kept.shape[0] - 1)
    picture.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(kept).ravel(), deep=True))
    picture.SetImageToWorldMatrix(place)
    for n in range(len(there)):
        segmentation.GetNthSegment(n).AddRepresentation(LABELMAP, picture)


# What the screen shows


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice view's plane."""

    node: Node
    middle: Array
    """(r, a, s) of the middle of the view."""
    normal: Array
    """(r, a, s) unit vector across the plane."""

    @property
    def name(self) -> PlaneName:
        """The plane of the body that it lies nearest to."""
        return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(self.normal)))]


def composites(scene: Node) -> list[Node]:
    """What says which volumes each slice view shows."""
    return list(nodes(scene, "vtkMRMLSliceCompositeNode"))


def shows(composite: Node, volume: Node) -> bool:
    """Whether a view shows a volume, behind or in front."""
    return volume.GetID() in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID())


def displayed(scene: Node) -> Node | None:
    """The scan that the slice views show behind everything, the first of them that can be read; None without one."""
    for composite in composites(scene):
        volume = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        if volume is not None and volume.IsA("vtkMRMLScalarVolumeNode") and not volume.GetAttribute(ROLE):
            return volume
    return None


def slices(scene: Node, volume: Node | None = None) -> list[Slice]:
    """The planes of the slice views, of those alone that show `volume` where there is one."""
    planes = []
    for node in nodes(scene, "vtkMRMLSliceNode"):
        composite = _composite_of(scene, node)
        if volume is None or (composite is not None and shows(composite, volume)):
            matrix = array_from(node.GetSliceToRAS())
            planes.append(Slice(node, matrix[:3, 3], matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])))
    return planes


def _composite_of(scene: Node, view: Node) -> Node | None:
    named = (one for one in composites(scene) if one.GetLayoutName() == view.GetLayoutName())
    return next(named, None)


def cursor(scene: Node, volume: Node, grid: Grid) -> tuple[float, float, float]:
    """(r, a, s) where the planes that show a volume cross, moved onto the scan where they cross beside it.

    Along directions that no plane fixes, the middle of the first view; without a view, the middle of the scan.
    """
    planes = slices(scene, volume)
    if not planes:
        place = grid.centre
    else:
        normals = np.array([plane.normal for plane in planes])
        away = np.sum(normals * (np.array([plane.middle for plane in planes]) - planes[0].middle), axis=1)
        place = planes[0].middle + np.linalg.lstsq(normals, away, rcond=1e-6)[0]
    index = np.clip(grid.to_index(place), 0, np.array(grid.shape) - 1)
    r, a, s = (float(x) for x in grid.to_world(index))
    return r, a, s


def view_of(scene: Node, node: Node, volume: Volume) -> View:
    """What the screen shows of a volume: its grey window, and where the planes cross."""
    place, display = cursor(scene, node, volume.grid), node.GetScalarVolumeDisplayNode()
    if display is None or display.GetWindow() <= 0:
        usual = default_view(volume)
        return View(usual.window, usual.level, place)
    return View(float(display.GetWindow()), float(display.GetLevel()), place)


def place_of_slice(scene: Node, volume: Node, grid: Grid, plane: str) -> Place:
    """The slice of a plane on the screen, at the cursor. Raises ReaderError where no view shows that plane."""
    if plane not in PLANES:
        raise ReaderError(f"No plane '{plane}'. Planes: {', '.join(PLANES)}.")
    if plane not in {one.name for one in slices(scene, volume)}:
        raise ReaderError(
            f"No view shows '{volume.GetName()}' as {plane} slices. Show it, or ask about the whole scan."
        )
    return Place(cursor(scene, volume, grid), plane)


def place_of_region(region: Node) -> Place:
    """The box along the patient's axes around a markups ROI. Raises ReaderError where it is none or not placed."""
    if region is None or not region.IsA("vtkMRMLMarkupsROINode"):
        raise ReaderError("There is no region to ask about. Draw a region of interest (ROI) and choose it.")
    bounds = [0.0] * 6
    region.GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    if not np.isfinite(bounds).all() or (high <= low).any():
        raise ReaderError(f"The region '{region.GetName()}' has no size yet. Draw it first.")
    (r, a, s), (width, depth, height) = (low + high) / 2, high - low
    return Place((float(r), float(a), float(s)), size_mm=(float(width), float(depth), float(height)))


def jump(scene: Node, ras: Array, volume: Node | None = None) -> None:
    """Move the planes of the slice views, of those alone that show `volume` where there is one, onto a place."""
    r, a, s = (float(x) for x in ras)
    for plane in slices(scene, volume):
        if abs(float(plane.normal @ (np.array([r, a, s]) - plane.middle))) > 1e-3:
            plane.node.JumpSliceByOffsetting(r, a, s)
    for crosshair in nodes(scene, "vtkMRMLCrosshairNode"):  # seen where the user has it switched on
        crosshair.SetCrosshairRAS(r, a, s)
