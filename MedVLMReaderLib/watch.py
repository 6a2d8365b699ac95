"""What happens to a scene, told in the reader's own words; the scene is handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vtkmodules.util.misc import calldata_type
from vtkmodules.util.vtkConstants import VTK_OBJECT

from MedVLMReaderLib.mrml import Node
from MedVLMReaderLib.scene import composites


class Listener(Protocol):
    """Who is told."""

    def scan_going(self, scan: str) -> None:
        """A volume is about to be removed."""

    def scan_gone(self) -> None:
        """It was."""

    def views_changed(self) -> None:
        """What the slice views show is another, or there are other views."""

    def closing(self) -> None:
        """The scene is about to be emptied."""

    def loaded(self) -> None:
        """A scene was read, or emptied."""

    def saving(self) -> None:
        """The scene is about to be written."""

    def saved(self) -> None:
        """It was."""


class Watch:
    """Observes a scene and its slice views until `stop`."""

    def __init__(self, scene: Node, listener: Listener) -> None:
        self.scene, self.listener = scene, listener
        self._of_scene: list[int] = []
        self._of_views: list[tuple[Node, int]] = []
        self._telling = False
        plain: dict[int, Callable[[], None]] = {
            scene.StartCloseEvent: listener.closing, scene.EndCloseEvent: self._loaded,
            scene.EndImportEvent: self._loaded, scene.StartSaveEvent: listener.saving,
            scene.EndSaveEvent: listener.saved,
        }  # fmt: skip
        for event, tell in plain.items():
            self._of_scene.append(scene.AddObserver(event, _without_arguments(tell)))
        nodes = {
            scene.NodeAboutToBeRemovedEvent: self._going, scene.NodeRemovedEvent: self._gone,
            scene.NodeAddedEvent: self._added,
        }  # fmt: skip
        for number, call in nodes.items():
            self._of_scene.append(scene.AddObserver(number, _with_node(call)))
        self._observe_views()

    def stop(self) -> None:
        """Tell nothing any more."""
        for tag in self._of_scene:
            self.scene.RemoveObserver(tag)
        self._of_scene = []
        self._leave_views()

    def _loaded(self) -> None:
        self._observe_views()
        self.listener.loaded()

    def _going(self, node: Node) -> None:
        if node.IsA("vtkMRMLScalarVolumeNode") and not self.scene.IsClosing():
            self.listener.scan_going(node.GetID())

    def _gone(self, node: Node) -> None:
        if node.IsA("vtkMRMLScalarVolumeNode") and not self.scene.IsClosing():
            self.listener.scan_gone()

    def _added(self, node: Node) -> None:
        if node.IsA("vtkMRMLSliceCompositeNode") and not self.scene.IsImporting():
            self._observe_views()

    def _observe_views(self) -> None:
        self._leave_views()
        for composite in composites(self.scene):
            self._of_views.append((composite, composite.AddObserver("ModifiedEvent", self._view_changed)))

    def _leave_views(self) -> None:
        for composite, tag in self._of_views:
            composite.RemoveObserver(tag)
        self._of_views = []

    def _view_changed(self, *_: Any) -> None:
        """Once: what the listener does to the views is no news to it."""
        if not self._telling and not self.scene.IsClosing() and not self.scene.IsImporting():
            self._telling = True
            try:
                self.listener.views_changed()
            finally:
                self._telling = False


def _without_arguments(tell: Callable[[], None]) -> Callable[..., None]:
    def told(*_: Any) -> None:
        tell()

    return told


def _with_node(call: Callable[[Node], None]) -> Callable[..., None]:
    def told(_caller: Any, _event: str, node: Node) -> None:
        call(node)

    heard: Callable[..., None] = calldata_type(VTK_OBJECT)(told)
    return heard
