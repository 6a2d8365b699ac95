"""A heatmap over the slice views, and nothing of the user's changed by it. Pixels of the three rendered views tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib.curves import chart_of, drawn, put_curves
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.mrml import ROLE, matrix_from, nodes, to_world, voxels
from MedVLMReaderLib.overlay import Look, drop_layer, hide, refresh, restyle, show, shown
from MedVLMReaderLib.scene import jump
from MedVLMReaderLib.slices import slice_curves
from MedVLMReaderLib.volume import Volume
from Testing.slicer.core import SlicerCore
from Testing.slicer.looks import census, changed, everything_of_the_user

NOTHING_MOVED, USUAL = np.eye(4), Look()
CELLS = (4, 5, 6)
HOT = (1, 3, 2)


@pytest.fixture
def heat(grid: Grid) -> Volume:
    """One hot cell of 4 x 5 x 6, twenty times what an even spread would give it."""
    values = np.full(CELLS, 0.5, np.float32)
    values[HOT] = 20
    return Volume(values, grid.resize(CELLS))


def laid(core: SlicerCore, scan: Any, heat: Volume, look: Look = USUAL) -> list[str]:
    jump(core.scene, heat.grid.to_world(HOT), scan)
    return show(core.scene, scan, heat, look, {"model": "built-in"}, NOTHING_MOVED)


def test_the_hot_cell_is_coloured_on_all_three_views_and_grey_again_without(
    core: SlicerCore, ct: Any, heat: Volume
) -> None:
    jump(core.scene, heat.grid.to_world(HOT), ct)
    before, user = core.pictures(), everything_of_the_user(core.scene)
    assert laid(core, ct, heat) == []
    after = core.pictures()
    for name in before:
        share = changed(before[name], after[name]).mean()
        assert 0.01 < share < 0.35, name
    assert everything_of_the_user(core.scene) == user
    hide(core.scene)
    assert all((picture == before[name]).all() for name, picture in core.pictures().items())
    assert everything_of_the_user(core.scene) == user


def test_the_colour_lies_where_the_cell_lies(core: SlicerCore, ct: Any, heat: Volume) -> None:
    laid(core, ct, heat, Look())
    for view in core.views.values():
        to_pixel = np.linalg.inv(view_matrix(view))
        column, row = (to_pixel @ [*heat.grid.to_world(HOT), 1])[:2]
        r, g, b = core.pictures()[view.node.GetLayoutName()][-1 - round(row), round(column)].astype(int)
        assert r > g > b, view.node.GetLayoutName()


def view_matrix(view: Any) -> Any:
    from MedVLMReaderLib.mrml import array_from

    return array_from(view.node.GetXYToRAS())


def test_a_linear_transform_carries_the_heatmap_along(core: SlicerCore, ct: Any, heat: Volume) -> None:
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 40)
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    show(core.scene, ct, heat, Look(), {}, NOTHING_MOVED)
    transform.SetMatrixTransformToParent(matrix_from(shift))
    node = shown(core.scene)
    from MedVLMReaderLib.scene import world_affine

    assert np.allclose(world_affine(node), shift @ heat.grid.affine)
    assert np.allclose(to_world(node), shift)


def test_pet_in_front_ct_behind_and_the_heatmap_are_all_seen(core: SlicerCore, ct: Any, heat: Volume) -> None:
    grid = heat.grid.resize((8, 15, 18))
    values = np.zeros(grid.shape, np.float32)
    values[:, 2:9, 11:16] = 900
    pet = core.volume(values, grid.affine, "PET")
    core.window(pet, 1000, 500)
    pet.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGreen")
    jump(core.scene, heat.grid.to_world(HOT), ct)
    core.show(ct)
    alone = core.pictures()
    core.show(ct, pet, 0.4)
    jump(core.scene, heat.grid.to_world(HOT), ct)
    fused, user = core.pictures(), everything_of_the_user(core.scene)
    assert laid(core, ct, heat) == []
    all_three = core.pictures()
    for name in fused:
        green = fused[name].astype(int)[..., 1] - fused[name].astype(int)[..., 0]
        added = changed(fused[name], all_three[name])
        assert (green > 40).any(), f"PET is not seen on {name}"
        assert ((green > 40) & ~added).any(), f"PET is covered on {name}"
        assert 0.005 < added.mean() < 0.35, f"the heatmap is not seen on {name}"
        assert alone[name].std() > 5
    assert everything_of_the_user(core.scene) == user


def test_other_layers_above_and_below_keep_their_place_and_opacity(core: SlicerCore, ct: Any, heat: Volume) -> None:
    composite = core.views["Red"].composite
    others = [core.volume(np.zeros((3, 4, 5, 4), np.uint8), np.eye(4), name, "Vector") for name in "abc"]
    composite.SetNthLayerVolumeID(3, others[0].GetID())
    composite.SetNthLayerOpacity(3, 0.2)
    laid(core, ct, heat, Look(opacity=0.9))
    for n, other in enumerate(others[1:], 5):
        composite.SetNthLayerVolumeID(n, other.GetID())
        composite.SetNthLayerOpacity(n, 0.1 * n)
    hide(core.scene)
    left = [(composite.GetNthLayerVolumeID(n), round(composite.GetNthLayerOpacity(n), 3)) for n in (3, 4, 5)]
    assert left == [(others[0].GetID(), 0.2), (others[1].GetID(), 0.5), (others[2].GetID(), 0.6)]
    assert composite.GetNthLayerOpacity(6) == 1.0


def test_a_view_that_shows_another_volume_gets_no_heatmap(core: SlicerCore, ct: Any, heat: Volume) -> None:
    other = core.volume(np.ones((4, 5, 6), np.float32), heat.grid.affine, "other")
    core.views["Green"].composite.SetBackgroundVolumeID(other.GetID())
    assert laid(core, ct, heat) == []
    assert core.views["Green"].composite.GetNumberOfAdditionalLayers() == 0
    core.views["Red"].composite.SetBackgroundVolumeID(other.GetID())
    refresh(core.scene, Look())
    assert core.views["Red"].composite.GetNumberOfAdditionalLayers() == 0
    core.show(other)
    (said,) = refresh(core.scene, Look())
    assert said == "No slice view shows 'CT chest'; show it to see the heatmap."


def test_a_view_that_adds_its_layers_is_left_alone_and_named(core: SlicerCore, ct: Any, heat: Volume) -> None:
    core.views["Yellow"].composite.SetCompositing(2)
    (said,) = laid(core, ct, heat)
    assert said.startswith("View Yellow adds or subtracts its layers; set it to Alpha")
    assert core.views["Yellow"].composite.GetNumberOfAdditionalLayers() == 0
    assert core.views["Red"].composite.GetNumberOfAdditionalLayers() == 1


def test_opacity_and_threshold_change_what_is_seen(core: SlicerCore, ct: Any, heat: Volume) -> None:
    laid(core, ct, heat)
    full = core.pictures()["Red"].astype(int)
    restyle(core.scene, Look(opacity=0.3))
    faint = core.pictures()["Red"].astype(int)
    restyle(core.scene, Look(threshold=25))
    none = core.pictures()["Red"].astype(int)
    hot = changed(full, none)
    assert 0 < np.abs(faint - none)[hot].mean() < np.abs(full - none)[hot].mean()
    assert hot.any()


def test_a_flat_map_is_not_stretched_to_full_colours(core: SlicerCore, ct: Any, grid: Grid) -> None:
    jump(core.scene, grid.centre, ct)
    before = core.pictures()
    show(core.scene, ct, Volume(np.ones(CELLS, np.float32), grid.resize(CELLS)), Look(), {}, NOTHING_MOVED)
    legend = before["Red"].shape[1] * 2 // 5  # the colour bar stands on the right
    for name, picture in core.pictures().items():
        assert not changed(before[name], picture)[:, :legend].any()


def test_a_second_heatmap_takes_the_place_of_the_first(core: SlicerCore, ct: Any, heat: Volume) -> None:
    laid(core, ct, heat)
    before = census(core.scene)
    for n in range(3):
        laid(core, ct, Volume(heat.values * (n + 1), heat.grid))
    assert census(core.scene) == before
    assert voxels(shown(core.scene)).max() == 60


def test_what_is_kept_says_what_it_is_and_lies_under_the_scan(core: SlicerCore, ct: Any, heat: Volume) -> None:
    laid(core, ct, heat)
    node, tree = shown(core.scene), core.scene.GetSubjectHierarchyNode()
    assert node.GetAttribute("MedVLM.model") == "built-in"
    assert tree.GetItemParent(tree.GetItemByDataNode(node)) == tree.GetItemByDataNode(ct)
    assert node.GetDisplayNode().GetColorNode().GetName() == "Attention colours"
    assert not node.GetHideFromEditors()
    hidden = [one for one in nodes(core.scene, "vtkMRMLVectorVolumeNode") if one.GetAttribute(ROLE)]
    assert [(one.GetHideFromEditors(), one.GetSaveWithScene()) for one in hidden] == [(1, 0)]


def test_nothing_is_left_behind(core: SlicerCore, ct: Any, heat: Volume) -> None:
    before = census(core.scene)
    laid(core, ct, heat)
    put_curves(core.scene, ct, slice_curves(heat))
    hide(core.scene)
    left = census(core.scene)
    assert left - before == set()


def test_a_saved_scene_has_the_heatmap_and_no_layer_without_its_volume(
    core: SlicerCore, ct: Any, heat: Volume, tmp_path: Path
) -> None:
    laid(core, ct, heat, Look(opacity=0.6))
    before = core.pictures()
    drop_layer(core.scene)
    assert core.save(tmp_path / "scene.mrb")
    assert core.open(tmp_path / "scene.mrb")
    for view in core.views.values():
        assert view.composite.GetNumberOfAdditionalLayers() == 0
    assert voxels(shown(core.scene)).max() == 20
    restyle(core.scene, Look(opacity=0.6))
    for name, picture in core.pictures().items():
        assert changed(before[name], picture).mean() < 0.01, name


def test_the_curves_are_a_table_and_a_line_a_plane(core: SlicerCore, ct: Any, heat: Volume) -> None:
    from MedVLMReaderLib.heatmap import combined

    curves = slice_curves(combined([Volume(heat.values / heat.values.sum(), heat.grid)]))
    chart = put_curves(core.scene, ct, curves)
    put_curves(core.scene, ct, curves)
    chart = chart_of(core.scene)
    assert chart.GetNumberOfPlotSeriesNodes() == 3
    table = chart.GetNthPlotSeriesNode(0).GetTableNode().GetTable()
    column = np.array([table.GetValueByName(n, "share").ToDouble() for n in range(table.GetNumberOfRows())])
    assert np.allclose(column, curves[0].shares)
    assert drawn(curves[0]).startswith(b"\x89PNG")
