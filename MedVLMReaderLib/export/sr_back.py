"""The report out of the structured report that was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.made import SCHEME
from MedVLMReaderLib.export.sr import PROVENANCE, SECTIONS, SIDES, YES, Code
from MedVLMReaderLib.report import Edit, Provenance, Report, Section
from MedVLMReaderLib.structured import StructuredFinding


def report_from(document: Any) -> Report:
    """The report in a document that `structured_report` made. Raises ReaderError for any other."""
    parts = list(document.get("ContentSequence") or [])
    provenance = _find(parts, "provenance")
    if provenance is None:
        raise ReaderError("This structured report was not written by MedVLM Reader, or lacks its provenance.")
    now = tuple(_read_section(one) for one in parts if _is_section(one))
    history = _items(_find(parts, "edits"))
    edits = tuple(_read_edit(one) for one in history if one.ValueType == "CONTAINER")
    order = next((_value(one).split("\n") for one in history if one.ValueType == "TEXT"), [])
    listed = tuple(_read_finding(one) for one in _items(_find(parts, "structured")))
    return Report(_before(now, edits, order), _read_provenance(provenance), edits, listed)


def _before(now: Sequence[Section], edits: Sequence[Edit], order: Sequence[str]) -> tuple[Section, ...]:
    """The sections before the edits, which are undone from the last to the first."""
    texts = {one.heading: one.text for one in now}
    for edit in reversed(edits):
        if edit.before is None:
            texts.pop(edit.heading, None)
        else:
            texts[edit.heading] = edit.before
    return tuple(Section(heading, texts[heading]) for heading in order or texts)


def _items(item: Any) -> list[Any]:
    return [] if item is None else list(item.get("ContentSequence") or [])


def _code(item: Any) -> Code:
    name = item.ConceptNameCodeSequence[0]
    return str(name.CodeValue), str(name.CodingSchemeDesignator), str(name.CodeMeaning)


def _find(items: Sequence[Any], value: str) -> Any:
    return next((one for one in items if _code(one)[:2] == (value, SCHEME)), None)


_HEADING_OF = {outer[0]: heading for heading, (outer, _) in SECTIONS.items()}


_SIDE_OF = {code[0]: side for side, code in SIDES.items()}


def _is_section(item: Any) -> bool:
    if item.ValueType != "CONTAINER":
        return False
    value, scheme, _ = _code(item)
    return value in _HEADING_OF if scheme == "DCM" else scheme == SCHEME and value.startswith("s ")


def _read_section(item: Any) -> Section:
    value, scheme, meaning = _code(item)
    text = "".join(_value(one) for one in _items(item))
    return Section(_HEADING_OF[value] if scheme == "DCM" else meaning, text)


def _value(item: Any) -> str:
    return str(item.TextValue).replace("\r\n", "\n")


def _texts(item: Any) -> Iterator[tuple[str, str]]:
    for one in _items(item):
        if one.ValueType == "TEXT":
            yield _code(one)[0], _value(one)


def _read_edit(item: Any) -> Edit:
    rows = dict(_texts(item))
    before, after = (
        "" if f"{name}-empty" in rows else rows.get(name) for name in ("before", "after")
    )  # absent: no such section
    return Edit(rows["heading"], before, after, rows["at"])


def _read_provenance(item: Any) -> Provenance:
    rows = list(_texts(item))
    one = dict(rows)
    values = {name: one.get(name, "") for name in PROVENANCE if name != "complete"}
    notes = tuple(text for name, text in rows if name == "note")
    return Provenance(**values, complete=one.get("complete") == "yes", notes=notes)


def _read_finding(item: Any) -> StructuredFinding:
    texts, rows = dict(_texts(item)), {_code(one)[0]: one for one in _items(item)}
    side = rows.get("272741003")
    size, supported = rows.get("410668003"), rows.get("supported")
    chosen = side and str(side.ConceptCodeSequence[0].CodeValue)
    return StructuredFinding(
        _value(item), texts.get("finding"), texts.get("organ"),
        _SIDE_OF.get(chosen or ""),
        None if size is None else float(size.MeasuredValueSequence[0].NumericValue), texts.get("place"),
        None if supported is None else str(supported.ConceptCodeSequence[0].CodeValue) == YES[0],
    )  # fmt: skip
