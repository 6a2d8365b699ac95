"""Many studies on a Ray cluster: a reader for each worker, the same work on each study as on one machine.

A worker that is lost takes nothing with it: its studies go to another, and what it had kept is found there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch.desk import Desk, Outcome, Settings, Study, read_study
from MedVLMReaderLib.batch.failure import error_files
from MedVLMReaderLib.batch.rounds import AHEAD, Rounds
from MedVLMReaderLib.batch.shelf import shelf

LOCAL = "local"
"""The address of a cluster that is started here, for this run alone."""
TRIES = 3
"""Workers that may be lost with a study before it counts as failed."""
PATIENCE_S = 20.0
"""How long an address may take to answer."""
PROBE = "import sys, ray; sys.argv[0] = 'ray'; from ray.scripts.scripts import main; main()"


@dataclass(frozen=True)
class ReaderSpec:
    """What a worker loads: plain values, so that every worker loads the same."""

    model: str
    precision: str = "auto"
    device: str | None = None
    revision: str | None = None
    offline: bool = False
    threads: int = 1
    longest: int = 512
    heatmaps: bool = True


class Worker:
    """A loaded reader in a process of its own; becomes a Ray actor."""

    def __init__(self, spec: ReaderSpec, number: int) -> None:
        import torch

        from MedVLMReaderLib.reader import Options, load

        torch.set_num_threads(spec.threads)
        self.spec, self.options = spec, Options(longest=spec.longest, heatmaps=spec.heatmaps)
        self.reader = load(
            spec.model, precision=spec.precision, device=spec.device,  # type: ignore[arg-type]
            revision=spec.revision, offline=spec.offline,
        )  # fmt: skip
        self.desk = Desk(self.reader, f"worker {number}")

    def settings(self, questions: tuple[str, ...]) -> Settings:
        """How its studies are asked, with the model that was really loaded."""
        model = self.reader.model
        asked = questions or (self.reader.report_request(),)
        return Settings(model.name, model.revision, asked, self.options, self.spec.threads)

    def process(self) -> int:
        """Its process id on its machine."""
        return os.getpid()

    def read(self, study: Study, place: str, settings: Settings) -> Outcome:
        """As on one machine. On a GPU two calls at a time keep encoder and decoder busy."""
        return read_study(self.desk, study, shelf(place), settings)


class Cluster:
    """Workers on a Ray cluster, started when it is entered."""

    def __init__(self, address: str, spec: ReaderSpec, workers: int | None = None) -> None:
        self.address, self.spec, self.wanted = address, spec, workers
        self.workers: list[Any] = []

    def __enter__(self) -> Cluster:
        try:
            import ray
        except ModuleNotFoundError as missing:
            raise ReaderError("--ray needs the package 'ray'. Run: pip install 'medvlmreader[batch]'") from missing
        self.ray: Any = ray
        _connect(ray, self.address, (self.wanted or 1) * self.spec.threads)
        try:
            self._start()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self.ray.kill(worker)
        self.ray.shutdown()

    def _start(self) -> None:
        """As many workers as were asked for, or as there is room for: one a GPU, else one for so many cores."""
        there = self.ray.cluster_resources()
        gpus = 0 if self.spec.device == "cpu" else int(there.get("GPU", 0))
        room = gpus or int(there.get("CPU", 1) // self.spec.threads)
        if not room or (self.wanted or 0) > room:
            raise ReaderError(
                f"The cluster has room for {room} workers of {self.spec.threads} threads, not {self.wanted or 1}. "
                "Ask for fewer --workers or --threads."
            )
        needs = {"num_gpus": 1} if gpus else {"num_cpus": self.spec.threads}
        # Without a GPU two studies at a time would take twice the cores that Ray was asked for, from the other workers.
        # No restarts and no retries by Ray: a lost worker is replaced and its studies counted here.
        self.actor = self.ray.remote(Worker).options(max_concurrency=AHEAD if gpus else 1, **needs)
        self.workers = [self.actor.remote(self.spec, number) for number in range(self.wanted or room)]

    def _replaced(self, lost: Any) -> Any | None:
        """A new worker in place of a lost one; None where that has been done."""
        if lost not in self.workers:
            return None
        number = self.workers.index(lost)
        self.workers[number] = self.actor.remote(self.spec, number)
        return self.workers[number]

    def settings(self, questions: tuple[str, ...]) -> Settings:
        """How studies are asked. ReaderError where a worker cannot load the model, or another loads other files."""
        try:
            found = self.ray.get([worker.settings.remote(questions) for worker in self.workers])
        except self.ray.exceptions.RayActorError as error:
            raise ReaderError(f"A worker could not load the model: {_last_line(error)}") from error
        except self.ray.exceptions.RayTaskError as error:
            raise ReaderError(f"A worker could not load the model: {_last_line(error)}") from error
        first: Settings = found[0]
        if any(one != first for one in found):
            raise ReaderError("The workers have loaded different files of the model. Name one --revision.")
        return first

    def rounds(self, place: str, settings: Settings) -> Rounds:
        """`batch.here` on a cluster."""

        def go(studies: Sequence[Study], stopped: Callable[[], bool]) -> Iterator[Outcome]:
            return self._rounds(studies, stopped, place, settings)

        return go

    def _rounds(
        self, studies: Sequence[Study], stopped: Callable[[], bool], place: str, settings: Settings
    ) -> Iterator[Outcome]:
        """Every worker has `AHEAD` studies; the next is sent when one comes back, so that none wait in memory."""
        waiting = deque((study, 0) for study in studies)
        going: dict[Any, tuple[Study, int, Any]] = {}
        starting: dict[Any, Any] = {}

        def send(worker: Any, most: int = 1) -> None:
            while waiting and most and worker in self.workers:
                study, lost = waiting.popleft()
                going[worker.read.remote(study, place, settings)] = (study, lost, worker)
                most -= 1

        for worker in self.workers:
            send(worker, AHEAD)
        while (going or waiting) and not stopped():
            done, _ = self.ray.wait([*going, *starting], timeout=0.5)
            for ref in done:
                if ref in starting:
                    send(starting.pop(ref), AHEAD)  # what went wrong with its start is seen by what it is sent
                    continue
                study, lost, worker = going.pop(ref)
                outcome = self._outcome(ref, study, lost + 1, place)
                if outcome is None:
                    waiting.append((study, lost + 1))
                    if new := self._replaced(worker):
                        starting[new.process.remote()] = new
                else:
                    yield outcome
                send(worker)

    def _outcome(self, ref: Any, study: Study, tries: int, place: str) -> Outcome | None:
        """What became of a study; None where its worker was lost and it is to be tried again."""
        try:
            outcome: Outcome = self.ray.get(ref)
            return outcome
        except self.ray.exceptions.RayActorError:
            if tries < TRIES:
                return None
            lost = ReaderError(f"{tries} workers were lost while they read it; was their memory too small?")
            files, why = error_files(lost, "reading on a worker", study.id, study.names)
            shelf(place).put(study.id, files)
            return Outcome(study.id, "failed", why)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise error.cause from error  # a full disk: as on one machine
            raise


def _connect(ray: Any, address: str, cores: int) -> None:
    """Join the cluster, or start one. ReaderError where the address does not answer in time."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address == LOCAL:
        ray.init(address="local", num_cpus=max(cores, os.cpu_count() or 1), include_dashboard=False, **quiet)
        return
    if address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ReaderError(f"No Ray cluster answers at '{address}'. Start one with 'ray start --head'.") from error


def _check_answers(address: str) -> None:
    """Ask first with a limit of time: Ray itself would wait for minutes, then end the program."""
    bare = address.removeprefix("ray://")
    host, _, port = bare.rpartition(":")
    wrong = ReaderError(
        f"No Ray cluster answers at '{address}'. Give host:port of its head (usually port 6379), or start one there "
        "with 'ray start --head'."
    )
    if not host or not port.isdigit():
        raise wrong
    try:
        socket.create_connection((host, int(port)), PATIENCE_S / 2).close()
        if not address.startswith("ray://"):
            probe = [sys.executable, "-c", PROBE, "health-check", "--address", bare]
            subprocess.run(probe, check=True, timeout=PATIENCE_S, capture_output=True)
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        raise wrong from error


def _last_line(error: BaseException) -> str:
    """The last line of what a worker said, which is its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
