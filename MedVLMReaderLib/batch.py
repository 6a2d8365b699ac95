"""Many studies, one after the other: read, kept each in a folder of its own, gone on with after any interruption.

The encoder sees the next study while the decoder answers about this one. What is kept of a study depends on the study,
the model and the questions alone, never on how many were read beside it; when, where and how fast is kept apart.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, Literal, Protocol

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.failure import error_files
from MedVLMReaderLib.host import host_facts
from MedVLMReaderLib.reading import MADE, Reading
from MedVLMReaderLib.shelf import RUN, STUDY, Shelf, file_list
from MedVLMReaderLib.study import Stopped
from MedVLMReaderLib.thumbnail import thumbnail
from MedVLMReaderLib.volume import Volume

__all__ = ["Answers", "Desk", "Outcome", "Progress", "Report", "Settings", "Study", "read_all", "read_study"]

State = Literal["read", "failed", "there", "stopped"]
AHEAD = 2
"""Studies in work at a time: one before the encoder, one before the decoder."""


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

    def plain(self) -> dict[str, Any]:
        """As JSON-ready data."""
        options = asdict(self.options) if is_dataclass(self.options) else self.options  # type: ignore[arg-type]
        return {**asdict(replace(self, options=None)), "questions": list(self.questions), "options": options}


@dataclass(frozen=True)
class Outcome:
    """What became of a study."""

    study: str
    state: State
    why: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    total: int
    done: int
    """Studies that are through, those that were there before included."""
    failed: int
    left_s: float | None
    """Seconds that the rest will take, by what the others took; None before the first."""
    last: Outcome | None = None


@dataclass(frozen=True)
class Report:
    """What a run came to, in numbers of studies."""

    total: int
    read: int
    there: int
    failed: int
    stopped: bool = False

    @property
    def missing(self) -> int:
        """Studies that nobody got to."""
        return self.total - self.read - self.there - self.failed


class Desk:
    """A reader at which two studies may be in work: one before the encoder, one before the decoder."""

    def __init__(self, reader: Answers, where: str = "") -> None:
        self.reader, self.where = reader, where
        self.encoder, self.decoder = threading.Lock(), threading.Lock()


def read_study(
    desk: Desk, study: Study, place: Shelf, settings: Settings, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Read one study and keep it, or what went wrong with it. Raises OSError where nothing can be kept."""
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
        reading = replace(reading, preparation={**reading.preparation, "study": key})
        files |= {f"{folder}{name}": content for name, content in _kept(reading, volume, settings).items()}
        made = json.loads(files[f"{folder}{MADE}"])
        made |= {"timings": {**took, **made["timings"]}, "host": {**host_facts(), "worker": desk.where}}
        files[f"{folder}{MADE}"] = json.dumps(made, indent=1).encode()
    return files | {STUDY: _contents(study.id, volume, key, files, len(readings))}


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
        from MedVLMReaderLib.sentence_pictures import sentence_pictures

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


# ---- Many of them ---------------------------------------------------------------------------------------------------

Work = Callable[[Study], Outcome]
Rounds = Callable[[Sequence[Study], Callable[[], bool]], Iterator[Outcome]]
"""Has every study worked on, somewhere; outcomes as they come. This is all in which one machine differs from many."""


def here(desk: Desk, place: Shelf, settings: Settings, ahead: bool = True) -> Rounds:
    """In this process. `ahead` False: in the calling thread alone, for a program that starves others."""

    def rounds(studies: Sequence[Study], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        broken = threading.Event()  # what ends one thread must end the other

        def work(study: Study) -> Outcome:
            try:
                return read_study(desk, study, place, settings, lambda: stopped() or broken.is_set())
            except BaseException:
                broken.set()
                raise

        return _side_by_side(work, studies, broken) if ahead else map(work, studies)

    return rounds


def _side_by_side(work: Work, studies: Iterable[Study], broken: threading.Event) -> Iterator[Outcome]:
    """Outcomes as they come, `AHEAD` studies in work at a time and none waiting in memory."""
    with ThreadPoolExecutor(AHEAD, "study") as pool:
        try:
            going: set[Future[Outcome]] = set()
            for study in studies:
                going.add(pool.submit(work, study))
                if len(going) == AHEAD:
                    done, going = wait(going, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            while going:
                done, going = wait(going, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BaseException:
            broken.set()  # else the pool would wait for what nobody wants any more
            raise


def read_all(
    rounds: Rounds,
    studies: Sequence[Study],
    place: Shelf,
    settings: Settings,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Read what is not there yet, then write the summary of all that is.

    Raises ReaderError where ids repeat, the folder holds readings of other settings, or it cannot be written.
    """
    from MedVLMReaderLib.summary import write_summary

    ids = [study.id for study in studies]
    if len(set(ids)) < len(ids):
        twice = next(id for n, id in enumerate(ids) if id in ids[:n])
        raise ReaderError(f"Two studies have the id '{twice}'. Give each its own.")
    with place.alone(), _disk():
        check_settings(place, settings)
        begun = place.begun()
        for stray in begun - set(ids):
            place.drop(stray)
        # Those that a crash interrupted come last: were one of them its cause, the others are read all the same.
        report = _gone_through(rounds, sorted(studies, key=lambda one: one.id in begun), place, progress, stopped)
        write_summary(place)
    return report


def _gone_through(
    rounds: Rounds, studies: Sequence[Study], place: Shelf, progress: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> Report:  # fmt: skip
    """Everything that is not there yet, in order."""
    waiting = [study for study in studies if not place.complete(study.id)]
    counts = {"read": 0, "failed": 0, "there": len(studies) - len(waiting), "stopped": 0}
    began, total = time.monotonic(), len(studies)
    progress(Progress(total, counts["there"], 0, None))
    here_before = counts["there"]
    for outcome in rounds(waiting, stopped):
        counts[outcome.state] += 1
        through = counts["read"] + counts["failed"] + counts["there"]
        each = (time.monotonic() - began) / max(through - here_before, 1)
        progress(Progress(total, through, counts["failed"], each * (total - through), outcome))
    return Report(total, counts["read"], counts["there"], counts["failed"], bool(stopped()))


def check_settings(place: Shelf, settings: Settings) -> None:
    """Write how this run asks; ReaderError where another way has been written there."""
    plain = settings.plain()
    older = earlier_settings(place)
    if older is None:
        place.write({RUN: json.dumps({"format": 1, **plain}, indent=1).encode()})
        return
    if other := [name for name, value in plain.items() if older.get(name) != value]:
        said = "; ".join(f"{name}: {_shown(older.get(name))} there, {_shown(plain[name])} now" for name in other)
        raise ReaderError(f"The folder holds readings that were asked for otherwise ({said}). Choose another --out.")


def earlier_settings(place: Shelf) -> dict[str, Any] | None:
    """How the readings that are there were asked for; None where there is nothing, or nothing legible."""
    try:
        content = json.loads(place.get(RUN) or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


@contextmanager
def _disk() -> Iterator[None]:
    """Turns what the disk refuses into words."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ReaderError(
            f"The readings cannot be written ({why}). All that were finished are kept; make room and start the same "
            "command again."
        ) from error
