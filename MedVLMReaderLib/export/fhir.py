"""The report as a FHIR DiagnosticReport (R4), preliminary and marked as made by AI.

It names no patient: the study that it is of is told by its UIDs, where the source is known, and `subject` is a
reference that the user gives, such as Patient/17.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.made import uid
from MedVLMReaderLib.export.source import Source
from MedVLMReaderLib.report import BANNER, UNSIGNED, Report
from MedVLMReaderLib.structured import StructuredFinding

AI = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}  # fmt: skip
CODES = {"CT": ("18747-6", "CT Report"), "MR": ("18755-9", "MRI Report")}
THE_PATIENT = {"display": "The patient of this imaging study"}
_REFERENCE = re.compile(r"Patient/[A-Za-z0-9.-]{1,64}")


def diagnostic_report(
    report: Report, source: Source | None = None, key_images: Sequence[Any] = (), pdf: bytes = b"", subject: str = ""
) -> str:
    """The resource as JSON, held against FHIR's rules. ReaderError for a subject that is no patient's reference."""
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport

    report.check_words()
    if subject and not _REFERENCE.fullmatch(subject):
        raise ReaderError("The subject should be a reference to a patient on the FHIR server, such as Patient/17.")
    patient = {"reference": subject} if subject else None
    content = _content(report, source, key_images, patient)
    if pdf:
        content["presentedForm"].append(_attached("application/pdf", pdf))
    return str(DiagnosticReport.model_validate(content).model_dump_json(exclude_none=True, indent=1))


def _content(report: Report, source: Source | None, key_images: Sequence[Any], patient: Any) -> dict[str, Any]:
    observations = [_notice(report), *(_observation(one, n) for n, one in enumerate(report.findings, 1))]
    contained = [_device(report), *observations]
    modality = str(source.first.get("Modality") or "") if source else ""
    code, display = CODES.get(modality, ("18748-4", "Diagnostic imaging study"))
    content: dict[str, Any] = {
        "resourceType": "DiagnosticReport", "meta": {"security": [AI]}, "contained": contained,
        "text": {"status": "generated", "div": _narrative(report)},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{uid(report, 'fhir')}"}],
        "status": "preliminary",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": display}], "text": BANNER},
        "issued": report.provenance.created,
        "result": [{"reference": f"#{one['id']}"} for one in observations],
        "presentedForm": [_attached("text/plain; charset=utf-8", report.text().encode())],
    }  # fmt: skip
    if report.conclusion:
        content["conclusion"] = f"{BANNER}: {report.conclusion}"
    if patient:
        content["subject"] = patient
    if source:
        contained.append(_study(source, key_images, patient))
        content["imagingStudy"] = [{"reference": "#study"}]
    return content


def _attached(kind: str, content: bytes) -> dict[str, str]:
    return {"contentType": kind, "title": BANNER, "data": base64.b64encode(content).decode()}


def _device(report: Report) -> dict[str, Any]:
    said = report.provenance
    versions = [("model", f"{said.model}, revision {said.revision}"), ("precision", said.precision),
                ("software", said.software)]  # fmt: skip
    return {
        "resourceType": "Device", "id": "model", "deviceName": [{"name": said.model, "type": "model-name"}],
        "version": [{"type": {"text": kind}, "value": value} for kind, value in versions if value],
    }  # fmt: skip


def _notice(report: Report) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": "notice", "status": "preliminary", "code": {"text": "Notice"},
        "valueString": f"{BANNER}. {UNSIGNED} {report.said}", "device": {"reference": "#model"},
    }  # fmt: skip


def _observation(one: StructuredFinding, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "resourceType": "Observation", "id": f"finding-{number}", "status": "preliminary",
        "code": {"text": one.finding or "Finding"}, "valueString": one.sentence, "device": {"reference": "#model"},
    }  # fmt: skip
    site = " ".join(part for part in (one.side, one.organ) if part)
    if site or one.place:
        found["bodySite"] = {"text": ", ".join(part for part in (site, one.place) if part)}
    if one.size_mm is not None:
        size = {"value": one.size_mm, "unit": "mm", "system": "http://unitsofmeasure.org", "code": "mm"}
        found["component"] = [{"code": {"text": "Size"}, "valueQuantity": size}]
    if one.supported is not None:
        found["note"] = [{"text": f"{'Supported' if one.supported else 'Not supported'} by the image (verification)."}]
    return found


def _study(source: Source, key_images: Sequence[Any], patient: Any) -> dict[str, Any]:
    """The source series, and that of the key images, by their UIDs."""
    headers = [*source.headers, *source.others, *key_images]
    series: dict[str, list[Any]] = {}
    for one in headers:
        series.setdefault(str(one.SeriesInstanceUID), []).append(one)
    return {
        "resourceType": "ImagingStudy", "id": "study", "status": "available", "subject": patient or THE_PATIENT,
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{source.study_uid}"}],
        "series": [_series(name, instances) for name, instances in series.items()],
    }  # fmt: skip


def _series(name: str, instances: Sequence[Any]) -> dict[str, Any]:
    system = "http://dicom.nema.org/resources/ontology/DCM"
    return {
        "uid": name, "modality": {"system": system, "code": str(instances[0].get("Modality") or "OT")},
        "instance": [
            {"uid": str(one.SOPInstanceUID),
             "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{one.SOPClassUID}"}}
            for one in instances
        ],
    }  # fmt: skip


def _narrative(report: Report) -> str:
    def lines(text: str) -> str:
        return "<br/>".join(escape(line) for line in text.split("\n"))

    parts = "".join(f"<h2>{escape(one.heading)}</h2><p>{lines(one.text)}</p>" for one in report.sections)
    notes = "".join(f"<p>Note: {lines(note)}</p>" for note in report.provenance.notes)
    top = f"<p><b>{escape(BANNER)}.</b> {escape(UNSIGNED)}</p>{notes}"
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{top}{parts}<p>{escape(report.said)}</p></div>'
