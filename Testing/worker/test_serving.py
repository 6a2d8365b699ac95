"""The worker's own side, spoken to by hand: what it refuses, and how it ends. None of this needs torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MedVLMReaderLib.worker.folder import MARK, PREFIX, PrivateFolder, remove_abandoned
from MedVLMReaderLib.worker.protocol import LONGEST, VERSION
from MedVLMReaderLib.worker.transport import command, environment

posix = pytest.mark.skipif(os.name == "nt", reason="signals and files of POSIX")


class ByHand:
    """A worker whose lines are written and read here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            command(sys.executable), env=environment(sys.executable), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.hello = self.heard()

    def say(self, line: bytes | dict) -> None:
        self.process.stdin.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()

    def heard(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def greet(self, **other: object) -> ByHand:
        self.say({"request": "hello", "id": 0, "protocol": VERSION, "folder": str(self.folder), **other})
        return self


@pytest.fixture
def worker(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    worker = ByHand(folder)
    yield worker
    worker.process.kill()
    for stream in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
        stream.close()
    worker.process.wait()


def gone(path: Path, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not path.exists()


def test_it_greets_first_and_says_what_it_speaks(worker):
    assert worker.hello["event"] == "hello"
    assert (worker.hello["protocol"], worker.hello["pid"]) == (VERSION, worker.process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of another program's priority by /proc")
def test_it_has_low_priority_and_is_the_one_to_go_where_memory_runs_out(worker):
    pid = worker.process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) > min(os.getpriority(os.PRIO_PROCESS, os.getpid()), 18)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"


def test_what_cannot_be_understood_is_said_and_the_next_line_counts(worker):
    worker.greet()
    for wrong in (b"no json\n", b"[]\n", b"{}\n", b'{"request": "ask", "id": "x"}\n', b"\xff\n"):
        worker.say(wrong)
        refused = worker.heard()
        assert (refused["id"], refused["event"], refused["trouble"]) == (0, "failed", "protocol")
    worker.say({"request": "sing", "id": 7})
    refused = worker.heard()
    assert (refused["id"], refused["event"]) == (7, "failed")
    assert "unknown request 'sing'" in refused["message"]


def test_a_line_that_is_too_long_is_passed_over_whole(worker):
    worker.greet()
    worker.say(b'{"request": "' + b"x" * (3 * LONGEST) + b'"}\n')
    assert f"longer than {LONGEST}" in worker.heard()["message"]
    worker.say({"request": "sing", "id": 8})
    assert worker.heard()["id"] == 8


def test_a_client_of_another_protocol_is_refused(worker):
    worker.greet(protocol=VERSION + 1)
    refused = worker.heard()
    assert f"speaks protocol {VERSION + 1}" in refused["message"]
    assert "same version" in refused["to_do"]
    worker.say({"request": "forget", "id": 3, "study": 1})
    assert "before hello" in worker.heard()["message"]


def test_the_end_of_its_input_ends_it_and_removes_the_folder(worker):
    worker.greet()
    worker.say({"request": "sing", "id": 1})
    worker.heard()
    (worker.folder / "study-1-0.npy").write_bytes(b"voxels")
    worker.process.stdin.close()
    assert worker.process.wait(5) == 0
    assert not worker.folder.exists()


@posix
def test_a_parent_that_was_killed_leaves_neither_worker_nor_folder(tmp_path):
    program = (
        "import sys, time\n"
        "from MedVLMReaderLib.worker.client import Client\n"
        "from MedVLMReaderLib.worker.transport import SubprocessTransport\n"
        "client = Client(SubprocessTransport())\n"
        "client.load('no such model')\n"
        "while not client.running.program.pid:\n"
        "    client.advance(); client.running.program.transport.poll(0.02)\n"
        "client.running.program.transport.poll(0.3)\n"
        "(client.running.folder / 'study-1-0.npy').write_bytes(b'voxels')\n"
        "print(client.running.program.pid, client.running.folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment(sys.executable))
    pid, folder = parent.stdout.readline().decode().split(maxsplit=1)
    folder = Path(folder.strip())
    assert (folder / MARK).exists()
    assert folder.stat().st_mode & 0o077 == 0
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone(folder)
    assert gone(Path("/proc") / pid) or sys.platform != "linux"


@posix
def test_a_folder_of_which_both_were_killed_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, others, making = (tmp_path / f"{PREFIX}{name}" for name in ("left", "others", "making"))
    for folder in (left, others, making):
        folder.mkdir()
    (left / MARK).touch()
    (left / "study-1-0.npy").write_bytes(b"voxels")
    used = PrivateFolder()
    assert not left.exists()
    remove_abandoned()
    assert used.path.exists()
    assert making.exists()
    os.utime(making, (0, 0))
    remove_abandoned()
    assert not making.exists()
    used.remove()
    used.remove()
    assert not used.path.exists()


def test_the_worker_of_a_killed_launcher_leaves_the_folder_to_the_client_that_lives():
    folder = PrivateFolder()
    worker = ByHand(folder.path).greet()
    worker.say({"request": "sing", "id": 1})
    worker.heard()
    for stream in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
        stream.close()
    assert worker.process.wait(30) == 0
    assert folder.path.exists()
    folder.remove()
    assert not folder.path.exists()
