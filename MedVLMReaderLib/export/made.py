"""What all exported objects share: who made them, when, their identifiers, and that they are no signed report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from MedVLMReaderLib import ReaderError, __version__
from MedVLMReaderLib.report import BANNER, Report

MANUFACTURER = "MedVLM Reader"
SCHEME = "99MEDVLM"
NUMBERS = {"sr": 9901, "dicom-pdf": 9902, "sc": 9903, "pmap": 9904, "seg": 9905}
"""Series numbers, far from those of scanners."""
KINDS = {
    "sr": "report", "dicom-pdf": "report as PDF", "sc": "key images", "pmap": "attention map",
    "seg": "attention region",
}  # fmt: skip


def uid(report: Report, kind: str, *more: object) -> str:
    """A UID that follows from the report, the kind and what else is given: the same export is the same object."""
    from pydicom.uid import generate_uid

    mark = json.dumps([report.plain(), kind, [str(one) for one in more]], sort_keys=True)
    return str(generate_uid(entropy_srcs=[hashlib.sha256(mark.encode()).hexdigest()]))


def common(report: Report, kind: str, *more: object) -> dict[str, Any]:
    """Arguments that highdicom's objects share."""
    return {
        "series_instance_uid": uid(report, kind, "series"), "series_number": NUMBERS[kind],
        "sop_instance_uid": uid(report, kind, "instance", *more), "instance_number": 1, "manufacturer": MANUFACTURER,
    }  # fmt: skip


def device(report: Report) -> dict[str, Any]:
    """Model, revision and software as DICOM's equipment has them."""
    said = report.provenance
    return {
        "manufacturer_model_name": short(said.model), "device_serial_number": short(said.revision) or "unknown",
        "software_versions": [short(f"{MANUFACTURER} {__version__}"), short(f"revision {said.revision}")],
    }  # fmt: skip


def stamp(exported: Any, report: Report, kind: str, when: str = "") -> None:
    """Say in the object what it is, who made it, and when."""
    moment = local(when or report.provenance.created)
    exported.SeriesDescription = short(f"{BANNER}: {KINDS[kind]}")
    exported.Manufacturer = MANUFACTURER
    for keyword, value in zip(
        ("ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"), device(report).values(), strict=True
    ):
        setattr(exported, keyword, value)
    _settle(exported, uid(report, kind, "dimensions"), moment)
    for part in ("Series", "Content", "InstanceCreation"):
        setattr(exported, f"{part}Date", moment.strftime("%Y%m%d"))
        setattr(exported, f"{part}Time", moment.strftime("%H%M%S"))


def _settle(exported: Any, dimensions: str, moment: datetime) -> None:
    """What libraries draw by chance or by the clock, so that the same export is the same bytes."""
    for element in exported.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions
        elif element.keyword == "ContributionDateTime":
            element.value = moment.strftime("%Y%m%d%H%M%S")


def local(when: str) -> datetime:
    """A moment of a report in the machine's own time, which a header without a time zone is taken to mean."""
    try:
        return datetime.fromisoformat(when).astimezone()
    except ValueError as error:
        raise ReaderError("The report's date is damaged. Make the report anew from its reading.") from error


def short(text: str, most: int = 64) -> str:
    """One line that fits a DICOM string; a backslash would end it."""
    line = " ".join(text.replace("\\", "/").split())
    return line if len(line) <= most else f"{line[: most - 3].rstrip()}..."


def references(headers: Sequence[Any]) -> Any:
    """Headers as a sequence of class and instance UIDs."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    items = []
    for one in headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        items.append(item)
    return Items(items)
