"""What the worker writes of a report: the same files as `medvlmreader export`, with the packages of its own Python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.source import source_of_loaded
from MedVLMReaderLib.export.writing import PACKAGES, Draft, export
from MedVLMReaderLib.listing import listed
from MedVLMReaderLib.report import Report
from MedVLMReaderLib.worker.protocol import read_reading, volume_from


def exported(folder: Path, asked: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files, all or none. ReaderError with the reason, OSError where they cannot be written.

    `folder`: the private one, in which reading and voxels are.
    """
    kinds = [str(kind) for kind in asked["kinds"]]
    _check_packages(kinds)
    reading, report = read_reading(folder, asked["reading"]), Report.from_plain(asked["report"])
    if not report.listed:
        report = replace(report, listed=tuple(listed(reading)))
    volume = next((volume_from(folder, one) for one in asked["volumes"]), None)
    if volume is not None and reading.preparation.get("study", volume.key) != volume.key:
        raise ReaderError(
            "This scan was moved or changed since it was read: the report would not be about it. Read it again."
        )
    source = source_of_loaded(volume, asked["files"]) if volume is not None and asked["files"] else None
    start, stop = asked["span"]
    words = None if asked["whole"] else (int(start), int(stop))
    return export(Draft(report, reading, source, volume, words), kinds, Path(asked["folder"]))


def _check_packages(kinds: Sequence[str]) -> None:
    """ReaderError naming what is missing, before any work is done."""
    for name, users in PACKAGES.items():
        if not set(users) & set(kinds):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            raise ReaderError(
                f"The Python that reads ({sys.executable}) lacks '{missing.name}', which this kind of file needs. "
                "In Slicer open 'Set-up and models' and look again. Elsewhere install it there: pip install "
                "'medvlmreader[export]'"
            ) from missing
