"""One study of many: what reads it, how it is asked, and what is kept of it, or what went wrong.

What is kept depends on the study, the model and the questions alone, never on how many were read beside it; when,
where and how fast is kept apart.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from MedVLMReaderLib.batch.failure import error_files
from MedVLMReaderLib.batch.host import host_facts
from MedVLMReaderLib.batch.shelf import STUDY, Shelf, file_list
from MedVLMReaderLib.dicom import is_key
from MedVLMReaderLib.reading import MADE, Reading
from MedVLMReaderLib.study import Stopped
from MedVLMReaderLib.thumbnail import thumbnail
from MedVLMReaderLib.volume import Volume

State = Literal["read", "failed", "there", "stopped"]


class Answers(Protocol):
    """What reads: a `Reader`, or whatever asks one elsewhere."""

    def see(self, volumes: Volume, *, stopped: Callable[[], bool]) -> Any:
        """A study after the encoder. Raises Stopped once `stopped` says True."""

    def ask(self, seen: Any, question: str, *, stopped: Callable[[], bool]) -> Iterator[str | Reading]:
        """Words, and last the reading. With `options=` where the settings have some."""

    def forget(self) -> None:
        """Begin the next answer from nothing."""


class Study(Protocol):
    """Something to read."""

    @property
    def id(self) -> str:
        """Opaque: names its folder."""

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called where it lies; may name a patient, so it is never copied into what is kept."""

    def read(self) -> Volume:
        """Its voxels. Raises ReaderError where they cannot be had."""

    def source(self) -> AbstractContextManager[Path | Sequence[Path]]:
        """Where its DICOM files lie, a folder or all of them, while the context lasts; () where it is of none."""


@dataclass(frozen=True)
class Settings:
    """How every study of a run is asked: what its answers depend on besides the study."""

    model: str
    revision: str
    questions: tuple[str, ...]
    options: Any = None
    """Handed to `ask`: a dataclass of plain values, or None for its defaults."""
    threads: int = 1
    """Of the encoder and of the decoder, each."""
    pictures: bool = False
    """Keep a picture of every sentence's heatmap, and a page of them."""
    to: tuple[str, ...] = ()
    """Kinds of `export.writing` that each reading is exported as; no reading depends on it, and it may change."""

    def plain(self) -> dict[str, Any]:
        """As JSON-ready data."""
        options = asdict(self.options) if is_dataclass(self.options) else self.options  # type: ignore[arg-type]
        plain = {**asdict(replace(self, options=None)), "questions": list(self.questions), "options": options}
        return {name: value for name, value in plain.items() if name != "to"}


@dataclass(frozen=True)
class Outcome:
    """What became of a study."""

    study: str
    state: State
    why: str = ""
    refused: str = ""
    """Why it was read and not exported."""


class Desk:
    """A reader at which two studies may be in work: one before the encoder, one before the decoder."""

    def __init__(self, reader: Answers, where: str = "") -> None:
        self.reader, self.where = reader, where
        self.encoder, self.decoder = threading.Lock(), threading.Lock()


def read_study(
    desk: Desk, study: Study, place: Shelf, settings: Settings, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Read one study and keep it, or what went wrong with it; then export it where the settings say so.

    Raises OSError where nothing can be kept.
    """
    outcome = _kept_or_failed(desk, study, place, settings, stopped)
    if settings.to and outcome.state in ("read", "there") and not stopped():
        from MedVLMReaderLib.batch.exporting import export_study

        return replace(outcome, refused=export_study(study, place, settings.to))
    return outcome


def _kept_or_failed(desk: Desk, study: Study, place: Shelf, settings: Settings, stopped: Callable[[], bool]) -> Outcome:
    if place.complete(study.id):
        return Outcome(study.id, "there")
    if stopped():
        return Outcome(study.id, "stopped")
    place.begin(study.id)
    at = ["reading the scan"]
    try:
        files = _read(desk, study, settings, stopped, at)
    except Stopped:
        place.drop(study.id)
        return Outcome(study.id, "stopped")
    except Exception as error:  # whatever one study does must not cost the others
        files, why = error_files(error, at[0], study.id, study.names)
        place.put(study.id, files)
        return Outcome(study.id, "failed", why)
    place.put(study.id, files)
    return Outcome(study.id, "read")


def _read(desk: Desk, study: Study, settings: Settings, stopped: Callable[[], bool], at: list[str]) -> dict[str, bytes]:
    """Name -> content of all that is kept of a study. `at` says what is being done."""
    with desk.encoder:
        began = time.monotonic()
        volume = study.read()
        took = {"scan": time.monotonic() - began}
        at[0] = "looking at the scan"
        seen = desk.reader.see(volume, stopped=stopped)
        took["encoder"] = time.monotonic() - began - took["scan"]
    key = volume.key
    with desk.decoder:
        at[0] = "answering"
        desk.reader.forget()
        readings = [_asked(desk.reader, seen, question, settings, stopped) for question in settings.questions]
    at[0] = "drawing"
    files: dict[str, bytes] = {"thumbnail.png": thumbnail(volume)}
    for number, reading in enumerate(readings, 1):
        folder = f"{number:02d}/" if len(readings) > 1 else ""
        reading = replace(reading, preparation={**reading.preparation, "study": key, **_sources(volume)})
        files |= {f"{folder}{name}": content for name, content in _kept(reading, volume, settings).items()}
        made = json.loads(files[f"{folder}{MADE}"])
        made |= {"timings": {**took, **made["timings"]}, "host": {**host_facts(), "worker": desk.where}}
        files[f"{folder}{MADE}"] = json.dumps(made, indent=1).encode()
    return files | {STUDY: _contents(study.id, volume, key, files, len(readings))}


def _sources(volume: Volume) -> dict[str, list[str]]:
    """The series' key, by which an export knows it; a scene's names of nodes mean nothing elsewhere."""
    return {"sources": [volume.source]} if is_key(volume.source) else {}


def _asked(reader: Answers, seen: Any, question: str, settings: Settings, stopped: Callable[[], bool]) -> Reading:
    how = {} if settings.options is None else {"options": settings.options}
    reading = None
    for said in reader.ask(seen, question, stopped=stopped, **how):
        reading = said if isinstance(said, Reading) else None
    if stopped():
        raise Stopped
    if reading is None:
        raise RuntimeError("The reader ended without a reading.")
    return reading


def _kept(reading: Reading, volume: Volume, settings: Settings) -> dict[str, bytes]:
    files = reading.files(apart=True)
    if settings.pictures:
        from MedVLMReaderLib.batch.sentence_pictures import sentence_pictures

        files |= sentence_pictures(reading, volume)
    return files


def _contents(study: str, volume: Volume, key: str, files: dict[str, bytes], answers: int) -> bytes:
    """study.json: what was read, and which files make the folder complete. made.json differs from run to run."""
    lasting = {name: content for name, content in files.items() if not name.endswith(MADE)}
    content = {
        "format": 1, "study": study, "answers": answers, "voxels": key, "modality": volume.modality,
        "shape": list(volume.grid.shape), "spacing_mm": [round(float(x), 4) for x in volume.grid.spacing],
        "files": file_list(lasting),
        "sha256": hashlib.sha256(b"".join(lasting[name] for name in sorted(lasting))).hexdigest(),
    }  # fmt: skip
    return json.dumps(content, indent=1).encode()
