"""What tests compare before and after: what belongs to the user, which nodes there are, which pixels differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from MedVLMReaderLib.mrml import ROLE, nodes

Pixels = NDArray[Any]


def changed(before: Pixels, after: Pixels) -> Pixels:
    """(rows, columns) where a pixel is clearly another."""
    return np.abs(before.astype(int) - after.astype(int)).sum(2) > 24


def census(scene: Any) -> set[tuple[str, str]]:
    """Class and ID of every node."""
    return {(node.GetClassName(), node.GetID()) for node in nodes(scene, "vtkMRMLNode")}


def everything_of_the_user(scene: Any) -> list[Any]:
    """Volumes of all layers but ours, opacities, links, blending, windows and colours, in the order of the scene."""
    mine = {node.GetID() for node in nodes(scene, "vtkMRMLVolumeNode") if node.GetAttribute(ROLE)}
    found: list[Any] = []
    for one in nodes(scene, "vtkMRMLSliceCompositeNode"):
        others = range(3, 3 + one.GetNumberOfAdditionalLayers())
        found.append((
            one.GetLayoutName(), one.GetBackgroundVolumeID(), one.GetForegroundVolumeID(), one.GetLabelVolumeID(),
            one.GetForegroundOpacity(), one.GetLabelOpacity(), one.GetLinkedControl(), one.GetHotLinkedControl(),
            one.GetCompositing(),
            [(one.GetNthLayerVolumeID(n), one.GetNthLayerOpacity(n)) for n in others
             if one.GetNthLayerVolumeID(n) not in mine],
        ))  # fmt: skip
    for volume in nodes(scene, "vtkMRMLScalarVolumeNode"):
        display = volume.GetDisplayNode()
        if display is not None and volume.GetID() not in mine and hasattr(display, "GetWindow"):
            found.append((
                volume.GetID(), display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel(),
                display.GetColorNodeID(), display.GetInterpolate(), display.GetApplyThreshold(),
                volume.GetNumberOfDisplayNodes(), volume.GetTransformNodeID(),
            ))  # fmt: skip
    return found
