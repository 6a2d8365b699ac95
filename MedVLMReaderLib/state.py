"""What the panel's view draws: plain data, made new each time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from MedVLMReaderLib import transcript
from MedVLMReaderLib.needs import loaded_line, memory_line, own_line
from MedVLMReaderLib.results import provenance
from MedVLMReaderLib.worker.events import Stage

if TYPE_CHECKING:
    from MedVLMReaderLib.panel import Panel

STAGES: dict[Stage, str] = {
    "program": "Starting the reader", "download": "Fetching the model", "model": "Loading the model",
    "study": "Looking at the scan", "answer": "Writing", "heatmap": "Working out where it looked",
    "verification": "Asking whether the image supports it", "preparation": "Preparing pictures",
    "export": "Exporting",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """All that is on the panel."""

    can_read: bool = False
    can_ask: bool = False
    can_stop: bool = False
    can_verify: bool = False
    can_export: bool = False
    can_read_many: bool = False
    has_text: bool = False
    message: str = ""
    """What went wrong, and what to do."""
    note: str = ""
    """What was done."""
    confirm: str = ""
    """A question for yes or no, see `Panel.agree`."""
    status: str = ""
    progress: tuple[int, int] | None = None
    """Done and all; 0 where the end is not known."""
    memory: str = ""
    report: str = ""
    """HTML: the draft with its sentences as links."""
    findings: str = ""
    impression: str = ""
    chat: str = ""
    """HTML: questions and answers."""
    edited: bool = False
    provenance: str = ""
    heat: str = ""
    verdict: str = ""


def state_of(panel: Panel) -> State:
    """What there is to see now."""
    case, busy = panel.case, panel.client.busy
    common = State(
        can_read=case is not None and not case.asking, can_ask=case is not None, can_stop=busy,
        message=panel.message, confirm=panel.confirm, status=_status(panel) if busy else "",
        progress=panel.progress if busy else None, memory=_memory(panel), note=panel.note,
        can_read_many=not panel.reading_many,
    )  # fmt: skip
    if case is None:
        return common
    chosen = (case.heat.turn, case.heat.span) if case.heat else None
    number, asking = case.report, case.asking[0][1] if case.asking else ""
    draft = case.kept[number] if number is not None else None
    reading_now = bool(case.asking) and not asking
    findings, impression = transcript.sections(draft.text) if draft and not reading_now else ("", "")
    report = f"<p>{transcript.plain(case.words)} …</p>" if reading_now else ""
    if not reading_now and draft is not None and number is not None:
        report = transcript.report(number, draft, chosen)
    last = case.kept[-1].turn.reading if case.kept else None
    return replace(
        common, can_verify=case.heat is not None and not case.asking, has_text=bool(case.kept),
        can_export=bool(case.kept) and not case.asking, report=report,
        findings=findings, impression=impression, edited=draft is not None and draft.edited is not None,
        chat=transcript.chat(case.kept, chosen, asking, "" if reading_now else case.words),
        provenance=provenance(last) if last else "", heat=case.heat.line if case.heat else "", verdict=case.verdict,
    )  # fmt: skip


def _status(panel: Panel) -> str:
    """What is being done, and how many questions wait behind it."""
    waiting = sum(len(case.asking) for case in panel.cases.values()) - 1
    return f"{panel.status} ({waiting} more in line)" if panel.status and waiting > 0 else panel.status


def _memory(panel: Panel) -> str:
    """What the chosen model needs; once it is in memory, where."""
    chosen, loaded = panel.settings, panel.client.loaded
    if loaded is not None and panel.is_loaded:
        return loaded_line(loaded.precision, loaded.device, panel.gpu.found)
    if (own := panel.needs) is not None:
        return own_line(own.sizes, own.chosen, own.free, own.device, chosen.precision, panel.gpu.found)
    return memory_line(chosen.model, chosen.precision, panel.gpu.found)
