"""Who a scan is of: the patient and study modules of its headers, read strictly, and put into what is exported.

No message here holds a value of a header.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.slices import quiet

PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "ReferencedPatientSequence", "SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence",
    "PatientBirthDate", "PatientBirthTime", "PatientBirthDateInAlternativeCalendar",
    "PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar", "PatientSex", "QualityControlSubject",
    "StrainDescription", "StrainNomenclature", "StrainStockSequence", "StrainAdditionalInformation",
    "StrainCodeSequence", "GeneticModificationsSequence", "OtherPatientNames", "OtherPatientIDs",
    "OtherPatientIDsSequence", "ReferencedPatientPhotoSequence", "EthnicGroup", "EthnicGroupCodeSequence",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientComments", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "IssuerOfClinicalTrialProtocolID", "OtherClinicalTrialProtocolIDsSequence", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "IssuerOfClinicalTrialSiteID", "ClinicalTrialSubjectID",
    "IssuerOfClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "IssuerOfClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName", "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
)  # fmt: skip
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence", "StudyDescription", "ProcedureCodeSequence", "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence", "ReferencedStudySequence", "StudyID", "RequestingService",
    "RequestingServiceCodeSequence", "ReasonForPerformedProcedureCodeSequence", "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientSizeCodeSequence", "PatientBodyMassIndex",
    "MeasuredAPDimension", "MeasuredLateralDimension", "PatientWeight", "MedicalAlerts", "Allergies", "Occupation",
    "SmokingStatus", "AdditionalPatientHistory", "PregnancyStatus", "LastMenstrualDate", "PatientSexNeutered",
    "ReasonForVisit", "ReasonForVisitCodeSequence", "AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID",
    "ServiceEpisodeDescription", "IssuerOfServiceEpisodeIDSequence", "PatientState", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription", "LongitudinalTemporalOffsetFromEvent", "LongitudinalTemporalEventType",
    "ClinicalTrialTimePointTypeCodeSequence", "IssuerOfClinicalTrialTimePointID", "ConsentForClinicalTrialUseSequence",
)  # fmt: skip
"""The attributes of the patient and study modules (PS3.3 C.7.1 and C.7.2), clinical trial and older ones among them."""
ALWAYS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID",
)  # fmt: skip
"""Type 2: there, if need be without a value."""
SAME = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
"""What all slices of a series must agree on."""
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
UTF8 = "ISO_IR 192"


def header(path: Path) -> Any:
    """All of a file's header but the pixels, decoded. ReaderError where it is damaged or its letters are in doubt."""
    import pydicom

    try:
        with _strict():
            whole = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            whole.decode()
            identity = identity_of(whole)
    except UserWarning:
        raise ReaderError(_LETTERS) from None
    except Exception:  # a damaged header makes the parser raise anything; its words may hold header text
        raise ReaderError("A header of the source series is damaged. Copy or export the series again.") from None
    declared = whole.get("SpecificCharacterSet") or ""
    if declared in ("", "ISO_IR 6", "ISO 2022 IR 6") and not all(text.isascii() for text in _texts(identity)):
        raise ReaderError(_LETTERS)
    return whole


_LETTERS = (
    "A patient or study tag of the source has letters outside the character set that its header declares; nobody can "
    "be sure of the name. Correct (0008,0005) Specific Character Set in the source series, then export again."
)


@contextmanager
def _strict() -> Iterator[None]:
    """Letters that cannot be decoded are an error; odd values otherwise stay as they are. Nothing is printed."""
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with quiet(), warnings.catch_warnings():
            for said in ("Failed to decode", "Unknown encoding", "Found unknown escape", "Value .* for Specific"):
                warnings.filterwarnings("error", message=said)
            yield
    finally:
        config.settings.reading_validation_mode = before


@contextmanager
def unvalidated() -> Iterator[None]:
    """Values are written as they are, long or odd as the source has them; nothing is printed."""
    from pydicom import config

    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    try:
        with quiet():
            yield
    finally:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


def identity_of(whole: Any) -> Any:
    """The patient and study modules of a decoded header, as a dataset of their own; type 2 attributes always."""
    from pydicom.dataset import Dataset

    with unvalidated():
        found = Dataset()
        for keyword in (*PATIENT, *STUDY):
            if keyword in whole:
                found[keyword] = copy.deepcopy(whole[keyword])
            elif keyword in ALWAYS:
                setattr(found, keyword, None)
        _as_text(found)
    return found


def _as_text(found: Any) -> None:
    """Names as letters instead of bytes, and no character sets inside, so that one set holds for all."""
    from pydicom.multival import MultiValue

    for element in found:
        if element.VR == "SQ":
            for item in element.value:
                item.pop("SpecificCharacterSet", None)
                _as_text(item)
        elif element.VR == "PN" and element.value:
            many = isinstance(element.value, MultiValue)
            element.value = [str(one) for one in element.value] if many else str(element.value)


def _texts(found: Any) -> Iterator[str]:
    for element in found:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "CS", "AS", "DA", "TM", "UI"):
            yield str(element.value or "")


def check_same(headers: Sequence[Any]) -> None:
    """ReaderError where the slices are not all of one patient, study and frame, or lack what an archive files by."""
    for keyword in UIDS:
        if not all(_is_uid(one.get(keyword)) for one in headers):
            raise ReaderError(
                f"The source has no valid {keyword}: an archive could not file the report with it. "
                "Export the series again from where it came from."
            )
    for keyword in SAME:
        several = {_plain(one.get(keyword)) for one in headers}
        if len(several) > 1:
            who = "two patients" if keyword.startswith(("Patient", "Issuer")) else "more than one source"
            raise ReaderError(
                f"The slices of the source disagree on {keyword} ({len(several)} values): they may be of {who}. "
                "Nothing is exported. Export the series again from where it came from."
            )
    if not _plain(headers[0].get("PatientID")):
        raise ReaderError(
            "The source has no Patient ID: an archive would file the report with everybody else's who has none. "
            "Give the series an ID first."
        )


def _is_uid(value: Any) -> bool:
    from pydicom.uid import UID

    return bool(value) and UID(str(value)).is_valid


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()


def land(exported: Any, identity: Any) -> None:
    """Put the patient and study modules into an exported dataset, in the place of whatever it had; UTF-8 throughout."""
    with unvalidated():
        for keyword in (*PATIENT, *STUDY):
            exported.pop(keyword, None)
        for element in identity:
            exported[element.tag] = copy.deepcopy(element)
        exported.SpecificCharacterSet = UTF8


def written(exported: Any, identity: Any) -> bytes:
    """The file, read back and held against the identity. ReaderError where that would not be what it was."""
    import io

    import pydicom

    land(exported, identity)
    file = io.BytesIO()
    try:
        with unvalidated():
            pydicom.dcmwrite(file, exported, enforce_file_format=True)
            again = pydicom.dcmread(io.BytesIO(file.getvalue()), stop_before_pixels=True)
            same = _equal(identity_of(again), identity)
    except Exception:  # what pydicom says of a value may hold the value
        same = False
    if not same:
        raise ReaderError(
            "A patient or study tag of the source would not come out of the exported file as it went in. Nothing is "
            "exported. Correct the tags of the source series."
        )
    return file.getvalue()


def _equal(one: Any, other: Any) -> bool:
    """The same attributes with the same values; only the space around them may differ."""
    if set(one.keys()) != set(other.keys()):
        return False
    return all(_same_values(one[tag], other[tag]) for tag in one.keys())  # noqa: SIM118 - a dataset yields elements


def _same_values(one: Any, other: Any) -> bool:
    if one.VR == "SQ" or other.VR == "SQ":
        return (
            one.VR == other.VR
            and len(one.value) == len(other.value)
            and all(_equal(a, b) for a, b in zip(one.value, other.value, strict=True))
        )
    return _plain(one.value) == _plain(other.value)
