"""`Report`: a draft in sections, all edits made to it, and where it comes from; text, Markdown, report.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError, __version__
from MedVLMReaderLib.reading import Reading, write_whole
from MedVLMReaderLib.sections import HEADING, Section, cleaned, sections_of
from MedVLMReaderLib.session import ChatSession
from MedVLMReaderLib.structured import StructuredFinding, standing

__all__ = [
    "BANNER", "FILE", "UNSIGNED", "Edit", "Provenance", "Report", "Section", "report_of", "report_of_chat",
    "report_turn", "sections_of",
]  # fmt: skip
FORMAT, FILE = 1, "report.json"
BANNER = "AI generated draft, not for clinical use"
"""Stands in every export, inside it."""
UNSIGNED = "Nobody has signed or checked this report."
QUESTIONS = "Questions and answers"
"""Heading of the rest of a chat."""


@dataclass(frozen=True)
class Edit:
    """What somebody has made of a section, and when."""

    heading: str
    before: str | None
    """None where the section is new."""
    after: str | None
    """None where the section was removed."""
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from. No patient identity, no path."""

    model: str
    revision: str
    precision: str
    """Of the decoder's weights; "" where the reading does not say."""
    created: str
    """When the model wrote it: ISO 8601, UTC."""
    question: str = ""
    complete: bool = True
    software: str = f"MedVLM Reader {__version__}"
    notes: tuple[str, ...] = ()
    """What the user must know first, as the reading said it."""

    def line(self) -> str:
        """One line for people."""
        precision = f", {self.precision}" if self.precision else ""
        cut = "" if self.complete else " Incomplete: stopped, or cut off at its longest length."
        return f"Written by {self.model}, revision {self.revision}{precision}, {self.created}, {self.software}.{cut}"


@dataclass(frozen=True)
class Report:
    """What the model wrote and every edit since. What it says now follows from the two, so that they cannot part."""

    original: tuple[Section, ...]
    provenance: Provenance
    edits: tuple[Edit, ...] = ()
    listed: tuple[StructuredFinding, ...] = ()
    """Structured findings of the original."""

    def __post_init__(self) -> None:
        self.sections  # noqa: B018 - raises where the edits are not of this original

    @property
    def sections(self) -> tuple[Section, ...]:
        """The report as it stands. Raises ReaderError where an edit does not follow from what is before it."""
        now: dict[str, str | None] = {section.heading: section.text for section in self.original}
        for edit in self.edits:
            if now.get(edit.heading) != edit.before:
                raise ReaderError(
                    f"The report was edited, but the text that was edited ({edit.heading}) is not with it. "
                    "Restore report.json from a copy, or make the report anew from its reading."
                )
            now[edit.heading] = edit.after
        return tuple(Section(heading, text) for heading, text in now.items() if text is not None)

    def __getitem__(self, heading: str) -> str:
        """The text under a heading, "" where there is none."""
        return next((one.text for one in self.sections if one.heading == heading), "")

    @property
    def findings(self) -> tuple[StructuredFinding, ...]:
        """The structured findings whose sentences the report still has."""
        return standing(self.listed, "\n".join(section.text for section in self.sections))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A line for each sentence that verification has decided on."""
        said = {True: "Supported by the image", False: "Not supported by the image"}
        decided = {one.sentence: one.supported for one in self.findings if one.supported is not None}
        return tuple(f"{said[supported]}: {sentence}" for sentence, supported in decided.items())

    @property
    def conclusion(self) -> str:
        """The impression, conclusion or summary; "" where the report has none."""
        return next((text for name in ("Impression", "Conclusion", "Summary") if (text := self[name])), "")

    def edited(self, heading: str, text: str | None, at: str = "") -> Report:
        """The report with a section rewritten, added, or with None removed; the same report where nothing changes."""
        heading, before = " ".join(cleaned(heading).split()), {one.heading: one.text for one in self.sections}
        after = None if text is None else cleaned(text)
        if not 0 < len(heading) <= 64 or "\\" in heading:
            raise ReaderError("A section needs a heading of 1 to 64 letters without a backslash, such as: Findings.")
        if before.get(heading) == after:
            return self
        return replace(self, edits=(*self.edits, Edit(heading, before.get(heading), after, at or _now())))

    def undone(self) -> Report:
        """The report without its last edit."""
        return replace(self, edits=self.edits[:-1])

    @property
    def said(self) -> str:
        """How it came to be, in a line."""
        if not self.edits:
            return self.provenance.line()
        times = "once" if len(self.edits) == 1 else f"{len(self.edits)} times"
        return f"{self.provenance.line()} Edited by hand {times}, last {self.edits[-1].at}."

    @property
    def _asked(self) -> tuple[str, ...]:
        return (f"Asked: {self.provenance.question}",) if self.provenance.question else ()

    def check_words(self) -> None:
        """ReaderError where no section has a word."""
        if not any(letter.isalnum() for section in self.sections for letter in section.text):
            raise ReaderError(
                "The report has no words; there is nothing to export. Ask the model again, or write some."
            )

    def text(self) -> str:
        """Plain text."""
        top = [f"{BANNER.upper()}. {UNSIGNED}", *(f"Note: {note}" for note in self.provenance.notes), *self._asked]
        parts = [f"{one.heading}\n{one.text or '(nothing)'}" for one in self.sections]
        parts += ["\n".join(["Verification", *self.verdicts])] if self.verdicts else []
        return "\n\n".join([*top, *parts, self.said]) + "\n"

    def markdown(self, pictures: Sequence[tuple[str, str]] = ()) -> str:
        """Markdown; `pictures` are (words, file name). What was written is text, whatever signs it has."""
        top = [f"> **{BANNER}.** {UNSIGNED}", *(f"> Note: {_marked(note)}" for note in self.provenance.notes)]
        top += [_marked(line) for line in self._asked]
        parts = [f"## {_marked(one.heading)}\n\n{_marked(one.text) or '(nothing)'}" for one in self.sections]
        shown = [f"![{_marked(' '.join(words.split()))}]({name})" for words, name in pictures]
        images = ["## Key images\n\nAttention, not findings.", *shown] if shown else []
        verdicts = ["## Verification", *(f"- {_marked(line)}" for line in self.verdicts)] if self.verdicts else []
        edits = ["## Edits", *(_marked_edit(edit) for edit in self.edits)] if self.edits else []
        said = f"*{_marked(self.said)}*"
        return "\n\n".join(["# Report", *top, *parts, *verdicts, *images, *edits, said]) + "\n"

    def plain(self) -> dict[str, Any]:
        """JSON-ready; `from_plain` reads it back."""
        return {
            "format": FORMAT, "notice": f"{BANNER}. {UNSIGNED}", "provenance": asdict(self.provenance),
            "original": [asdict(one) for one in self.original], "edits": [asdict(one) for one in self.edits],
            "listed": [one.plain() for one in self.listed],
        }  # fmt: skip

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Report:
        """What `plain` wrote. Raises ReaderError where it is damaged, newer, or its original is missing."""
        if int(content.get("format", 0)) > FORMAT:
            raise ReaderError("This report was saved by a newer version. Update MedVLM Reader.")
        try:
            said = {one.name: content["provenance"][one.name] for one in fields(Provenance)}
            return cls(
                tuple(Section(**one) for one in content["original"]),
                Provenance(**{**said, "notes": tuple(said["notes"])}),
                tuple(Edit(**one) for one in content["edits"]),
                tuple(StructuredFinding.from_plain(one) for one in content["listed"]),
            )
        except (KeyError, TypeError, ValueError) as wrong:
            raise ReaderError(f"{FILE} is damaged or incomplete ({wrong!r}). Restore it from a copy.") from wrong

    def save(self, folder: Path) -> None:
        """Write report.json into a folder. Raises OSError."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole({Path(folder) / FILE: json.dumps(self.plain(), indent=1, ensure_ascii=False).encode()})

    @classmethod
    def load(cls, folder: Path) -> Report:
        """The report in a folder. Raises ReaderError where there is none, or as `from_plain`."""
        try:
            content = json.loads((Path(folder) / FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as missing:
            raise ReaderError(f"The folder holds no {FILE}. Choose the folder of a kept report.") from missing
        except ValueError as damage:
            raise ReaderError(f"{FILE} is damaged: {damage}. Restore it from a copy.") from damage
        if not isinstance(content, dict):
            raise ReaderError(f"{FILE} is no report. Restore it from a copy.")
        return cls.from_plain(content)


def report_of(reading: Reading, original: Reading | None = None) -> Report:
    """The report that a reading holds. ReaderError where it has no words.

    `original`: what the model wrote, where the reading's text was edited afterwards. An edited reading without it is
    refused: nobody could tell the model's words from the editor's.
    """
    if not reading.options.get("edited"):
        return _new(reading, sections_of(reading.text))
    if original is None or original.options.get("edited"):
        raise ReaderError(
            "The text of this reading was edited by hand, and what the model wrote is not with it. "
            "Give the original reading as well, or ask again."
        )
    if (original.model, original.revision, original.question) != (reading.model, reading.revision, reading.question):
        raise ReaderError("The original is another model's or answers another question. Give the one that was edited.")
    report = _new(original, sections_of(original.text))
    after = {one.heading: one.text for one in sections_of(reading.text)}
    for heading in dict.fromkeys([*(one.heading for one in report.original), *after]):
        report = report.edited(heading, after.get(heading))
    return report


def report_of_chat(session: ChatSession, number: int | None = None) -> Report:
    """The report in a chat: answer `number`, from 0; without it the last answer with headings, else the last one.

    The other questions and answers follow under a heading of their own. ReaderError where there is no such answer.
    """
    turns, number = session.turns, report_turn(session) if number is None else number
    if not 0 <= number < len(turns):
        raise ReaderError(f"The chat has no answer {number + 1}: it has {len(turns)}. Ask for a report first.")
    report = report_of(turns[number].reading)
    others = [f"{turn.question}\n{turn.shown}" for n, turn in enumerate(turns) if n != number]
    if not others:
        return report
    return replace(report, original=(*report.original, Section(QUESTIONS, cleaned("\n\n".join(others)))))


def report_turn(session: ChatSession) -> int:
    """Which answer of a chat is its report: the last one with headings, else the last one; from 0."""
    headed = [n for n, turn in enumerate(session.turns) if HEADING.search(turn.reading.text)]
    return (headed or [max(len(session.turns) - 1, 0)])[-1]


def _new(reading: Reading, sections: tuple[Section, ...]) -> Report:
    precision = str(reading.options.get("precision", ""))
    said = Provenance(
        reading.model, reading.revision, precision, reading.created, cleaned(reading.question), reading.complete,
        notes=tuple(cleaned(note) for note in reading.notes),
    )  # fmt: skip
    report = Report(sections, said)
    report.check_words()
    return report


def _marked_edit(edit: Edit) -> str:
    """An edit as an item of a Markdown list: when, where, and what stood there before and after."""
    texts = (
        "(no such section)" if text is None else _marked(text) or "(nothing)" for text in (edit.before, edit.after)
    )
    before, after = (text.replace("\n", "\n    ") for text in texts)
    return f"- {_marked(edit.at)}: {_marked(edit.heading)}\n  - Before: {before}\n  - After: {after}"


def _marked(text: str) -> str:
    """Text in which Markdown finds nothing to obey, and whose lines stay lines."""
    text = re.sub(r"([\\`*_{}\[\]<>#|&~]|(?m:^)[-+=]|(?m:^)\d+(?=[.)]))", r"\\\1", text)
    return re.sub(r"\\(\d+)(?=[.)])", r"\1\\", text).replace("\n", "  \n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
