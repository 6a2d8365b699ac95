"""Many studies, one after the other: gone on with after any interruption.

The encoder sees the next study while the decoder answers about this one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.desk import Desk, Outcome, Settings, Study, read_study
from MedVLMReaderLib.batch.exporting import is_exported
from MedVLMReaderLib.batch.shelf import RUN, Shelf

AHEAD = 2
"""Studies in work at a time: one before the encoder, one before the decoder."""


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
    refused: int = 0
    """Studies that are read and could not be exported."""

    @property
    def missing(self) -> int:
        """Studies that nobody got to."""
        return self.total - self.read - self.there - self.failed


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
    from MedVLMReaderLib.batch.summary import write_summary

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
        report = _gone_through(
            rounds, sorted(studies, key=lambda one: one.id in begun), place, settings.to, progress, stopped
        )
        write_summary(place)
    return report


def _gone_through(
    rounds: Rounds, studies: Sequence[Study], place: Shelf, to: Sequence[str], progress: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> Report:  # fmt: skip
    """Everything that is not there yet, in order."""
    waiting = [study for study in studies if not (place.complete(study.id) and is_exported(place, study.id, to))]
    counts = {"read": 0, "failed": 0, "there": len(studies) - len(waiting), "stopped": 0}
    began, total, refused = time.monotonic(), len(studies), 0
    progress(Progress(total, counts["there"], 0, None))
    here_before = counts["there"]
    for outcome in rounds(waiting, stopped):
        counts[outcome.state] += 1
        refused += bool(outcome.refused)
        through = counts["read"] + counts["failed"] + counts["there"]
        each = (time.monotonic() - began) / max(through - here_before, 1)
        progress(Progress(total, through, counts["failed"], each * (total - through), outcome))
    return Report(total, counts["read"], counts["there"], counts["failed"], bool(stopped()), refused)


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
