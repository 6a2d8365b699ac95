"""The Slicer core without the desktop: a scene, the logics that it needs, and slice views that render to arrays.

Only where the package slicer-core is installed; `missing()` says why not. Rendering needs EGL or OSMesa.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIEWS = (("Red", "Axial"), ("Green", "Coronal"), ("Yellow", "Sagittal"))
DRAWN = (
    "vtkMRMLCrosshairDisplayableManager", "vtkMRMLModelSliceDisplayableManager", "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLColorLegendDisplayableManager",
)  # fmt: skip
"""What draws into a slice view beside the volumes."""


def missing() -> str:
    """Why the Slicer core cannot be used here; empty where it can."""
    absent = [name for name in ("slicer", "PySide6") if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (pip install '.[slicer-tests]')"
    if sys.platform == "linux" and not any(ctypes.util.find_library(one) for one in ("EGL", "OSMesa")):
        return "neither EGL nor OSMesa to draw with (apt-get install libegl1 libgl1-mesa-dri)"
    return ""


class SlicerCore:
    """An application without a window: the parts of Slicer that are not Qt."""

    def __init__(self) -> None:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        import slicer
        import vtk

        vtk.vtkObject.GlobalWarningDisplayOff()
        self.slicer, self.folder = slicer, Path(tempfile.mkdtemp(prefix="medvlm-core-"))
        self.scene = slicer.mrmlScene = slicer.vtkMRMLScene()
        self.application = slicer.vtkSlicerApplicationLogic()
        self._fill_scene()
        self._add_logics(vtk)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.views = {name: SliceView(self, name, orientation) for name, orientation in VIEWS}

    def _fill_scene(self) -> None:
        """The nodes that every scene of the desktop has."""
        crosshair = self.slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        for node in (crosshair, self.slicer.vtkMRMLSelectionNode(), self.slicer.vtkMRMLInteractionNode()):
            self.scene.AddNode(node)

    def _add_logics(self, vtk: Any) -> None:
        slicer, scene, application = self.slicer, self.scene, self.application
        application.SetMRMLScene(scene)
        application.SetTemporaryPath(str(self.folder))
        application.SetSliceLogics(vtk.vtkCollection())
        application.SetViewLogics(vtk.vtkCollection())
        slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(application)
        self.logics: dict[str, Any] = {"Colors": slicer.vtkSlicerColorLogic()}
        self.logics["Segmentations"] = slicer.vtkSlicerSegmentationsModuleLogic()
        self.logics["SubjectHierarchy"] = slicer.vtkSlicerSubjectHierarchyModuleLogic()
        self.logics["Markups"] = slicer.vtkSlicerMarkupsLogic()
        self.logics["Volumes"] = slicer.vtkSlicerVolumesLogic()
        for name, logic in self.logics.items():
            logic.SetMRMLScene(scene)
            logic.SetMRMLApplicationLogic(application)
            application.SetModuleLogic(name, logic)
        application.GetColorLogic().SetMRMLScene(scene)
        self.logics["Colors"].AddDefaultColorNodes()
        self._add_files()
        slicer.modules = types.SimpleNamespace(
            **{name.lower(): types.SimpleNamespace(logic=lambda one=logic: one) for name, logic in self.logics.items()}
        )

    def _add_files(self) -> None:
        """Reading and writing scenes; without a cache folder, writing a bundle would end the program."""
        self.remote, self.files = self.slicer.vtkMRMLRemoteIOLogic(), self.slicer.vtkDataIOManagerLogic()
        for logic in (self.remote, self.files):
            logic.SetMRMLScene(self.scene)
            logic.SetMRMLApplicationLogic(self.application)
        self.remote.GetCacheManager().SetRemoteCacheDirectory(str(self.folder))
        self.files.SetAndObserveDataIOManager(self.remote.GetDataIOManager())
        self.remote.AddDataIOToScene()

    def volume(self, values: NDArray[Any], affine: NDArray[Any], name: str, kind: str = "Scalar") -> Any:
        """A volume node of (k, j, i) `values`, (k, j, i, parts) for vectors; `affine` from (k, j, i, 1) to RAS."""
        from vtkmodules.util.numpy_support import numpy_to_vtk
        from vtkmodules.vtkCommonDataModel import vtkImageData
        from vtkmodules.vtkCommonMath import vtkMatrix4x4

        node = self.scene.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode", name)
        flat = np.ascontiguousarray(values).reshape(int(np.prod(values.shape[:3])), -1)
        image, matrix = vtkImageData(), vtkMatrix4x4()
        image.SetDimensions(values.shape[2::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
        matrix.DeepCopy(np.asarray(affine)[:, [2, 1, 0, 3]].ravel())
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(matrix)
        node.CreateDefaultDisplayNodes()
        return node

    def window(self, node: Any, window: float, level: float) -> None:
        """Grey window of a scalar volume."""
        display = node.GetDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevel(window, level)

    def show(self, background: Any, foreground: Any = None, opacity: float = 0.5) -> None:
        """Volumes in all slice views, fitted."""
        for view in self.views.values():
            view.composite.SetBackgroundVolumeID(background.GetID() if background else None)
            view.composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
            view.composite.SetForegroundOpacity(opacity)
            view.fit()

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """(rows, columns, 3) pixels of each slice view, as on the screen."""
        return {name: view.pixels() for name, view in self.views.items()}

    def close(self) -> None:
        """Empty the scene as File > Close Scene does; the views stay."""
        self.scene.Clear(False)

    def reset(self) -> None:
        """An empty scene, and views as they start."""
        self.close()
        for name, orientation in VIEWS:
            view = self.views[name]
            view.node.SetOrientation(orientation)
            view.node.SetSliceOffset(0)
            view.node.SetXYZOrigin(0, 0, 0)
            composite = view.composite
            composite.SetBackgroundVolumeID(None)
            composite.SetForegroundVolumeID(None)
            composite.SetLabelVolumeID(None)
            composite.SetCompositing(0)
            composite.SetLinkedControl(0)

    def save(self, path: Path) -> bool:
        """Write the scene as a bundle (.mrb)."""
        return bool(self.scene.WriteToMRB(str(path)))

    def open(self, path: Path) -> bool:
        """Close the scene, then read a bundle."""
        self.close()
        return bool(self.scene.ReadFromMRB(str(path), True))


class SliceView:
    """One slice view with Slicer's own pipeline and displayable managers."""

    def __init__(self, core: SlicerCore, name: str, orientation: str, size: tuple[int, int] = (300, 300)) -> None:
        import vtk

        slicer, self.size = core.slicer, size
        self.renderer, self.window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window.SetOffScreenRendering(1)
        self.window.ShowWindowOff()
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        for one in DRAWN:
            if not factory.IsDisplayableManagerRegistered(one):
                factory.RegisterDisplayableManager(one)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.Initialize(factory, self.renderer)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(core.application)
        core.application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(core.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        self.managers.SetMRMLDisplayableNode(self.node)
        self._picture(vtk)
        self.fit()

    def _picture(self, vtk: Any) -> None:
        """The blended slices as a picture behind everything else."""
        self.mapper, self.actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()

    @property
    def composite(self) -> Any:
        """Which volumes the view shows."""
        return self.logic.GetSliceCompositeNode()

    def fit(self) -> None:
        """The background volume fills the view, a voxel's centre on the plane."""
        self.logic.ResizeSliceNode(*self.size)
        if self.composite.GetBackgroundVolumeID():
            self.logic.FitSliceToBackground()
            self.logic.SnapSliceOffsetToIJK()

    def render(self) -> None:
        """Draw what the view shows now."""
        connection = self.logic.GetImageDataConnection()
        if connection:
            self.mapper.SetInputConnection(connection)
            if not self.renderer.HasViewProp(self.actor):
                self.renderer.AddViewProp(self.actor)
        elif self.renderer.HasViewProp(self.actor):
            self.renderer.RemoveViewProp(self.actor)
        self.window.Render()

    def pixels(self) -> NDArray[np.uint8]:
        """(rows, columns, 3), the top row first."""
        from vtkmodules.util.numpy_support import vtk_to_numpy
        from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter

        self.render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        return np.array(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3])
