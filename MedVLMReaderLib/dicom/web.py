"""Studies on a DICOMweb server: found by QIDO-RS, fetched by WADO-RS one series at a time, and never sent anywhere.

Files are put into a private temporary folder while they are read. Credentials come from ~/.netrc, as requests reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.dicom.chosen import THINNEST, Indexed, chosen, indexed
from MedVLMReaderLib.dicom.series import by_series, parts, volume_of
from MedVLMReaderLib.dicom.slices import Slice, quiet, slices_of
from MedVLMReaderLib.room import check_room
from MedVLMReaderLib.volume import Volume

PAGE = 200
"""Studies that are asked for at a time."""


@dataclass(frozen=True)
class WebStudy:
    """A series on a server, to be fetched and read."""

    id: str
    url: str
    study: str
    """UID of the examination."""
    series: str
    """UID of the series."""
    part: int = 0
    voxels: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Its address and UIDs."""
        return (f"{self.url}/studies/{self.study}/series/{self.series}", self.url, self.study, self.series)

    @contextmanager
    def source(self) -> Iterator[Sequence[Path]]:
        """Its files, fetched into a private temporary folder that goes with the context."""
        with tempfile.TemporaryDirectory(prefix="medvlmreader-") as scratch:
            with _asking(self.url):
                for n, dataset in enumerate(_client(self.url).iter_series(self.study, self.series)):
                    dataset.save_as(Path(scratch) / f"{n:06d}.dcm", enforce_file_format=True)
            yield sorted(Path(scratch).iterdir())

    def read(self) -> Volume:
        """Its voxels; ReaderError where the server does not give them."""
        check_room(self.voxels)
        with self.source() as paths:
            slices = [one for path in paths for one in slices_of(path)[0]]
            stacks = [stack for group in by_series(slices) for stack in parts(group)]
            for stack in stacks:
                if stack.series.part == self.part:
                    return volume_of(stack)
        raise ReaderError("The series is not what the server said it was. Start the same command again.")


def studies_at(url: str, query: str | None = None, rule: str = THINNEST) -> list[WebStudy]:
    """The studies of a server that fit `query` ("ModalitiesInStudy=CT,StudyDate=20260101-"), one series of each by
    the rule of `chosen.chosen_series`. ReaderError where it does not answer, or has none."""
    url, found = url.rstrip("/"), []
    with _asking(url):
        client = _client(url)
        for study in _all_studies(client, _filters(query)):
            uid = _value(study, "0020000D")
            series = [one for header in client.search_for_series(uid) for one in _series(client, uid, header)]
            uids = {one.id: own for one, own in series}
            picked = chosen([one for one, _ in series], rule)
            found += [WebStudy(one.id, url, uid, uids[one.id], one.part, one.voxels) for one in picked]
    if not found:
        raise ReaderError(f"The server at '{url}' has no CT or MR series that fits. Ask otherwise with --query.")
    return sorted(found, key=lambda one: one.id)


def _client(url: str) -> Any:
    from dicomweb_client.api import DICOMwebClient

    client = DICOMwebClient(url)
    client.set_http_retry_params(
        max_attempts=3, wait_exponential_multiplier=200
    )  # not half a minute for a wrong address
    return client


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turns what the network or the server refuses into words; a server's own words may hold a patient's name."""
    import requests

    try:
        with quiet():
            yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise ReaderError(f"The server at '{url}' answers {code}. Check the address and your rights there.") from None
    except (requests.RequestException, OSError) as error:
        raise ReaderError(f"No server answers at '{url}' ({type(error).__name__}). Check the address.") from None


def _filters(query: str | None) -> dict[str, str]:
    words = [word.partition("=") for word in (query or "").split(",") if word.strip()]
    if wrong := [name for name, sign, value in words if not (name.strip() and sign and value.strip())]:
        raise ReaderError(f"'{wrong[0]}' is no condition. Write --query like ModalitiesInStudy=CT,StudyDate=20260101-.")
    return {name.strip(): value.strip() for name, _, value in words}


def _all_studies(client: Any, filters: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Page after page, since servers give only so many at a time."""
    offset = 0
    while page := client.search_for_studies(limit=PAGE, offset=offset, search_filters=filters or None):
        yield from page
        offset += len(page)
        if len(page) < PAGE:
            return


def _value(header: dict[str, Any], tag: str) -> Any:
    """The first value of an attribute in DICOM's JSON; "" where there is none."""
    return (header.get(tag, {}).get("Value") or [""])[0]


def _series(client: Any, study: str, header: dict[str, Any]) -> Iterator[tuple[Indexed, str]]:
    """The volumes of a series, by the headers of its pictures, with its UID. None is fetched."""
    import pydicom

    uid = _value(header, "0020000E")
    if _value(header, "00080060") not in ("CT", "MR"):
        return
    slices: list[Slice] = []
    with tempfile.TemporaryDirectory(prefix="medvlmreader-") as scratch:
        for n, content in enumerate(client.retrieve_series_metadata(study, uid)):
            path = Path(scratch) / f"{n:06d}.dcm"
            pydicom.Dataset.from_json(content, bulk_data_uri_handler=lambda *_: b"").save_as(
                path, implicit_vr=False, little_endian=True
            )
            slices += slices_of(path)[0]
    for stack in (stack for group in by_series(slices) for stack in parts(group)):
        yield indexed(stack), uid
