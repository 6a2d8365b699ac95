"""What keeping many studies costs over reading them, and what working ahead gains: one JSON object.

overhead: of `batch` in one thread over a bare loop of see and ask, in CPU time, with the built-in model on made scans.
pipelining_gain: of working ahead over one thread, in time, where encoder and decoder take equally long. The reader only
waits there, so that the order of work is measured and not what else this machine does; on busy cores it is less.
real_gain: the same with the built-in model, which writes until it has taken as long as its encoder, a thread each; with
one core it can gain nothing, so it is left out there.
memory_bytes_a_study: the slope over 500 tiny studies, the first 100 left out. index_*: 20,000 DICOM files, CPU time.
two_workers: studies an hour of two Ray workers against one, one thread each; left out where there are not two cores.
studies_an_hour: of one reader with one thread, which is what a cluster is sized by.
Exits with 1 where a target is missed. `python -m Testing.benchmarks.batch [--only NAME ...] [--files N]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.batch import Desk, Progress, Settings, here, read_all
from MedVLMReaderLib.batch.shelf import shelf
from MedVLMReaderLib.batch.studies import given, studies_of
from MedVLMReaderLib.dicom.index import Index
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from Testing.batch_scans import write_many, write_studies
from Testing.benchmarks.children import resident
from Testing.tiny_model import write_tiny_model

LEAST = {"pipelining_gain": 0.15, "real_gain": 0.15, "two_workers": 1.5}
MOST = {"overhead": 0.05, "index_second_s": 2.0, "memory_bytes_a_study": 20_000}
PARTS = ("waiting", "real", "overhead", "hour", "memory", "index", "workers")


def all_read(reader: Any, studies: list[Any], out: Path, ahead: bool, **how: Any) -> None:
    """One batch with one question."""
    settings = Settings("m", "r", ("Describe the findings.",), how.pop("options", None))
    place = shelf(out)
    report = read_all(here(Desk(reader), place, settings, ahead), studies, place, settings, **how)
    assert report.read == len(studies), report


def overhead(reader: Reader, scratch: Path, count: int = 6) -> dict[str, float]:
    """CPU seconds of a bare loop and of `batch` over the same made scans, turn by turn; the smaller of two each."""
    volumes = [made_study(700_000 + n).volume for n in range(count)]

    def bare() -> None:
        for volume in volumes:
            reader.forget()
            list(reader.ask(reader.see(volume), reader.report_request()))

    bare()
    times: dict[str, list[float]] = {"bare": [], "batch": []}
    for turn in range(2):
        times["bare"].append(cpu(bare))
        times["batch"].append(cpu(lambda turn=turn: all_read(reader, given(volumes), scratch / str(turn), False)))
    bare_s, batch_s = min(times["bare"]), min(times["batch"])
    return {"bare_s": round(bare_s, 3), "batch_s": round(batch_s, 3), "overhead": round(batch_s / bare_s - 1, 4)}


def cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


class Waits:
    """A reader whose encoder and decoder each take so long, without a core."""

    def __init__(self, seconds: float, reading: Reading) -> None:
        self.seconds, self.reading = seconds, reading

    def see(self, volumes: Any, **_: Any) -> Any:
        time.sleep(self.seconds)
        return volumes

    def ask(self, seen: Any, question: str, **_: Any) -> Iterator[str | Reading]:
        time.sleep(self.seconds)
        yield self.reading

    def forget(self) -> None:
        pass


def pipelining(scratch: Path, folder: Path, reader: Reader, count: int = 20, seconds: float = 0.3) -> dict[str, float]:
    """How much sooner `count` studies are through when the next is encoded meanwhile."""
    studies, took = studies_of(folder)[:count], []
    *_, reading = reader.ask(reader.see(studies[0].read()), "Describe the findings.")
    assert isinstance(reading, Reading)
    for ahead in (False, True):
        began = time.perf_counter()
        all_read(Waits(seconds, reading), studies, scratch / f"ahead-{ahead}", ahead)
        took.append(time.perf_counter() - began)
    return {"one_thread_s": round(took[0], 2), "ahead_s": round(took[1], 2),
            "pipelining_gain": round(took[0] / took[1] - 1, 3)}  # fmt: skip


class Equal:
    """The built-in model, whose answer goes on until it has taken as long as `seconds` of a thread's work."""

    def __init__(self, reader: Reader, seconds: float) -> None:
        self.reader, self.seconds = reader, seconds

    def see(self, volumes: Any, **how: Any) -> Any:
        return self.reader.see(volumes, **how)

    def ask(self, seen: Any, question: str, **how: Any) -> Iterator[str | Reading]:
        began = time.thread_time()
        while True:
            self.reader.forget()
            *_, reading = self.reader.ask(seen, question, **how)
            if time.thread_time() - began >= self.seconds:
                break
        yield reading

    def forget(self) -> None:
        self.reader.forget()


def real_pipelining(reader: Reader, scratch: Path, count: int = 8) -> dict[str, float]:
    """The gain where both halves compute; the encoder's time is measured first."""
    volumes = [made_study(720_000 + n).volume for n in range(count)]
    reader.see(volumes[0])
    began = time.thread_time()
    reader.see(volumes[1])
    encoder_s, options, took = time.thread_time() - began, Options(longest=8, heatmaps=False), []
    for ahead in (False, True):
        began = time.perf_counter()
        all_read(Equal(reader, encoder_s), given(volumes), scratch / f"real-{ahead}", ahead, options=options)
        took.append(time.perf_counter() - began)
    return {"real_encoder_s": round(encoder_s, 2), "real_one_thread_s": round(took[0], 2),
            "real_ahead_s": round(took[1], 2), "real_gain": round(took[0] / took[1] - 1, 3)}  # fmt: skip


def memory(reader: Reader, scratch: Path, folder: Path) -> dict[str, float]:
    """Bytes that stay a study, by a straight line through what is resident after each."""
    found: list[int] = []

    def told(_: Progress) -> None:
        found.append(resident())

    all_read(reader, studies_of(folder), scratch / "memory", True, options=Options(longest=4), progress=told)
    later = np.array(found[101:], np.float64)
    slope, first = np.polyfit(np.arange(len(later)), later, 1)
    noise = float(np.std(later - slope * np.arange(len(later)) - first))
    return {"memory_bytes_a_study": round(float(slope)), "memory_noise_bytes": round(noise), "studies": len(found) - 1,
            "resident_bytes": found[-1]}  # fmt: skip


def index(scratch: Path, files: int) -> dict[str, float]:
    """CPU seconds of the first look at so many files and of the second."""
    write_many(scratch / "dicom", files // 100, 100)
    took = []
    for _ in range(2):

        def look() -> None:
            with Index(scratch / "index.sqlite") as kept:
                kept.refresh(scratch / "dicom")
                kept.series(scratch / "dicom")

        took.append(cpu(look))
    return {"index_files": files, "index_first_s": round(took[0], 2), "index_second_s": round(took[1], 2)}


def two_workers(scratch: Path, model: str, count: int = 12) -> dict[str, float]:
    """Studies an hour of one Ray worker and of two, after their start."""
    from MedVLMReaderLib.batch.cluster import LOCAL, Cluster, ReaderSpec

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray writes it; else other programs starve the workers
    rates = []
    studies = given([made_study(710_000 + n).volume for n in range(count)])
    for workers in (1, 2):
        with Cluster(LOCAL, ReaderSpec(model), workers) as cluster:
            settings, out = cluster.settings(()), scratch / f"workers-{workers}"
            place = shelf(out)
            began = time.perf_counter()
            read_all(cluster.rounds(str(out), settings), studies, place, settings)
            rates.append(count / (time.perf_counter() - began) * 3600)
    return {"one_worker_an_hour": round(rates[0]), "two_workers_an_hour": round(rates[1]),
            "two_workers": round(rates[1] / rates[0], 2)}  # fmt: skip


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hourly(reader: Reader, scratch: Path, count: int = 6) -> dict[str, float]:
    """Studies an hour of one thread, by CPU time, as `batch` reads them."""
    volumes = [made_study(730_000 + n).volume for n in range(count)]
    seconds = cpu(lambda: all_read(reader, given(volumes), scratch / "hour", False))
    return {"seconds_a_study": round(seconds / count, 2), "studies_an_hour": round(count / seconds * 3600)}


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--studies", type=int, default=500)
    how = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, float] = {"cores": cores()}
    with tempfile.TemporaryDirectory() as folder:
        for part in how.only:
            (scratch := Path(folder) / part).mkdir()
            found |= measured(part, scratch, how)
            print(part, found, file=sys.stderr, flush=True)
    print(json.dumps(found))
    return int(any(found[name] < least for name, least in LEAST.items() if name in found)
               or any(abs(found[name]) > most for name, most in MOST.items() if name in found))  # fmt: skip


def measured(part: str, scratch: Path, how: argparse.Namespace) -> dict[str, float]:
    """The figures of one part."""
    if part in ("waiting", "memory"):
        write_tiny_model(scratch / "tiny")
        tiny = load(scratch / "tiny")
        many = write_studies(scratch / "many", how.studies if part == "memory" else 20, 0)
        return memory(tiny, scratch, many) if part == "memory" else pipelining(scratch, many, tiny)
    if part == "index":
        return index(scratch, how.files)
    if part == "workers":
        return two_workers(scratch, "built-in") if cores() > 1 else {}
    built_in = load("built-in")
    if part == "real":
        return real_pipelining(built_in, scratch) if cores() > 1 else {}
    return overhead(built_in, scratch) if part == "overhead" else hourly(built_in, scratch)


if __name__ == "__main__":
    sys.exit(main())
