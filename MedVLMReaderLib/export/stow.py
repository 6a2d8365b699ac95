"""An archive that takes STOW-RS: a DICOMweb server. Credentials come from ~/.netrc, as requests reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.identity import unvalidated

SCHEMES = ("http://", "https://")
SECONDS = 60


@dataclass(frozen=True)
class WebTarget:
    """The address under which a server has /studies."""

    url: str

    def __str__(self) -> str:
        return self.url

    def connected(self, headers: Sequence[Any]) -> WebConnection:
        """Ready to store. ReaderError where nobody answers there, or not as DICOMweb does."""
        from dicomweb_client.api import DICOMwebClient

        try:
            client = DICOMwebClient(self.url, timeout=SECONDS)
        except ValueError as error:
            raise ReaderError(
                f"'{self.url}' is no address. Write http(s)://HOST:PORT/PATH of a DICOMweb server."
            ) from error
        client.set_http_retry_params(retry=False)  # whoever repeats must first ask what has arrived
        connection = WebConnection(self, client)
        if headers:
            connection.has(headers[0])
        return connection


class WebConnection:
    """A server that answers, see `sending.Connection`."""

    def __init__(self, target: WebTarget, client: Any) -> None:
        self.target, self.client = target, client

    def has(self, header: Any) -> bool:
        uids = {name: str(header[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
        with self._asking():
            found = self.client.search_for_instances(search_filters=uids, limit=1)
        return bool(found)

    def store(self, path: Path) -> None:
        import pydicom

        with self._asking(), unvalidated():
            answer = self.client.store_instances([pydicom.dcmread(path)])
        if failed := answer.get("FailedSOPSequence"):
            reason = failed[0].get("FailureReason")
            code = "" if reason is None else f" (reason {int(reason):04X})"
            raise ReaderError(f"{self.target} refused {path.name}{code}.")

    def close(self) -> None:
        """Each request stands alone."""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns what the network or the server refuses into words; a server's own words may hold a patient's name."""
        import requests

        try:
            yield
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "an error"
            raise ReaderError(f"{self.target} answers {code}. Check the address and your rights there.") from None
        except (requests.RequestException, OSError) as error:
            raise ReaderError(
                f"{self.target} cannot be reached ({type(error).__name__}). Check the address; then try again."
            ) from None
