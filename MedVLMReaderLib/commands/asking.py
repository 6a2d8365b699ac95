"""`read` and `ask`: words as they come, then the reading's folder."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from MedVLMReaderLib.commands import FINE, INTERRUPTED, WRONG
from MedVLMReaderLib.commands.keeping import Kept, kept, provenance
from MedVLMReaderLib.commands.terminal import Stop, check_writable, loaded, say, say_json, scan, step, warn

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.volume import Volume


def read(arguments: Namespace) -> int:
    """Write a report on a study."""
    volume = scan(arguments.study, arguments.series)
    out = arguments.out or Path("readings") / volume.source
    check_writable(out)
    reader = loaded(arguments.model, arguments)
    return _asked(reader, volume, reader.model.report_request(), out, arguments)


def ask(arguments: Namespace) -> int:
    """Answer a question about a study."""
    volume = scan(arguments.study, arguments.series)
    mark = hashlib.sha256(arguments.question.encode()).hexdigest()[:6]
    out = arguments.out or Path("readings") / f"{volume.source}-{mark}"  # beside the report, not over it
    check_writable(out)
    return _asked(loaded(arguments.model, arguments), volume, arguments.question, out, arguments)


def _asked(reader: Reader, volume: Volume, question: str, out: Path, arguments: Namespace) -> int:
    step("Looking at the scan ...")
    seen = reader.see(volume)
    aside = sys.stderr if arguments.json else sys.stdout
    for note in seen.notes:
        say(f"Note: {note}", to=aside)
    if seen.notes:
        say(to=aside)
    with Stop() as stopped:
        reading = _streamed(reader, seen, question, stopped, arguments)
        of = {"study": volume.key, "sources": [volume.source]}
        reading = replace(reading, preparation={**reading.preparation, **of})
        done = kept(reading, volume, out, stopped, getattr(arguments, "question", ""))
    _tell(reading, done, arguments)
    if done.trouble:
        warn(f"medvlmreader: {done.trouble}")
        return WRONG
    return INTERRUPTED if stopped() else FINE


def _streamed(reader: Reader, seen: object, question: str, stopped: Stop, arguments: Namespace) -> Reading:
    """The reading; its words are printed as they come."""
    from MedVLMReaderLib.reader import Options

    options = Options(longest=arguments.longest, heatmaps=not arguments.no_heatmaps)
    last: str | Reading = ""
    for last in reader.ask(seen, question, options=options, stopped=stopped):  # type: ignore[arg-type]
        if isinstance(last, str) and not arguments.json:
            say(last, end="")
    if isinstance(last, str):
        raise RuntimeError("The reader ended without a reading.")
    if not arguments.json:
        say("\n")
    return last


def _tell(reading: Reading, done: Kept, arguments: Namespace) -> None:
    """What is said after the text."""
    if arguments.json:
        content = reading.plain()[0]
        for bulky in ("grids", "traces"):
            del content[bulky]
        say_json({**content, "sentences": done.sentences, "folder": done.folder, "files": done.files})
        return
    say(provenance(reading))
    for problem in done.skipped:
        say(problem)
    if done.folder is not None:
        say(f"Files in {done.folder}: {', '.join(path.name for path in done.files)}")
