"""The panel: what a radiologist can do, and what there is to see of it. A view draws `state()` and calls the intents.

Free of qt, slicer and torch: the scene and the worker's client are handed in. No intent raises for what a user can mend
or waits for the worker: what goes wrong is `State.message`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from MedVLMReaderLib import ReaderError, curves, overlay, parameters, results, scene, transcript
from MedVLMReaderLib.case import Case, heat_of, montage, to_fetch
from MedVLMReaderLib.mrml import Node, remove, to_world
from MedVLMReaderLib.overlay import Look
from MedVLMReaderLib.parameters import REGION, VOLUME, Settings
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading, Span, write_whole
from MedVLMReaderLib.results import Kept
from MedVLMReaderLib.session import ChatSession, Turn
from MedVLMReaderLib.state import STAGES, State, state_of
from MedVLMReaderLib.watch import Watch
from MedVLMReaderLib.worker.client import Client, history_of
from MedVLMReaderLib.worker.events import (
    Answered,
    Cancelled,
    Event,
    Failed,
    Heatmap,
    Loaded,
    Prepared,
    Progress,
    Saw,
    Started,
    Verified,
    Word,
)

Intent = TypeVar("Intent", bound=Callable[..., None])


def said(intent: Intent) -> Intent:
    """An intent whose ReaderError becomes the panel's message; the view hears of the change."""

    @wraps(intent)
    def heard(self: Panel, *args: Any, **kwargs: Any) -> None:
        try:
            intent(self, *args, **kwargs)
        except ReaderError as error:
            self.message, self.status = str(error), ""
        self.changed()

    return cast(Intent, heard)


class Panel:
    """See above. Whoever has it calls `client.advance` from a timer while `client.busy`."""

    def __init__(self, scene_: Node, client: Client, changed: Callable[[], None] = lambda: None) -> None:
        self.scene, self.client, self.changed = scene_, client, changed
        self.cases: dict[str, Case] = {}
        self.settings, self.foreign = Settings(), False
        self.message = self.status = self.confirm = ""
        self.progress: tuple[int, int] | None = None
        self.saw: bytes = b""
        """PNG of what the model was shown, once that was asked for."""
        self._loaded_choice = "built-in", "auto"
        self._then: Callable[[], None] = lambda: None
        self._followed = True
        self._watch = Watch(scene_, self)
        self.loaded()

    def close(self) -> None:
        """Give everything back; words that were being written are kept, marked incomplete."""
        self._watch.stop()
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

    @property
    def scan(self) -> Node | None:
        """The chosen volume."""
        return parameters.node_at(self.scene, VOLUME)

    @property
    def case(self) -> Case | None:
        """The chosen volume's chat; None without a volume."""
        node = self.scan
        return None if node is None else self.cases.setdefault(node.GetID(), Case(node.GetID()))

    def text(self) -> str:
        """Report and chat with where they come from, to be copied."""
        case = self.case
        return "\n\n".join(results.for_people(kept) for kept in case.kept) if case else ""

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
        if changes.keys() & {"opacity", "threshold"}:
            overlay.restyle(self.scene, self.look)
        if "method" in changes and (case := self.case) is not None and case.heat is not None:
            self._look(case, case.heat.turn, case.heat.span)

    @property
    def look(self) -> Look:
        """How heatmaps are drawn."""
        return Look(self.settings.opacity, self.settings.threshold)

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
        self.status, self.progress = "", None

    def _agree(self, question: str, then: Callable[[], None]) -> None:
        self.confirm, self._then = question, then

    def _ready(self) -> Case:
        """The chosen volume's chat. ReaderError where nothing can be asked about it."""
        scene.check_readable(self.scan)
        case = self.case
        assert case is not None
        if case.locked or self.foreign:
            raise ReaderError(case.locked or self.message)
        self.message, self.status = "", "Preparing"
        return case

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

    def _failed(self, event: Failed) -> None:
        self.message, self.status, self.progress = str(event), "", None

    def _step(self, event: Started | Progress) -> None:
        self.status = STAGES[event.stage]
        self.progress = (event.done, event.total) if isinstance(event, Progress) else None

    # ---- Where the model looked ------------------------------------------------------------------------------------

    @said
    def click(self, address: str) -> None:
        """Show a sentence's heatmap and jump to its peak, or jump to a place."""
        link, case = transcript.link(address), self.case
        if case is None:
            return
        self.message = ""
        if link.ras is not None:
            self._jump(case, np.array(link.ras), case.moved)
        elif link.turn < len(case.kept) and 0 <= link.span[0] < link.span[1] <= len(case.kept[link.turn].text):
            self._look(case, link.turn, link.span)

    def _look(self, case: Case, turn: int, span: Span) -> None:
        reading, words, text = case.to_look_at(turn, span)
        method = self.settings.method or None
        if text is not None or not _recorded(reading, words, method):
            study: int | None = self._study(case)
        else:
            study = case.study if case.study in self.client.studies else None

        def heard(event: Event) -> None:
            if isinstance(event, Heatmap) and not case.gone:
                case.looked[turn, case.kept[turn].text] = event.reading
                case.heat = heat_of(turn, span, event.reading, event.span, event.method, event.volume)
                case.verdict = ""
                if case is self.case:
                    self._show(case)
            elif isinstance(event, Failed):
                self.message = str(event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            if not isinstance(event, Started | Progress) and not case.asking:
                self.status, self.progress = "", None
            self.changed()

        history = history_of(case.session, turn)
        self.client.heatmap(study, reading, words, method, text=text, history=history, on_event=heard)

    def _show(self, case: Case) -> None:
        """The heatmap over the views, and the planes through its peak."""
        heat, scan = case.heat, self._node(case)
        if heat is None or scan is None or heat.turn >= len(case.kept):
            return
        moved = case.kept[heat.turn].moved
        reading = heat.reading
        about = {
            "model": reading.model, "revision": reading.revision, "question": reading.question,
            "words": reading.text[slice(*heat.words)], "method": heat.method, "created": reading.created,
        }  # fmt: skip
        trouble = overlay.show(self.scene, scan, heat.times, self.look, about, moved)
        self.message = " ".join(trouble)
        self._settle(turn=heat.turn, start=heat.span[0], stop=heat.span[1])
        self._jump(case, heat.peak, moved)
        if curves.chart_of(self.scene) is not None:
            curves.put_curves(self.scene, scan, heat.curves)

    def _jump(self, case: Case, ras: Any, moved: Any) -> None:
        """To a place of the scan as it was read, where it lies now."""
        scan = self._node(case)
        if scan is not None:
            scene.jump(self.scene, (to_world(scan) @ np.linalg.solve(moved, [*ras, 1]))[:3], scan)

    @said
    def plot(self) -> None:
        """The shown heatmap's curves as tables and a chart in the scene."""
        case = self.case
        if case is None or case.heat is None:
            raise ReaderError("No heatmap is shown. Click a sentence first.")
        curves.put_curves(self.scene, self._node(case), case.heat.curves)

    @said
    def hide(self) -> None:
        """Take the heatmap off."""
        self._hide()

    def _hide(self) -> None:
        overlay.hide(self.scene)
        self._settle(turn=-1, start=0, stop=0)
        if (case := self.case) is not None:
            case.heat, case.verdict = None, ""

    @said
    def verify(self) -> None:
        """Ask whether the image supports the sentence whose heatmap is shown."""
        case = self.case
        if case is None or case.heat is None:
            raise ReaderError("No sentence is chosen. Click one first.")
        heat, history = case.heat, history_of(case.session, case.heat.turn)

        def heard(event: Event) -> None:
            if isinstance(event, Verified):
                case.verdict = str(event.verdict)
            elif isinstance(event, Failed):
                self.message = str(event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            if isinstance(event, Verified | Failed | Cancelled):
                self.status, self.progress = "", None
            self.changed()

        study = self._study(case)
        self.client.verify(study, heat.reading, heat.words, heat.method, history=history, on_event=heard)

    @said
    def show_what_it_saw(self) -> None:
        """Ask for what the model is shown of the scan: `saw`."""
        case = self._ready()

        def heard(event: Event) -> None:
            if isinstance(event, Prepared):
                self.saw = curves.png(montage(event.volumes))
            elif isinstance(event, Failed):
                self.message = str(event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            if isinstance(event, Prepared | Failed | Cancelled):
                self.status, self.progress = "", None
            self.changed()

        self.client.prepared(self._study(case), on_event=heard)

    # ---- The radiologist's text ------------------------------------------------------------------------------------

    @said
    def edit(self, findings: str, impression: str) -> None:
        """What the radiologist has made of the report; the draft is kept beside it."""
        case = self.case
        if case is None or case.report is None:
            return
        kept = case.kept[case.report]
        same = transcript.sections(kept.turn.reading.text) == (findings.strip(), impression.strip())
        edited = None if same else transcript.together(findings, impression)
        if edited != kept.edited:
            kept.edited = edited
            results.rewrite(self.scene, self._node(case), case.report, kept)

    @said
    def save(self, path: Path) -> None:
        """Write report and chat, with where they come from, as a text file."""
        try:
            write_whole({Path(path): self.text().encode()})
        except OSError as error:
            raise ReaderError(
                f"The text could not be saved ({error.strerror or error}). It is still here and in the scene. "
                "Choose another place or make room."
            ) from error

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
        if text is None and at.start < at.stop <= len(case.kept[at.turn].text) and _recorded(reading, words, method):
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

    def _node(self, case: Case) -> Node | None:
        return self.scene.GetNodeByID(case.scan)

    def _settle(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        if not self.foreign:
            parameters.store(self.scene, self.settings)


def _recorded(reading: Reading, words: Span, method: str | None) -> bool:
    """Whether a reading holds where the model looked for some words."""
    return any(
        start < words[1] and words[0] < stop
        for trace in reading.traces
        if method in (None, trace.method)
        for start, stop in trace.spans
    )
