"""The panel's part about where the model looked: heatmaps, curves, verification, and what it was shown."""

from __future__ import annotations

import numpy as np

from MedVLMReaderLib import ReaderError, curves, overlay, transcript
from MedVLMReaderLib.case import Case, heat_of, montage
from MedVLMReaderLib.ground import Ground, said
from MedVLMReaderLib.reading import Span
from MedVLMReaderLib.worker.events import Cancelled, Event, Failed, Heatmap, Prepared, Progress, Started, Verified
from MedVLMReaderLib.worker.plain import history_of, recorded


class Sight(Ground):
    """See `panel.Panel`."""

    @said
    def click(self, address: str) -> None:
        """Show a sentence's heatmap and jump to its peak, or jump to a place."""
        link, case = transcript.link(address), self.case
        if case is None:
            return
        self.message = ""
        if link.verify:
            self._verify(case)
        elif link.ras is not None:
            self._jump(case, np.array(link.ras), case.moved)
        elif link.turn < len(case.kept) and 0 <= link.span[0] < link.span[1] <= len(case.kept[link.turn].text):
            self._look(case, link.turn, link.span)

    def _look(self, case: Case, turn: int, span: Span) -> None:
        reading, words, text = case.to_look_at(turn, span)
        method = self.settings.method or None
        if text is not None or not recorded(reading, words, method):
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
        self._verify(self.case)

    def _verify(self, case: Case | None) -> None:
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
