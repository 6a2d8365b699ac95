"""The report as a DICOM Structured Report (Enhanced SR, TID 2000); `sr_back` gives the same report out of it.

Partial, unverified and preliminary, with the model as its observer. Edits and provenance are inside. Headings that
DICOM has no code for, and our own rows, have codes of the scheme 99MEDVLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from MedVLMReaderLib.export.made import SCHEME, common, device, local, short, stamp, uid
from MedVLMReaderLib.export.source import Source
from MedVLMReaderLib.report import BANNER, UNSIGNED, Provenance, Report, Section
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
PROVENANCE = ("model", "revision", "precision", "created", "question", "complete", "software")


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
    values = {name: getattr(said, name) for name in PROVENANCE} | {"complete": "yes" if said.complete else "no"}
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
