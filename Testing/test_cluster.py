"""Many studies on a Ray cluster: the same bytes as on one machine, and no study lost with its worker."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.batch import Desk, Outcome, Progress, Report, cluster, here, read_all
from MedVLMReaderLib.batch.cluster import LOCAL, Cluster, ReaderSpec
from MedVLMReaderLib.batch.shelf import shelf
from MedVLMReaderLib.batch.studies import studies_of
from MedVLMReaderLib.reader import load
from Testing.batch_scans import write_studies
from Testing.test_batch import kept

QUESTIONS = ("Is there a nodule?",)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_that_does_not_answer_is_said_in_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setattr(cluster, "PATIENCE_S", 2.0)
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    for address in (silent, f"127.0.0.1:{port}", "nonsense"):
        with pytest.raises(ReaderError, match=r"No Ray cluster answers at .*ray start --head"):
            Cluster(address, ReaderSpec("built-in")).__enter__()


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_study_and_none_is_read_twice(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else whatever else is running starves them
    studies = studies_of(write_studies(tmp_path / "in", 24, 2))
    outcomes: list[Outcome] = []
    with Cluster(LOCAL, ReaderSpec(str(tiny_model)), workers=2) as two:
        settings = two.settings(QUESTIONS)
        victim = two.ray.get(two.workers[0].process.remote())

        def told(now: Progress) -> None:
            if now.last is not None:
                outcomes.append(now.last)
                if len(outcomes) == 4:
                    os.kill(victim, signal.SIGKILL)

        place = shelf(tmp_path / "two")
        report = read_all(two.rounds(str(tmp_path / "two"), settings), studies, place, settings, progress=told)
        assert two.ray.get(two.workers[0].process.remote()) != victim
    assert (report.total, report.read + report.there, report.failed, report.missing) == (26, 24, 2, 0)
    assert sorted(one.study for one in outcomes) == sorted(study.id for study in studies)
    reader, place = load(tiny_model), shelf(tmp_path / "one")
    assert read_all(here(Desk(reader), place, settings), studies, place, settings) == Report(26, 24, 0, 2)
    assert kept(tmp_path / "two") == kept(tmp_path / "one")
