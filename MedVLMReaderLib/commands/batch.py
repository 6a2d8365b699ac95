"""`batch` and `index`: many studies, and what lies in a DICOM folder."""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands import FINE, INTERRUPTED, WRONG
from MedVLMReaderLib.commands.export import check_packages
from MedVLMReaderLib.commands.terminal import Stop, bar, loaded, say, say_json, step, unwritable, warn

if TYPE_CHECKING:
    from MedVLMReaderLib.batch import Progress, Report, Rounds, Settings, Study
    from MedVLMReaderLib.batch.shelf import Shelf
    from MedVLMReaderLib.dicom.index import Index

SHOWN = 10
"""Failed studies that are named on the terminal; summary.csv has all."""


def batch(arguments: Namespace) -> int:
    """Read many studies."""
    studies = _studies(arguments)
    if arguments.names is not None:
        _keep_names(arguments.names, studies)
    if arguments.list:
        return _listed(studies, arguments)
    if arguments.out is None:
        raise ReaderError("Nothing is read without a place for it. Name a folder with --out, or look with --list.")
    from MedVLMReaderLib.batch import read_all
    from MedVLMReaderLib.batch.shelf import shelf
    from MedVLMReaderLib.batch.studies import questions_of

    questions = questions_of(arguments.questions) if arguments.questions else ()
    check_packages(arguments.to)
    place = shelf(arguments.out)
    threads = _threads(arguments, place)
    with (
        _way(arguments, place, threads, questions) as (rounds, settings),
        Stop() as stopped,
        _terminated(),
        _shown(len(studies), arguments) as progress,
    ):
        report = read_all(rounds, studies, place, settings, progress=progress, stopped=stopped)
    return _told(report, arguments)


def _studies(arguments: Namespace) -> Sequence[Study]:
    from MedVLMReaderLib.batch.studies import studies_of

    where = str(arguments.input)
    if where.startswith(("http://", "https://")):
        from MedVLMReaderLib.dicom.web import studies_at

        step("Asking the server what it has ...")
        return studies_at(where, arguments.query, arguments.rule)
    step("Looking for studies ...")
    place = Path(where).expanduser()
    if not place.is_dir():
        return studies_of(place)
    with _index(place, arguments.index) as index:
        return studies_of(place, index, arguments.rule)


def _index(folder: Path, path: Path | None) -> Index:
    """The index of a folder; in memory where its usual place cannot be written."""
    from MedVLMReaderLib.dicom.index import Index, default_index

    if path is not None:
        return Index(path)
    try:
        return Index(default_index(folder))
    except ReaderError:
        return Index(None)


def _threads(arguments: Namespace, place: Shelf) -> int:
    """As typed, else as the readings that are there were made, else half of the cores: encoder and decoder share."""
    from MedVLMReaderLib.batch import earlier_settings

    older = (earlier_settings(place) or {}).get("threads")
    return int(arguments.threads or older or max(1, (os.cpu_count() or 2) // 2))


@contextmanager
def _way(
    arguments: Namespace, place: Shelf, threads: int, questions: tuple[str, ...]
) -> Iterator[tuple[Rounds, Settings]]:
    """How the studies are gone through, here or on a cluster, and how each is asked."""
    from MedVLMReaderLib.batch import Desk, Settings, here

    if arguments.ray is not None:
        from MedVLMReaderLib.batch.cluster import Cluster, ReaderSpec

        spec = ReaderSpec(
            str(arguments.model), arguments.precision, arguments.device, arguments.revision, arguments.offline, threads,
            arguments.longest, not arguments.no_heatmaps,
        )  # fmt: skip
        with Cluster(arguments.ray, spec, arguments.workers) as cluster:
            settings = replace(cluster.settings(questions), pictures=arguments.pictures, to=arguments.to)
            yield cluster.rounds(str(arguments.out), settings), settings
        return
    reader = loaded(arguments.model, arguments)
    import torch

    from MedVLMReaderLib.reader import Options

    torch.set_num_threads(threads)
    options = Options(longest=arguments.longest, heatmaps=not arguments.no_heatmaps)
    model = reader.model
    settings = Settings(
        model.name, model.revision, questions or (reader.report_request(),), options, threads, arguments.pictures,
        arguments.to,
    )  # fmt: skip
    yield here(Desk(reader), place, settings), settings


@contextmanager
def _terminated() -> Iterator[None]:
    """A cluster's scheduler ends a job with SIGTERM: it stops as cleanly as with Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _shown(total: int, arguments: Namespace) -> Iterator[Any]:
    """Progress: a bar on a terminal, else a line on stderr for each study that failed."""
    from tqdm import tqdm

    with tqdm(total=total, desc="Studies", disable=None, leave=False, file=sys.stderr) as shown:

        def told(now: Progress) -> None:
            shown.set_postfix_str(f"{now.failed} failed, {_left(now.left_s)}", refresh=False)
            shown.update(now.done - shown.n)
            if now.last is not None and now.last.state == "failed" and now.failed <= SHOWN and not arguments.json:
                warn(f"{now.last.study} failed: {now.last.why}")
            if now.last is not None and now.last.refused and not arguments.json:
                warn(f"{now.last.study} was not exported: {now.last.refused}")

        yield told


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min left" if minutes else "under a minute left"


def _told(report: Report, arguments: Namespace) -> int:
    if arguments.json:
        say_json({**vars(report), "missing": report.missing, "folder": str(arguments.out)})
    else:
        parts = [f"{report.read} studies read", f"{report.failed} failed"]
        parts += [f"{report.there} were there already"] if report.there else []
        parts += [f"{report.refused} not exported"] if report.refused else []
        parts += [f"{report.missing} still to be read: start the same command again"] if report.missing else []
        say(f"{', '.join(parts)}. See summary.csv and index.html in {arguments.out}.")
    if report.stopped and report.missing:
        return INTERRUPTED
    return WRONG if report.failed or report.refused or report.missing else FINE


def _keep_names(path: Path, studies: Sequence[Study]) -> None:
    """Which id is which scan, for the owner of the scans alone."""
    from MedVLMReaderLib.reading import write_whole

    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(("study", "path"))
    table.writerows((study.id, study.names[0] if study.names else "") for study in studies)
    try:
        write_whole({path: out.getvalue().encode()})
    except OSError as error:
        raise unwritable(path, error) from error


def _listed(studies: Sequence[Study], arguments: Namespace) -> int:
    rows = [{"study": study.id, "path": study.names[0] if study.names else ""} for study in studies]
    if arguments.json:
        say_json({"studies": rows})
        return FINE
    for row in rows:
        say(f"{row['study']}  {row['path']}")
    say(f"{len(rows)} studies.")
    return FINE


def index(arguments: Namespace) -> int:
    """List the DICOM series under a folder."""
    from MedVLMReaderLib.dicom.chosen import thinnest_axial
    from MedVLMReaderLib.dicom.index import Index, default_index

    folder = arguments.folder.expanduser()
    if not folder.is_dir():
        raise ReaderError(f"'{folder}' is no folder. Choose the folder that holds the DICOM files.")
    with Index(arguments.index or default_index(folder)) as kept:
        step("Looking for DICOM files ...")
        bars = iter(bar(_forever(), "Files"))
        kept.refresh(folder, lambda _: next(bars))
        found, lost = kept.series(folder), kept.lost(folder)
        if arguments.thumbnails is not None:
            _keep_thumbnails(arguments.thumbnails, kept, found)
        parsed = kept.parsed
    by_study: dict[str, list[Any]] = {}
    for one in found:
        by_study.setdefault(one.study, []).append(one)
    chosen = {thinnest_axial(own).id for own in by_study.values()}
    if arguments.json:
        rows = [_plain(one, one.id in chosen) for one in found]
        say_json({"series": rows, "studies": len(by_study), "headers_read": parsed,
                  "damaged": [{"folder": where, "files": count} for where, count in lost]})  # fmt: skip
        return FINE
    for study, own in by_study.items():
        say(f"Study {study}")
        for one in own:
            number = "-" if one.number is None else one.number
            say(f"  {'*' if one.id in chosen else ' '} {one.id}  {number}: {one}")
    say(f"{len(by_study)} studies, {len(found)} series; * is what `batch` reads.")
    for where, count in lost:
        warn(f"'{where}' holds {count} damaged DICOM files and no series that can be read.")
    return FINE


def _forever() -> Iterator[None]:
    while True:
        yield None


def _plain(one: Any, chosen: bool) -> dict[str, Any]:
    names = (
        "id", "study", "series", "part", "number", "description", "modality", "plane", "slices", "spacing_mm",
        "extent_mm", "damaged",
    )  # fmt: skip
    return {name: getattr(one, name) for name in names} | {"chosen": chosen, "folder": one.paths[0].parent}


def _keep_thumbnails(folder: Path, kept: Index, found: Sequence[Any]) -> None:
    from MedVLMReaderLib.reading import write_whole

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in found:
            if picture := kept.thumbnail(one):
                write_whole({folder / f"{one.id}.png": picture})
    except OSError as error:
        raise unwritable(folder, error) from error
