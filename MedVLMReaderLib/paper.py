"""The panel's part about the report on paper: the radiologist's text beside the draft, copies, files, exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from MedVLMReaderLib import ReaderError, results, scene, transcript
from MedVLMReaderLib.case import Case
from MedVLMReaderLib.ground import said
from MedVLMReaderLib.mrml import Node
from MedVLMReaderLib.reading import Reading, Span, write_whole
from MedVLMReaderLib.report import Report, report_of_chat, report_turn, sections_of
from MedVLMReaderLib.sight import Sight
from MedVLMReaderLib.state import STAGES
from MedVLMReaderLib.worker.events import Cancelled, Event, Exported, Failed, Progress, Started

OF_A_PATIENT = frozenset({"sr", "dicom-pdf", "sc", "pmap", "seg"})
"""Kinds of file that belong to a patient: their source must be found."""
WORDS_ALONE = frozenset({"text", "json"})
"""Kinds without pictures: the scan is not needed."""
UIDS = "DICOM.instanceUIDs"
"""Where Slicer keeps, at a volume, which DICOM instances it was loaded from."""


class Paper(Sight):
    """See `panel.Panel`."""

    def text(self) -> str:
        """Report and chat with where they come from, to be copied."""
        case = self.case
        return "\n\n".join(results.for_people(kept) for kept in case.kept) if case else ""

    @said
    def edit(self, findings: str, impression: str) -> None:
        """What the radiologist has made of the report; the draft is kept beside it."""
        case = self.case
        if case is None or case.report is None:
            return
        kept = case.kept[case.report]
        same = transcript.sections(kept.turn.reading.text) == (findings.strip(), impression.strip())
        self._edited(case, None if same else transcript.together(findings, impression))

    @said
    def restore(self) -> None:
        """The model's draft again, in the place of what was made of it."""
        case = self.case
        if case is not None and case.report is not None:
            self._edited(case, None)

    def _edited(self, case: Case, text: str | None) -> None:
        number = case.report
        if number is not None and text != case.kept[number].edited:
            case.kept[number].edited = text
            results.rewrite(self.scene, self._node(case), number, case.kept[number])

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

    @said
    def export(self, folder: Path) -> None:
        """Write the report in the chosen kinds into a new folder under this one, see `Settings.kinds`."""
        case, kinds = self.case, self.settings.kinds.split()
        if case is None or not case.kept:
            raise ReaderError("There is no report to export. Read the scan, or ask about it first.")
        if not kinds:
            raise ReaderError("No kind of file is chosen. Tick at least one.")
        number = _report_turn(case)
        node, report = self._node(case), exported_report(case, number)
        files = self._files(node, kinds)
        reading, words = _as_shown(case, number)
        study = None if WORDS_ALONE.issuperset(kinds) else self.client.hold(scene.volume_from(node))
        self.message, self.note, self.status = "", "", STAGES["export"]
        self.client.export(
            study, reading, report.plain(), kinds, unused(folder), files=files, words=words,
            on_event=self._on_export(study),
        )  # fmt: skip

    def _on_export(self, study: int | None) -> Callable[[Event], None]:
        def heard(event: Event) -> None:
            if isinstance(event, Exported):
                many = len(event.files)
                self.note = f"{many} file{'s' * (many > 1)} in {event.files[0].parent.name}."
            elif isinstance(event, Failed):
                self.message = str(event)
            elif isinstance(event, Started | Progress):
                self._step(event)
            if isinstance(event, Exported | Failed | Cancelled):
                self.status, self.progress = "", None
                if study is not None:
                    self.client.forget(study)
            self.changed()

        return heard

    def _files(self, node: Node, kinds: list[str]) -> list[Path]:
        """The DICOM files that the volume was loaded from. ReaderError where a patient must be known and is not."""
        from MedVLMReaderLib.export.source import files_of

        needed = bool(OF_A_PATIENT & set(kinds))
        uids = (node.GetAttribute(UIDS) or "").split()
        if not needed and ("fhir" not in kinds or not uids):
            return []
        try:
            return list(files_of(uids, self.file_of))
        except ReaderError:
            if needed:
                raise
            return []


def _as_shown(case: Case, number: int) -> tuple[Reading, Span | None]:
    """The reading of turn `number`, and the words of the heatmap that is shown, by whose method it then is alone."""
    reading, heat = case.kept[number].turn.reading, case.heat
    if heat is None or heat.turn != number or heat.reading.text != reading.text:
        return reading, None
    shown = tuple(trace for trace in heat.reading.traces if trace.method == heat.method)
    return replace(heat.reading, traces=shown), heat.words


def _report_turn(case: Case) -> int:
    return report_turn(case.session) if case.report is None else case.report


def exported_report(case: Case, number: int) -> Report:
    """The report of turn `number`, the rest of the chat after it, with what the radiologist has made of it."""
    report, edited = report_of_chat(case.session, number), case.kept[number].edited
    if edited is None:
        return report
    after = {one.heading: one.text for one in sections_of(edited)}
    before = [one.heading for one in sections_of(case.kept[number].turn.reading.text)]
    for heading in dict.fromkeys([*before, *after]):
        report = report.edited(heading, after.get(heading))
    return report


def unused(folder: Path, now: datetime | None = None) -> Path:
    """A folder for a report under another one, by the time: what is there is never written over."""
    name = f"report-{(now or datetime.now()).strftime('%Y%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{n}" for n in range(2, 100)))
    return next((folder / one for one in names if not (folder / one).exists()), folder / name)
