"""A heatmap on the slice views: a layer of its own over what they show, its colour legend, and its curves as nodes.

The scalar volume under the scan is what is kept; what the views blend is a hidden picture with opacity, made from it.
Foreground, label layer, window and links of the views are never touched. Nothing is remembered here: our nodes are
found by their attribute each time, so that a closed, loaded or merged scene cannot leave a stale pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from MedVLMReaderLib.curves import CURVE
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.mrml import (
    SOURCE,
    Node,
    at_once,
    below,
    first,
    made,
    only,
    ours,
    own_affine,
    put_voxels,
    remove,
    voxels,
)
from MedVLMReaderLib.pictures import LARGEST, colours
from MedVLMReaderLib.scene import composites, shows
from MedVLMReaderLib.volume import Volume

HEAT, PICTURE, LEGEND, TABLE = "attention", "overlay", "legend", "colours"
FIRST_LAYER = 3
"""Background, foreground and label come before; Slicer counts further layers from here."""
ALPHA = 0
"""The way of mixing layers that knows further ones; adding and subtracting do not."""
TITLE = "Attention"
LEGEND_SIZE = 0.055, 0.32
"""Of the view, across and up: small enough to leave the scan alone."""


@dataclass(frozen=True)
class Look:
    """How a heatmap is drawn."""

    opacity: float = 1.0
    threshold: float = 1.0
    """Times an even spread over all cells below which nothing is drawn."""


# The heatmap itself


def show(scene: Node, scan: Node, times: Volume, look: Look, about: Mapping[str, str], moved: Array) -> list[str]:
    """Lay a heatmap over the views that show `scan`; the sentences to tell where one could not.

    `times`: (k, j, i) as times an even spread, in the patient as it was read; `moved` (4, 4) the transform above the
    scan then, so that the heatmap goes wherever the scan goes. `about`: what is kept with it, by name.
    """
    heat = only(scene, HEAT, "vtkMRMLScalarVolumeNode", "Attention")
    put_voxels(heat, times.values, np.linalg.solve(moved, times.grid.affine))
    heat.SetNodeReferenceID(SOURCE, scan.GetID())
    heat.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
    for name, value in about.items():
        heat.SetAttribute(f"MedVLM.{name}", value)
    below(scene, scan, heat)
    _coloured(scene, heat)
    _draw(scene, heat, look)
    _add_legend(scene)
    return refresh(scene, look)


def restyle(scene: Node, look: Look) -> None:
    """Draw the heatmap with another opacity and threshold; also what a loaded scene lacks of it."""
    heat = shown(scene)
    if heat is not None:
        _draw(scene, heat, look)
        _add_legend(scene)
        refresh(scene, look)


def shown(scene: Node) -> Node | None:
    """The heatmap's scalar volume; None where there is none."""
    return first(ours(scene, HEAT, "vtkMRMLScalarVolumeNode"))


def hide(scene: Node) -> None:
    """Take heatmap, legend and curves out of views and scene; everything else stays as it was."""
    drop_layer(scene)
    for role in (CURVE, LEGEND, PICTURE, HEAT, TABLE):
        remove(scene, ours(scene, role))


def drop_layer(scene: Node) -> None:
    """Take what is only drawn off the views, as before a scene is saved; `restyle` brings it back."""
    for picture in ours(scene, PICTURE):
        for composite in composites(scene):
            _take_off(composite, picture)


def refresh(scene: Node, look: Look) -> list[str]:
    """The heatmap on those views alone that show its scan now; the sentences to tell where it cannot be."""
    heat, picture = shown(scene), first(ours(scene, PICTURE))
    scan = heat.GetNodeReference(SOURCE) if heat is not None else None
    if scan is None or picture is None:
        return []
    fitting = [one for one in composites(scene) if shows(one, scan)]
    mixed = [one for one in fitting if one.GetCompositing() == ALPHA]
    for composite in composites(scene):
        if composite in mixed:
            _lay(composite, picture, look.opacity)
        else:
            _take_off(composite, picture)
    for legend in ours(scene, LEGEND, "vtkMRMLColorLegendDisplayNode"):
        legend.SetVisibility(bool(mixed) and look.opacity > 0)
    return list(_trouble(scan, fitting, mixed))


def _trouble(scan: Node, fitting: list[Node], mixed: list[Node]) -> Iterable[str]:
    if not fitting:
        yield f"No slice view shows '{scan.GetName()}'; show it to see the heatmap."
    for composite in fitting:
        if composite not in mixed:
            name = composite.GetLayoutName()
            yield f"View {name} adds or subtracts its layers; set it to Alpha blending to see the heatmap there."


# Layers


def _index(composite: Node, picture: Node) -> int | None:
    for n in range(FIRST_LAYER, FIRST_LAYER + composite.GetNumberOfAdditionalLayers()):
        if composite.GetNthLayerVolumeID(n) == picture.GetID():
            return n
    return None


def _lay(composite: Node, picture: Node, opacity: float) -> None:
    n = _index(composite, picture)
    with at_once(composite):
        if n is None:
            n = FIRST_LAYER + composite.GetNumberOfAdditionalLayers()
            composite.SetNthLayerVolumeID(n, picture.GetID())
        if composite.GetNthLayerOpacity(n) != opacity:
            composite.SetNthLayerOpacity(n, opacity)


def _take_off(composite: Node, picture: Node) -> None:
    """Without our layer; those above it move down and take their opacities with them, which Slicer leaves behind."""
    n = _index(composite, picture)
    if n is None:
        return
    last = FIRST_LAYER + composite.GetNumberOfAdditionalLayers() - 1
    opacities = [composite.GetNthLayerOpacity(above) for above in range(n + 1, last + 1)]
    with at_once(composite):
        composite.SetNthLayerVolumeID(n, None)
        for place, opacity in enumerate([*opacities, 1.0], n):
            composite.SetNthLayerOpacity(place, opacity)


# Nodes


def _draw(scene: Node, heat: Node, look: Look) -> None:
    """The hidden picture of the heatmap's colours; cells under the threshold are clear."""
    picture = only(scene, PICTURE, "vtkMRMLVectorVolumeNode", "Attention overlay", kept=False)
    times = voxels(heat)
    put_voxels(picture, colours(np.where(times >= look.threshold, times, 0)), own_affine(heat))
    if picture.GetTransformNodeID() != heat.GetTransformNodeID():
        picture.SetAndObserveTransformNodeID(heat.GetTransformNodeID())
    display = picture.GetDisplayNode()
    if display.GetInterpolate():
        display.SetInterpolate(False)  # a cell is a cell: between two of them the model saw nothing


def _coloured(scene: Node, heat: Node) -> None:
    """The heatmap's own colours, the same as the overlay's, for whoever shows it as a volume."""
    display, table = heat.GetDisplayNode(), colour_table(scene)
    if display.GetColorNodeID() != table.GetID():
        display.SetAndObserveColorNodeID(table.GetID())
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(1.0, LARGEST)
        display.SetInterpolate(False)


def colour_table(scene: Node) -> Node:
    """Colours for 1 to LARGEST times even, in 256 equal steps."""
    known = first(ours(scene, TABLE, "vtkMRMLColorTableNode"))
    if known is not None:
        return known
    table = made(scene, TABLE, "vtkMRMLColorTableNode", "Attention colours")
    table.SetHideFromEditors(True)
    table.SetTypeToUser()
    table.SetNumberOfColors(256)
    steps = np.linspace(1.0, LARGEST, 256)
    for n, (times, rgba) in enumerate(zip(steps, colours(steps) / 255.0, strict=True)):
        table.SetColor(n, f"{times:.1f}", float(rgba[0]), float(rgba[1]), float(rgba[2]), 1.0)
    return table


def _add_legend(scene: Node) -> None:
    """A colour bar in the views. Slicer draws none for a further layer, so that a hidden, empty model carries it."""
    if ours(scene, LEGEND, "vtkMRMLColorLegendDisplayNode"):
        return
    table, carrier = colour_table(scene), only(scene, LEGEND, "vtkMRMLModelNode", "Attention legend", kept=False)
    display = carrier.GetDisplayNode()
    display.SetAndObserveColorNodeID(table.GetID())
    display.SetScalarVisibility(True)
    display.SetScalarRangeFlag(0)  # the range is ours
    display.SetScalarRange(1.0, LARGEST)
    display.SetVisibility2D(True)
    legend = only(scene, LEGEND, "vtkMRMLColorLegendDisplayNode", "Attention legend", kept=False)
    carrier.AddAndObserveDisplayNodeID(legend.GetID())
    legend.SetAndObservePrimaryDisplayNode(display)
    legend.SetAndObserveColorNodeID(table.GetID())
    legend.SetTitleText(TITLE)
    legend.SetLabelFormat("%.0f")
    legend.SetSize(*LEGEND_SIZE)  # the texts are made to fit: a size of letters would not be heeded
    legend.SetPosition(0.98, 0.5)
    legend.SetVisibility2D(True)
    legend.SetVisibility3D(False)
