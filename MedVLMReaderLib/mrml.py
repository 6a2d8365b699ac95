"""Nodes of a 3D Slicer scene: found by what they are for, made once, put below a scan, removed whole.

The scene is always handed in; nothing here knows the application around it. Nodes are MRML's, which have no types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from MedVLMReaderLib.geometry import Array

Node = Any
"""A node of the scene, or the scene itself."""
ROLE = "MedVLM.role"
"""The attribute that tells our nodes from everybody else's, and what each is for."""
SOURCE = "MedVLM.source"
"""The role under which our nodes refer to the scan that they are about."""


def nodes(scene: Node, kind: str) -> Iterator[Node]:
    """The scene's nodes of a class and of those derived from it, in their order."""
    found = scene.GetNodesByClass(kind)
    found.UnRegister(None)
    yield from [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]


def ours(scene: Node, role: str, kind: str = "vtkMRMLNode") -> list[Node]:
    """Our nodes of a role."""
    return [node for node in nodes(scene, kind) if node.GetAttribute(ROLE) == role]


def first(found: Iterable[Node]) -> Node | None:
    """The first, None where there is none."""
    return next(iter(found), None)


def made(scene: Node, role: str, kind: str, name: str, *, kept: bool = True) -> Node:
    """A new node of ours. `kept`: saved with the scene, and shown in lists."""
    node = scene.CreateNodeByClass(kind)
    node.UnRegister(None)
    node.SetName(name)
    node.SetAttribute(ROLE, role)
    node.SetHideFromEditors(not kept)
    node.SetSaveWithScene(kept)
    scene.AddNode(node)
    if node.IsA("vtkMRMLDisplayableNode"):
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(kept)
    return node


def only(scene: Node, role: str, kind: str, name: str, *, kept: bool = True) -> Node:
    """Our one node of a role, made where there is none."""
    return first(ours(scene, role, kind)) or made(scene, role, kind, name, kept=kept)


def below(scene: Node, parent: Node, node: Node) -> None:
    """Put a node under another in the subject hierarchy."""
    tree = scene.GetSubjectHierarchyNode()
    above = tree.GetItemByDataNode(parent) or tree.CreateItem(tree.GetSceneItemID(), parent)
    item = tree.GetItemByDataNode(node)
    if item:
        tree.SetItemParent(item, above)
    else:
        tree.CreateItem(above, node)


def remove(scene: Node, gone: Iterable[Node]) -> None:
    """Remove nodes with all that came with them: how they are displayed, where they were saved, their place in the
    hierarchy."""
    tree = scene.GetSubjectHierarchyNode()
    for node in gone:
        for one in [node, *_beside(node)]:
            if one.GetScene() is None:
                continue
            item = tree.GetItemByDataNode(one) if tree else 0
            if item:
                tree.RemoveItem(item, False, False)
            scene.RemoveNode(one)


def _beside(node: Node) -> list[Node]:
    found = []
    if node.IsA("vtkMRMLDisplayableNode"):
        found += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        found += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    return [one for one in found if one is not None]


@contextmanager
def at_once(node: Node) -> Iterator[None]:
    """Changes that observers are told of once, at the end."""
    before = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(before)


# Voxels and matrices


def voxels(node: Node) -> Array:
    """(k, j, i) of a volume node of one number a voxel: its own memory, not a copy."""
    image = node.GetImageData()
    columns, rows, slices = image.GetDimensions()
    return np.asarray(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(slices, rows, columns))


def put_voxels(node: Node, values: Array, affine: Array) -> None:
    """Give a volume node (k, j, i) numbers, or (k, j, i, parts), and their place: (k, j, i, 1) to its own (r, a, s)."""
    shape = values.shape
    flat = np.ascontiguousarray(values).reshape(int(np.prod(shape[:3])), -1)
    image = vtkImageData()
    image.SetDimensions(shape[2], shape[1], shape[0])
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    with at_once(node):
        node.SetIJKToRASMatrix(matrix_from(affine[:, [2, 1, 0, 3]]))
        node.SetAndObserveImageData(image)


def own_affine(node: Node) -> Array:
    """(4, 4) from a volume node's index (k, j, i, 1) to its own (r, a, s, 1), before any transform above it."""
    matrix = vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return array_from(matrix)[:, [2, 1, 0, 3]]


def to_world(node: Node) -> Array:
    """(4, 4) from a node's own (r, a, s, 1) to the patient's, by the linear transforms above it."""
    matrix, above = vtkMatrix4x4(), node.GetParentTransformNode()
    if above is not None:
        above.GetMatrixTransformToWorld(matrix)
    return array_from(matrix)


def array_from(matrix: vtkMatrix4x4) -> Array:
    """(4, 4) float64."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrix_from(array: Array) -> vtkMatrix4x4:
    """VTK's matrix of (4, 4) numbers."""
    matrix = vtkMatrix4x4()
    matrix.DeepCopy([float(x) for x in array.ravel()])
    return matrix
