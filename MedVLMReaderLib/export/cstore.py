"""An archive that takes C-STORE: `Target`, and the association over which objects go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.identity import unvalidated

CALLER = "MEDVLMREADER"
SECONDS = 30
_TARGET = re.compile(r"(?:(?P<title>[\x21-\x3f\x41-\x5b\x5d-\x7e]{1,16})@)?(?P<host>[^\s@]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Target:
    """Where an archive listens, and its application entity title."""

    host: str
    port: int
    title: str = "ANY-SCP"

    @classmethod
    def of(cls, text: str) -> Target:
        """The target written as TITLE@HOST:PORT or HOST:PORT. ReaderError for anything else."""
        match = _TARGET.fullmatch(text.strip())
        if not match or not 0 < int(match["port"]) < 65536:
            raise ReaderError(
                f"'{text}' is no archive. Write TITLE@HOST:PORT, for example ORTHANC@127.0.0.1:4242, or the address of "
                "a DICOMweb server."
            )
        return cls(match["host"].strip("[]"), int(match["port"]), match["title"] or "ANY-SCP")

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"

    def connected(self, headers: Sequence[Any]) -> Association:
        """Open for the classes of these objects. ReaderError where it cannot be reached or refuses."""
        from pydicom.uid import ExplicitVRLittleEndian
        from pynetdicom import AE
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

        entity = AE(ae_title=CALLER)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
        entity.connection_timeout = SECONDS
        for name in dict.fromkeys(str(one.SOPClassUID) for one in headers):
            entity.add_requested_context(name, ExplicitVRLittleEndian)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = entity.associate(self.host, self.port, ae_title=self.title)
        if association.is_established:
            return Association(self, association)
        why = "refused the connection" if association.is_rejected else "cannot be reached"
        raise ReaderError(
            f"{self} {why}. Check its name, address and port, and that it knows '{CALLER}'; then try again."
        )


class Association:
    """An open association, see `sending.Connection`."""

    def __init__(self, target: Target, association: Any) -> None:
        self.target, self.association = target, association

    def has(self, header: Any) -> bool:
        from pydicom.dataset import Dataset
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(asked, keyword, header[keyword].value)
        try:
            answers = list(self.association.send_c_find(asked, StudyRootQueryRetrieveInformationModelFind))
        except (RuntimeError, ValueError):  # it does not answer such questions; storing again changes nothing there
            return False
        return any(status and status.Status in (0xFF00, 0xFF01) for status, _ in answers)

    def store(self, path: Path) -> None:
        import pydicom

        try:
            with unvalidated():
                status = self.association.send_c_store(pydicom.dcmread(path))
        except RuntimeError as error:
            raise ReaderError(f"The connection to {self.target} was lost.") from error
        except ValueError as error:
            raise ReaderError(f"{self.target} does not take objects of this kind ({path.name}).") from error
        code = status.get("Status") if status else None
        if code is None:
            raise ReaderError(f"The connection to {self.target} was lost.")
        if code != 0 and code >> 12 != 0xB:
            raise ReaderError(f"{self.target} refused {path.name} (status {code:04X}).")

    def close(self) -> None:
        if self.association.is_established:
            self.association.release()
