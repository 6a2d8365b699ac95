"""The report as a DICOM Structured Report (Enhanced SR, TID 2000), and back.

Partial, unverified and preliminary, with the model as its observer. Edits and provenance are inside, so that the same
report comes back. Headings that DICOM has no code for, and our own rows, have codes of the scheme 99MEDVLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.made import SCHEME, common, device, local, short, stamp, uid
from MedVLMReaderLib.export.source import Source
from MedVLMReaderLib.report import BANNER, UNSIGNED, Edit, Provenance, Report, Section
from MedVLMReaderLib.structured import Laterality, StructuredFinding

Code = tuple[str, str, str]
TITLES: dict[str, Code] = {"CT": ("18747-6", "LN", "CT Report"), "MR": ("18755-9", "LN", "MRI Report")}
ANY_TITLE: Code = ("18748-4", "LN", "Diagnostic Imaging Report")
SECTIONS: dict[str, tuple[Code, Code]] = {
    "Findings": (("121070", "DCM", "Findings"), ("121071", "DCM", "Finding")),
    "Impression": (("121072", "DCM", "Impressions"), ("121073", "DCM", "Impression")),
    "Conclusion": (("121076", "DCM", "Conclusions"), ("121077", "DCM", "Conclusion")),
    "Recommendations": (("121074", "DCM", "Recommendations"), ("121075", "DCM", "Recommendation")),
    "Technique": (("121064", "DCM", "Current Procedure Descriptions"), ("121065", "DCM", "Procedure Description")),
    "History": (("121060", "DCM", "History"), ("121060", "DCM", "History")),
}
"""Heading: its code as a section (CID 7001) and that of the text in it (CID 7002)."""
SIDES: dict[Laterality, Code] = {
    "right": ("24028007", "SCT", "Right"), "left": ("7771000", "SCT", "Left"),
    "both": ("51440002", "SCT", "Right and left"),
}  # fmt: skip
YES, NO = ("373066001", "SCT", "Yes"), ("373067005", "SCT", "No")
_PROVENANCE = ("model", "revision", "precision", "created", "question", "complete", "software")


def structured_report(report: Report, source: Source, key_images: Sequence[Any] = ()) -> Any:
    """The document; `key_images` are secondary captures that are exported with it."""
    from highdicom.sr import EnhancedSR

    report.check_words()
    if not all(hasattr(one, "StudyInstanceUID") for one in key_images):
        raise ValueError("Key images must be datasets.")
    content = _root(report, source, key_images)
    document = EnhancedSR(
        evidence=[*source.headers, *source.others, *key_images], content=content,
        **common(report, "sr", source.study_uid), is_complete=False, is_final=False, is_verified=False,
    )  # fmt: skip
    stamp(document, report, "sr")
    document.PreliminaryFlag = "PRELIMINARY"
    document.CompletionFlagDescription = short(f"{BANNER}. {UNSIGNED}")
    document.CodingSchemeIdentificationSequence = _scheme()
    return document


def _scheme() -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = SCHEME, "MedVLM Reader"
    item.CodingSchemeResponsibleOrganization = "MedVLM Reader"
    return [item]


# ---- Writing --------------------------------------------------------------------------------------------------------


def _root(report: Report, source: Source, key_images: Sequence[Any]) -> Any:
    title = TITLES.get(str(source.first.get("Modality") or ""), ANY_TITLE)
    parts = [
        _text(_own("notice", "Notice"), f"{BANNER}. {UNSIGNED}"),
        *(_section(one) for one in report.sections),
        *([_listed(report)] if report.findings else []),
        *([_pictures(key_images)] if key_images else []),
        _provenance(report),
        *([_history(report)] if report.edits else []),
    ]
    root = _container(title, parts, template="2000", contained=False)
    for n, item in enumerate(_observer(report)):
        root.ContentSequence.insert(n, item)
    return root


def _observer(report: Report) -> Any:
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext

    made = device(report)
    attributes = DeviceObserverIdentifyingAttributes(
        uid=uid(_only_model(report), "device"), name="MedVLM Reader", manufacturer_name="MedVLM Reader",
        model_name=made["manufacturer_model_name"], serial_number=made["device_serial_number"],
    )  # fmt: skip
    return ObserverContext(_coded(("121007", "DCM", "Device")), attributes)


def _only_model(report: Report) -> Report:
    """A report that is the same for all of one model, so that its device is the same."""
    said = report.provenance
    return Report((), Provenance(said.model, said.revision, said.precision, ""))


def _section(section: Section) -> Any:
    outer, inner = SECTIONS.get(section.heading) or (_own(f"s {section.heading}", section.heading),) * 2
    return _container(outer, [_text(inner, section.text)] if section.text else [])


def _listed(report: Report) -> Any:
    return _container(_own("structured", "Structured findings"), [_one_finding(one) for one in report.findings])


def _one_finding(one: StructuredFinding) -> Any:
    from highdicom.sr import CodeContentItem, NumContentItem
    from pydicom.sr.codedict import codes

    relation = _relation("HAS PROPERTIES")
    item = _text(("121071", "DCM", "Finding"), one.sentence)
    rows = [
        _text(_own(name, meaning), value, relation)
        for name, meaning, value in (
            ("finding", "What was found", one.finding), ("organ", "Organ", one.organ), ("place", "Place", one.place),
        )
        if value
    ]  # fmt: skip
    if one.side:
        laterality = _coded(("272741003", "SCT", "Laterality"))
        rows.append(CodeContentItem(laterality, _coded(SIDES[one.side]), relation))
    if one.size_mm is not None:
        length = _coded(("410668003", "SCT", "Length"))
        rows.append(NumContentItem(length, one.size_mm, codes.UCUM.Millimeter, relationship_type=relation))
    if one.supported is not None:
        supported = _coded(_own("supported", "Supported by the image"))
        rows.append(CodeContentItem(supported, _coded(YES if one.supported else NO), relation))
    if rows:
        item.ContentSequence = _sequence(rows)
    return item


def _pictures(key_images: Sequence[Any]) -> Any:
    from highdicom.sr import ImageContentItem

    name = _coded(("121180", "DCM", "Key Images"))
    items = [
        ImageContentItem(name, str(one.SOPClassUID), str(one.SOPInstanceUID), relationship_type=_relation("CONTAINS"))
        for one in key_images
    ]
    return _container(("121180", "DCM", "Key Images"), items)


def _provenance(report: Report) -> Any:
    said = report.provenance
    values = {name: getattr(said, name) for name in _PROVENANCE} | {"complete": "yes" if said.complete else "no"}
    rows = [_text(_own(name, name.capitalize()), value) for name, value in values.items() if value]
    rows += [_text(_own("note", "Note"), note) for note in said.notes]
    return _container(_own("provenance", "Provenance"), rows)


def _history(report: Report) -> Any:
    """Every edit with what stood there before: the original follows from it."""
    names = [("before", "Before"), ("after", "After")]
    edits = []
    for edit in report.edits:
        rows = [_text(_own("heading", "Section"), edit.heading), _moment(edit.at), _text(_own("at", "At"), edit.at)]
        for name, meaning in names:
            value = getattr(edit, name)
            if value is None:
                continue
            rows.append(_text(_own(name, meaning), value) if value else _text(_own(f"{name}-empty", meaning), "empty"))
        edits.append(_container(_own("edit", "Edit"), rows))
    order = _text(_own("order", "Sections as the model wrote them"), "\n".join(one.heading for one in report.original))
    return _container(_own("edits", "Edit history"), [order, *edits])


def _moment(when: str) -> Any:
    from highdicom.sr import DateTimeContentItem

    name = _coded(("111526", "DCM", "DateTime Started"))
    return DateTimeContentItem(name, local(when).strftime("%Y%m%d%H%M%S"), _relation("CONTAINS"))


def _container(code: Code, items: Sequence[Any], template: str | None = None, *, contained: bool = True) -> Any:
    from highdicom.sr import ContainerContentItem

    item = ContainerContentItem(
        _coded(code), template_id=template, relationship_type=_relation("CONTAINS") if contained else None
    )
    if items:
        item.ContentSequence = _sequence(items)
    return item


def _sequence(items: Sequence[Any]) -> Any:
    from pydicom.sequence import Sequence as Items

    return Items(list(items))


def _text(code: Code, text: str, relation: Any = None) -> Any:
    from highdicom.sr import TextContentItem

    return TextContentItem(_coded(code), text.replace("\n", "\r\n"), relation or _relation("CONTAINS"))


def _relation(name: str) -> Any:
    from highdicom.sr import RelationshipTypeValues

    return RelationshipTypeValues(name)


def _own(value: str, meaning: str) -> Code:
    """A code of our own scheme: what DICOM has no word for."""
    return short(value, 16), SCHEME, short(meaning)


def _coded(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)


# ---- Reading --------------------------------------------------------------------------------------------------------


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
    values = {name: one.get(name, "") for name in _PROVENANCE if name != "complete"}
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
