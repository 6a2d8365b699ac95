"""The panel: what a radiologist can do, and what there is to see of it. A view draws `state()` and calls the intents.

Free of qt, slicer and torch: the scene and the worker's client are handed in. No intent raises for what a user can mend
or waits for the worker: what goes wrong is `State.message`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError, overlay, parameters, results, scene
from MedVLMReaderLib.case import Case, heat_of
from MedVLMReaderLib.ground import said
from MedVLMReaderLib.many import Many
from MedVLMReaderLib.mrml import Node, remove, to_world
from MedVLMReaderLib.needs import to_fetch
from MedVLMReaderLib.parameters import REGION, VOLUME, Settings
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.results import Kept
from MedVLMReaderLib.session import ChatSession, Turn
from MedVLMReaderLib.state import State, state_of
from MedVLMReaderLib.watch import Watch
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.events import (
    Answered,
    Cancelled,
    Event,
    Failed,
    Loaded,
    Progress,
    Started,
    Word,
)
from MedVLMReaderLib.worker.plain import recorded


class Panel(Many):
    """See above. Whoever has it calls `client.advance` from a timer while `client.busy`."""

    def __init__(
        self, scene_: Node, client: Client, changed: Callable[[], None] = lambda: None,
        file_of: Callable[[str], str] = lambda _: "", meanwhile: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`file_of`: the file of a DICOM instance's UID, such as `slicer.dicomDatabase.fileForInstance`; `meanwhile`:
        lets the window live while many scans are read, such as `slicer.app.processEvents`."""
        super().__init__(scene_, client, changed, file_of, meanwhile)
        self._watch = Watch(scene_, self)
        self.loaded()

    def close(self) -> None:
        """Give everything back; words that were being written are kept, marked incomplete."""
        self._watch.stop()
        self.gpu.close()
        for case in self.cases.values():
            if (
                case.words
                and (scan := self._node(case)) is not None
                and isinstance(model := self.client.loaded, Loaded)
            ):
                question = case.asking[0][1] if case.asking else ""
                reading = Reading(question, case.words, False, (), (), model.name, model.revision)
                kept = Kept(Turn(question, reading), case.moved, is_report=not case.kept)
                results.keep(self.scene, scan, len(case.kept), kept)
        self.client.close()

    # ---- What there is to see --------------------------------------------------------------------------------------

    def state(self) -> State:
        """All that the view draws."""
        return state_of(self)

    # ---- Choosing --------------------------------------------------------------------------------------------------

    @said
    def choose_scan(self, node: Node | None, followed: bool = False) -> None:
        """Read and ask about this volume. `followed`: because the views show it, not because somebody chose it."""
        self._followed, self.message = followed, ""
        parameters.put_node(self.scene, VOLUME, node)
        case = self.case
        if case is not None and case.heat is not None:
            self._show(case)

    @said
    def choose_region(self, node: Node | None) -> None:
        """The ROI that questions may be about."""
        parameters.put_node(self.scene, REGION, node)

    @said
    def set(self, **changes: Any) -> None:
        """Change settings by name, see `Settings`."""
        self._settle(**changes)
        if changes.keys() & {"model", "precision"}:
            self.gpu.ask()
        if "model" in changes:
            self._weigh()
        if changes.keys() & {"opacity", "threshold"}:
            overlay.restyle(self.scene, self.look)
        if "method" in changes and (case := self.case) is not None and case.heat is not None:
            self._look(case, case.heat.turn, case.heat.span)

    # ---- Reading and asking ----------------------------------------------------------------------------------------

    @said
    def read(self) -> None:
        """Draft a report; the view as it is now is shown to the model."""
        case = self._ready()
        if case.kept:
            many = len(case.kept)
            what = "the report" if many == 1 else f"the report and the chat of {many - 1} more"
            self._agree(f"Reading again replaces {what} for this volume. Go on?", lambda: self._read(case))
        else:
            self._read(case)

    def _read(self, case: Case) -> None:
        if fetched := to_fetch(self.settings.model):
            self._agree(fetched, lambda: self._begin_report(case))
        else:
            self._begin_report(case)

    def _begin_report(self, case: Case) -> None:
        study = self._study(case, anew=True)
        case.session.volumes = ()  # a new chat, whatever has become of the scan
        number = self.client.ask(study, None, session=case.session, number=0, on_event=self._on_answer(case, True))
        case.asking.append((number, ""))

    @said
    def ask(self, question: str) -> None:
        """Ask about the volume, its chosen slice or the region."""
        if not question.strip():
            raise ReaderError("The question is empty. Type one, for example: Is there a nodule in the right lung?")
        case = self._ready()
        place = self._place(case)
        if fetched := to_fetch(self.settings.model):
            self._agree(fetched, lambda: self._begin_answer(case, question.strip(), place))
        else:
            self._begin_answer(case, question.strip(), place)

    def _begin_answer(self, case: Case, question: str, place: Place | None) -> None:
        study = self._study(case)
        tell = self._on_answer(case, False)
        number = self.client.ask(study, question, session=case.session, place=place, on_event=tell)
        case.asking.append((number, question))

    @said
    def agree(self, yes: bool) -> None:
        """The answer to `State.confirm`."""
        then, self._then, self.confirm = self._then, lambda: None, ""
        if yes:
            then()

    @said
    def stop(self) -> None:
        """Stop what is being done."""
        self.client.stop()

    @said
    def free(self) -> None:
        """Give back the memory of the model."""
        self.client.free()
        for case in self.cases.values():
            case.asking, case.words = [], ""
        self.gpu.ask()
        self.status, self.progress = "", None

    def _agree(self, question: str, then: Callable[[], None]) -> None:
        self.confirm, self._then = question, then

    def _place(self, case: Case) -> Place | None:
        node, context = self._node(case), self.settings.context
        if not context:
            return None
        if context == REGION:
            place = scene.place_of_region(parameters.node_at(self.scene, REGION))
        else:
            place = scene.place_of_slice(self.scene, node, scene.grid_of(node), context)
        if case.study is not None:  # the worker knows the scan where it lay
            r, a, s = (case.moved @ np.linalg.solve(to_world(node), [*place.ras, 1]))[:3]
            place = replace(place, ras=(float(r), float(a), float(s)))
        return place

    # ---- The worker's answers --------------------------------------------------------------------------------------

    def _on_answer(self, case: Case, is_report: bool) -> Callable[[Event], None]:
        def heard(event: Event) -> None:
            if case.gone:
                return
            if isinstance(event, Word):
                case.words += event.text
            elif isinstance(event, Answered | Cancelled | Failed | Loaded):
                self._answered(case, is_report, event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            self.changed()

        return heard

    def _answered(self, case: Case, is_report: bool, event: Event) -> None:
        """To the scan that was asked about, whatever is chosen now."""
        case.asking, case.words = case.asking[1:], ""
        reading = event.reading if isinstance(event, Answered | Failed) else None
        if isinstance(event, Failed):
            self._failed(event)
        if reading is not None and (scan := self._node(case)) is not None:
            number = next(n for n, turn in enumerate(case.session.turns) if turn.reading is reading)
            kept = Kept(case.session.turns[number], case.moved, is_report=is_report, key=case.key)
            if case.heat is not None and case.heat.turn >= number:
                self._hide()
            case.take(number, kept)
            results.keep(self.scene, scan, number, kept)
        if not self.client.running.busy or not case.asking:
            self.status, self.progress = "", None

    # ---- What happens to the scene, see `Watch` --------------------------------------------------------------------

    def scan_going(self, scan: str) -> None:
        case = self.cases.pop(scan, None)
        if case is not None:
            case.gone = True
            if case.study is not None:
                self.client.forget(case.study)
            self.status, self.progress = "", None

    def scan_gone(self) -> None:
        left = results.orphans(self.scene)
        if overlay.shown(self.scene) in left:
            overlay.hide(self.scene)
            self._settle(turn=-1, start=0, stop=0)
        remove(self.scene, [node for node in left if node.GetScene() is not None])
        self.changed()

    def views_changed(self) -> None:
        overlay.refresh(self.scene, self.look)
        shown = scene.displayed(self.scene)
        if shown is not None and shown is not self.scan and (self._followed or self.scan is None):
            self.choose_scan(shown, True)

    def closing(self) -> None:
        for scan in list(self.cases):
            self.scan_going(scan)
        self.message = self.status = ""
        self.saw, self._followed = b"", True

    def loaded(self) -> None:
        """What the scene holds is shown again."""
        self.foreign = False
        try:
            self.settings = parameters.load(self.scene)
        except ReaderError as error:
            self.settings, self.foreign, self.message = Settings(), True, str(error)
            self.changed()
            return
        for volume in scene.scans(self.scene):
            self._restore(volume)
        if self.scan is None and (shown := scene.displayed(self.scene)) is not None:
            parameters.put_node(self.scene, VOLUME, shown)
        overlay.restyle(self.scene, self.look)
        case, at = self.case, self.settings
        if case is not None and 0 <= at.turn < len(case.kept) and overlay.shown(self.scene) is not None:
            self._look_again(case, at)
        self.changed()

    def _look_again(self, case: Case, at: Settings) -> None:
        """The heatmap that a loaded scene shows, its figures and curves; nothing moves."""
        reading, words, text = case.to_look_at(at.turn, (at.start, at.stop))
        method = at.method or None
        if text is None and at.start < at.stop <= len(case.kept[at.turn].text) and recorded(reading, words, method):
            used = method or reading.traces[0].method
            whole = reading.heatmap(words, used)
            case.heat = heat_of(at.turn, (at.start, at.stop), reading, words, used, whole)

    def _restore(self, volume: Node) -> None:
        if volume.GetID() in self.cases or not results.of_scan(self.scene, volume):
            return
        case = self.cases[volume.GetID()] = Case(volume.GetID())
        try:
            case.kept = results.kept_of(self.scene, volume)
        except ReaderError as error:
            case.locked = self.message = str(error)
            return
        case.moved = case.kept[-1].moved if case.kept else case.moved
        keys = dict.fromkeys(kept.key for kept in case.kept if kept.key)
        case.session = ChatSession(tuple(keys), [kept.turn for kept in case.kept])

    def saving(self) -> None:
        overlay.drop_layer(self.scene)

    def saved(self) -> None:
        overlay.restyle(self.scene, self.look)
