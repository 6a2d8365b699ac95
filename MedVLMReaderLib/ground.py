"""What all parts of the panel stand on: the scene, the worker's client, the chosen scan, settings and what is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from MedVLMReaderLib import ReaderError, parameters, scene
from MedVLMReaderLib.case import Case
from MedVLMReaderLib.gpu import GpuWatch
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.mrml import Node, to_world
from MedVLMReaderLib.overlay import Look
from MedVLMReaderLib.parameters import VOLUME, Settings
from MedVLMReaderLib.state import STAGES
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import Cancelled, Event, Failed, Needs, Progress, Saw, Started

Intent = TypeVar("Intent", bound=Callable[..., None])


def said(intent: Intent) -> Intent:
    """An intent whose ReaderError becomes the panel's message; the view hears of the change."""

    @wraps(intent)
    def heard(self: Ground, *args: Any, **kwargs: Any) -> None:
        try:
            intent(self, *args, **kwargs)
        except ReaderError as error:
            self.message, self.status = str(error), ""
        self.changed()

    return cast(Intent, heard)


class Ground:
    """See `panel.Panel`."""

    def __init__(
        self, scene_: Node, client: Client, changed: Callable[[], None], file_of: Callable[[str], str],
        meanwhile: Callable[[], None],
    ) -> None:  # fmt: skip
        self.scene, self.client, self.changed = scene_, client, changed
        self.file_of, self.meanwhile = file_of, meanwhile
        self.gpu = GpuWatch()
        self.needs: Needs | None = None
        """What the chosen model takes where it is one of the user's own, once that is known."""
        self.cases: dict[str, Case] = {}
        self.settings, self.foreign = Settings(), False
        self.message = self.status = self.confirm = self.note = ""
        """What went wrong, what is being done, what is asked, and what was done."""
        self.progress: tuple[int, int] | None = None
        self.saw: bytes = b""
        """PNG of what the model was shown, once that was asked for."""
        self._loaded_choice = "built-in", "auto"
        self._then: Callable[[], None] = lambda: None
        self._followed = True

    def advance(self) -> None:
        """What a view's timer calls every 10 to 20 ms."""
        self.client.advance()
        if self.gpu.heard():
            self.changed()

    @property
    def scan(self) -> Node | None:
        """The chosen volume."""
        return parameters.node_at(self.scene, VOLUME)

    @property
    def case(self) -> Case | None:
        """The chosen volume's chat; None without a volume."""
        node = self.scan
        return None if node is None else self.cases.setdefault(node.GetID(), Case(node.GetID()))

    @property
    def is_loaded(self) -> bool:
        """Whether the chosen model is the one in the worker's memory."""
        return self.client.loaded is not None and self._loaded_choice == (self.settings.model, self.settings.precision)

    @property
    def look(self) -> Look:
        """How heatmaps are drawn."""
        return Look(self.settings.opacity, self.settings.threshold)

    def _study(self, case: Case, anew: bool = False) -> int:
        """The number by which the worker knows the scan; loads the chosen model first where it is another."""
        chosen = self.settings.model, self.settings.precision
        if chosen != self._loaded_choice:
            self._loaded_choice = chosen
            self.client.load(chosen[0], precision=chosen[1], on_event=self._on_step(case))
        node = self._node(case)
        volume = scene.volume_from(node)
        view = scene.view_of(self.scene, node, volume)
        stamp = scene.stamp(node)
        if case.study is None or stamp != case.stamp or (anew and view != case.view):
            if case.study is not None:
                self.client.forget(case.study)
            case.moved, case.view, case.session.view, case.stamp = to_world(node), view, view, stamp
            case.study = self.client.see(volume, view, on_event=self._on_step(case))
        return case.study

    def _weigh(self) -> None:
        """Have the reader's program say what a model of the user's own takes; of those of the table it is known."""
        self.needs, model = None, self.settings.model
        if model in CARDS:
            return

        def heard(event: Event) -> None:
            if isinstance(event, Needs) and model == self.settings.model:
                self.needs = event
            elif isinstance(event, Failed) and model == self.settings.model:
                self._failed(event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            if isinstance(event, Needs | Cancelled):
                self.status, self.progress = "", None
            self.changed()

        self.client.needs(model, on_event=heard)

    def _on_step(self, case: Case) -> Callable[[Event], None]:
        """For what only leads to something: tells how far it is, and of trouble."""

        def heard(event: Event) -> None:
            if isinstance(event, Failed):
                self._failed(event)
            elif isinstance(event, Saw):
                case.key = event.volume_keys[0]
            elif isinstance(event, Started | Progress):
                self._step(event)
            self.changed()

        return heard

    def _failed(self, event: Failed) -> None:
        self.message, self.status, self.progress = str(event), "", None

    def _step(self, event: Started | Progress) -> None:
        self.status = STAGES[event.stage]
        self.progress = (event.done, event.total) if isinstance(event, Progress) else None

    def _jump(self, case: Case, ras: Any, moved: Any) -> None:
        """To a place of the scan as it was read, where it lies now."""
        scan = self._node(case)
        if scan is not None:
            scene.jump(self.scene, (to_world(scan) @ np.linalg.solve(moved, [*ras, 1]))[:3], scan)

    def _node(self, case: Case) -> Node | None:
        return self.scene.GetNodeByID(case.scan)

    def _settle(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        if not self.foreign:
            parameters.store(self.scene, self.settings)

    def _ready(self) -> Case:
        """The chosen volume's chat. ReaderError where nothing can be asked about it."""
        scene.check_readable(self.scan)
        case = self.case
        assert case is not None
        if case.locked or self.foreign:
            raise ReaderError(case.locked or self.message)
        self.message, self.note, self.status = "", "", "Preparing"
        return case
