"""`export`: a kept reading as text, Markdown, PDF, FHIR or DICOM; and, where that is asked for, to an archive."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import bar, check_writable, loaded, say, say_json, scan, step, unwritable

if TYPE_CHECKING:
    from MedVLMReaderLib.export.source import Source
    from MedVLMReaderLib.export.writing import Draft
    from MedVLMReaderLib.reader import Reader
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.report import Report
    from MedVLMReaderLib.study import Seen
    from MedVLMReaderLib.volume import Volume

DICOM_KINDS = ("sr", "dicom-pdf", "sc", "pmap", "seg")


def export(arguments: Namespace) -> None:
    """Write the files, and send what is DICOM where a target is named."""
    from MedVLMReaderLib.export.sending import target_of
    from MedVLMReaderLib.export.writing import export as write

    kinds = list(dict.fromkeys(kind for some in arguments.to for kind in some))
    check_packages(kinds, bool(arguments.send))
    target = target_of(arguments.send) if arguments.send else None
    if target and not set(kinds) & set(DICOM_KINDS):
        raise ReaderError(f"Only DICOM can be sent. Add one of {', '.join(DICOM_KINDS)} to --to.")
    reading, report = _opened(arguments)
    out = arguments.out or arguments.reading / "export"
    check_writable(out)
    draft = _draft(reading, report, kinds, arguments)
    try:
        files = write(draft, kinds, out)
    except OSError as error:
        raise unwritable(out, error) from error
    found: dict[str, Any] = {"files": files}
    if target:
        found["sent"] = _sent([path for path in files if path.suffix == ".dcm"], target, out)
    _tell(found, arguments)


def check_packages(kinds: Sequence[str], send: bool = False) -> None:
    """ReaderError naming what is missing, before any work is done."""
    from MedVLMReaderLib.export.writing import PACKAGES

    needed = [name for name, users in PACKAGES.items() if set(users) & set(kinds)]
    for name in [*needed, *(["pynetdicom", "dicomweb_client"] if send else [])]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            raise ReaderError(
                f"This needs the package '{missing.name}', which is not installed. "
                "Run: pip install 'medvlmreader[export]'"
            ) from missing


def _sent(files: list[Path], target: Any, out: Path) -> dict[str, int]:
    from MedVLMReaderLib.export.sending import send

    step(f"Sending {len(files)} objects ...")
    sent = send(files, target, out)
    return {"now": sent.now, "before": sent.before}


def _opened(arguments: Namespace) -> tuple[Reading, Report]:
    """The reading, and its report: the edited one that is kept beside it, where there is one."""
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.report import FILE, Report, report_of
    from MedVLMReaderLib.session import FILE as CHAT

    folder = arguments.reading
    if (folder / CHAT).exists():
        return _of_chat(folder)
    reading = Reading.load(folder)
    original = Reading.load(arguments.original) if arguments.original else None
    if (folder / FILE).exists():
        return reading, Report.load(folder)
    return reading, report_of(reading, original)


def _of_chat(folder: Path) -> tuple[Reading, Report]:
    from MedVLMReaderLib.report import report_of_chat, report_turn
    from MedVLMReaderLib.session import ChatSession

    session = ChatSession.load(folder)
    report = report_of_chat(session)
    return session.turns[report_turn(session)].reading, report


def _draft(reading: Reading, report: Report, kinds: list[str], arguments: Namespace) -> Draft:
    from MedVLMReaderLib.export.writing import Draft
    from MedVLMReaderLib.listing import listed

    source, volume = _scan(reading, bool(set(kinds) & set(DICOM_KINDS)), arguments)
    if not report.listed:
        report = replace(report, listed=listed(reading))
    if arguments.list_findings or arguments.verify:
        report = _by_model(reading, report, source.volume if source else volume, arguments)
    if arguments.sentence is not None and arguments.sentence > len(reading.sentences):
        raise ReaderError(f"No sentence {arguments.sentence}: the text has {len(reading.sentences)}, counted from 1.")
    words = arguments.words if arguments.sentence is None else arguments.sentence - 1
    return Draft(report, reading, source, volume, words, arguments.threshold, arguments.subject or "")


def _scan(reading: Reading, needed: bool, arguments: Namespace) -> tuple[Source | None, Volume | None]:
    """The DICOM source; where no object needs one, a scan of any format, for key images."""
    from MedVLMReaderLib.dicom import check_readable, is_dicom
    from MedVLMReaderLib.export.source import source_of

    place = arguments.source
    if place is None:
        return None, None
    check_readable(place)
    if needed or place.is_dir() or is_dicom(place):
        return source_of(reading, place, arguments.series), None
    volume = scan(place, None)
    if reading.preparation.get("study", volume.key) != volume.key:
        raise ReaderError("This scan is not the one that was read, or has changed since. Name the one that was read.")
    return None, volume


def _by_model(reading: Reading, report: Report, volume: Volume | None, arguments: Namespace) -> Report:
    """The findings as the model lists them in JSON that keeps to the schema, and whether the image supports each."""
    from MedVLMReaderLib.constrained import listed_by

    if volume is None:
        raise ReaderError("To list or verify its findings, the model must see the scan. Name it with --source.")
    reader = loaded(arguments.model or reading.model, arguments)
    seen = reader.see(volume)
    if arguments.list_findings:
        step("Listing the findings ...")
        report = replace(report, listed=listed_by(reader, seen, reading))
    return replace(report, listed=_verified(report, reading, reader, seen, volume)) if arguments.verify else report


def _verified(report: Report, reading: Reading, reader: Reader, seen: Seen, volume: Volume) -> tuple[Any, ...]:
    """The findings with what verification says of each sentence; sentences that were edited are not the model's."""
    from MedVLMReaderLib.structured import with_verdicts

    asked = [one for one in dict.fromkeys(found.sentence for found in report.findings) if one in reading.text]
    if asked and not reading.traces:
        raise ReaderError(
            "This reading was made without heatmaps, and verification paints over what they mark. Read the scan again "
            "without --no-heatmaps."
        )
    verdicts: dict[str, str] = {}
    for sentence in bar(asked, "Sentences"):
        verdicts[sentence] = reader.verify(volume, seen, reading, sentence).said
    return with_verdicts(report.listed, verdicts)


def _tell(found: dict[str, Any], arguments: Namespace) -> None:
    if arguments.json:
        say_json(found)
        return
    say(f"Files: {', '.join(str(path) for path in found['files'])}")
    if "sent" in found:
        say(f"Sent: {found['sent']['now']} now, {found['sent']['before']} were there before.")
