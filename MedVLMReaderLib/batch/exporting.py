"""What is exported of a study once it is read: the same files as `medvlmreader export`, in a folder beside its reading.

A reading whose export is refused stays; why is kept, and it is tried again the next time. DICOM objects are on the
patient of their source, so they name one: nothing is exported unless that is asked for.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.failure import said
from MedVLMReaderLib.batch.shelf import STUDY, Shelf
from MedVLMReaderLib.reading import MADE, Reading

if TYPE_CHECKING:
    from MedVLMReaderLib.batch.desk import Study
    from MedVLMReaderLib.export.source import Source

FOLDER, CONTENTS = "export", "export.json"
"""Where the files of a reading are, and which of them there are or why there are none; it is written last."""


def export_study(study: Study, place: Shelf, kinds: Sequence[str]) -> str:
    """Export every reading of a study that is not exported yet; why it was refused, "" where all went well.

    Raises OSError where nothing can be kept.
    """
    refused = [_export(study, place, folder, kinds) for folder in answers(place, study.id)]
    return next((why for why in refused if why), "")


def is_exported(place: Shelf, study: str, kinds: Sequence[str]) -> bool:
    """Whether every reading of a study is exported as all these kinds."""
    return all(_done(place, folder).issuperset(kinds) for folder in answers(place, study)) if kinds else True


def exported(place: Shelf, folder: str) -> str | None:
    """For a table: the kinds, or why there are none; None where nothing was exported."""
    content = _contents(place, folder)
    return content.get("error") or ", ".join(content.get("kinds", ())) or None


def answers(place: Shelf, study: str) -> Iterator[str]:
    """The folder of each reading of a study, below the shelf."""
    count = _json(place, f"{study}/{STUDY}").get("answers", 0)
    yield from (f"{study}/{number:02d}" if count > 1 else study for number in range(1, count + 1))


def _export(study: Study, place: Shelf, folder: str, kinds: Sequence[str]) -> str:
    done = _done(place, folder)
    if done.issuperset(kinds):
        return ""
    try:
        files = _files(study, _reading(place, folder), kinds)
    except Exception as error:  # a study that cannot be exported must not cost the others
        why = said(error, "exporting", study.names)
        _keep(place, folder, {}, {"kinds": sorted(done), "error": why})
        return why
    _keep(place, folder, files, {"kinds": sorted(done | set(kinds))})
    return ""


def _files(study: Study, reading: Reading, kinds: Sequence[str]) -> dict[str, bytes]:
    from MedVLMReaderLib.export.writing import Draft, files
    from MedVLMReaderLib.listing import listed
    from MedVLMReaderLib.report import report_of

    report = replace(report_of(reading), listed=listed(reading))
    source = _source(study, reading)
    return files(Draft(report, reading, source, None if source else study.read()), kinds)


def _source(study: Study, reading: Reading) -> Source | None:
    """The DICOM series that it was read from, held against the reading; None where it is no DICOM."""
    from MedVLMReaderLib.export.source import source_of, source_of_loaded

    with study.source() as place:
        if not place:
            return None
        if reading.preparation.get("sources"):
            return source_of(reading, place)
        volume = study.read()
        if reading.preparation.get("study") != volume.key:
            raise ReaderError("The scan has changed since it was read: the report would not be about it.")
        return source_of_loaded(volume, [place] if isinstance(place, Path) else place)


def _reading(place: Shelf, folder: str) -> Reading:
    with tempfile.TemporaryDirectory(prefix="medvlmreader-") as scratch:
        for name in ("reading.json", "arrays.npz", MADE):
            if (content := place.get(f"{folder}/{name}")) is not None:
                (Path(scratch) / name).write_bytes(content)
        return Reading.load(Path(scratch))


def _keep(place: Shelf, folder: str, files: dict[str, bytes], content: dict[str, Any]) -> None:
    names = {f"{folder}/{FOLDER}/{name}": file for name, file in files.items()}
    contents = json.dumps({"format": 1, **content}, indent=1, ensure_ascii=False).encode()
    place.write({**names, f"{folder}/{FOLDER}/{CONTENTS}": contents})


def _done(place: Shelf, folder: str) -> set[str]:
    return set(_contents(place, folder).get("kinds", ()))


def _contents(place: Shelf, folder: str) -> dict[str, Any]:
    return _json(place, f"{folder}/{FOLDER}/{CONTENTS}")


def _json(place: Shelf, name: str) -> dict[str, Any]:
    try:
        content = json.loads(place.get(name) or b"")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
