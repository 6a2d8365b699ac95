"""How a heatmap is shared among the slices of each plane, as Slicer's tables and plots, and as a small picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkIOImage import vtkPNGWriter

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.mrml import SOURCE, Node, below, first, made, ours, remove
from MedVLMReaderLib.slices import Curve

CURVE = "curve"
COLOURS = ((0.79, 0.51, 0.04), (0.18, 0.49, 0.72), (0.30, 0.60, 0.30))
COORDINATES = {"axial": "S", "coronal": "A", "sagittal": "R"}


def put_curves(scene: Node, scan: Node, curves: Sequence[Curve]) -> Node:
    """A table and a line for each plane, in one chart under the scan; those of an older heatmap go. The chart."""
    remove(scene, ours(scene, CURVE))
    chart = made(scene, CURVE, "vtkMRMLPlotChartNode", "Attention by slice")
    chart.SetTitle("Attention by slice")
    chart.SetXAxisTitle("mm")
    chart.SetYAxisTitle("share")
    for curve, colour in zip(curves, COLOURS, strict=True):
        table = _table(scene, curve)
        line = made(scene, CURVE, "vtkMRMLPlotSeriesNode", f"{curve.plane} slices")
        line.SetAndObserveTableNodeID(table.GetID())
        line.SetXColumnName(_column(curve))
        line.SetYColumnName("share")
        line.SetPlotType(line.PlotTypeScatter)
        line.SetMarkerStyle(line.MarkerStyleNone)
        line.SetColor(*colour)
        chart.AddAndObservePlotSeriesNodeID(line.GetID())
        for node in (table, line):
            _belongs(scene, scan, node)
    _belongs(scene, scan, chart)
    return chart


def chart_of(scene: Node) -> Node | None:
    """The chart of the shown heatmap; None where there is none."""
    return first(ours(scene, CURVE, "vtkMRMLPlotChartNode"))


def _belongs(scene: Node, scan: Node, node: Node) -> None:
    node.SetNodeReferenceID(SOURCE, scan.GetID())
    below(scene, scan, node)


def _column(curve: Curve) -> str:
    return f"{COORDINATES[curve.plane]} (mm)"


def _table(scene: Node, curve: Curve) -> Node:
    table = made(scene, CURVE, "vtkMRMLTableNode", f"Attention by {curve.plane} slice")
    for name, numbers in ((_column(curve), curve.places_mm), ("share", curve.shares)):
        column = numpy_to_vtk(np.ascontiguousarray(numbers, np.float64), deep=True)
        column.SetName(name)
        table.AddColumn(column)
    return table


def drawn(curve: Curve, size: tuple[int, int] = (90, 220)) -> bytes:
    """A curve as a PNG of (rows, columns): slices across, their shares up, filled."""
    rows, columns = size
    across = np.linspace(curve.places_mm[0], curve.places_mm[-1], columns)
    heights = np.interp(across, curve.places_mm, curve.shares) / max(float(curve.shares.max()), 1e-12) * (rows - 4)
    under = np.arange(rows)[::-1, None] <= heights
    picture = np.where(under[..., None], np.array([0.93, 0.70, 0.25]), 1.0)
    return png((picture * 255).astype(np.uint8))


def png(picture: Array) -> bytes:
    """(rows, columns, 3) uint8 as a PNG file."""
    rows, columns, parts = picture.shape
    image, writer = vtkImageData(), vtkPNGWriter()
    image.SetDimensions(columns, rows, 1)
    flat = np.ascontiguousarray(picture[::-1]).reshape(-1, parts)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=VTK_UNSIGNED_CHAR))
    writer.WriteToMemoryOn()
    writer.SetInputData(image)
    writer.Write()
    return bytes(vtk_to_numpy(writer.GetResult()))
