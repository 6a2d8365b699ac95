"""Programs that are no proper worker: each is one message, within a second, and the next request tries again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.worker.events import Cancelled, Loaded, Started, Word
from MedVLMReaderLib.worker.protocol import LONGEST, VERSION
from Testing.worker.driven import Driven, Told

pytestmark = pytest.mark.skipif(os.name == "nt", reason="made of POSIX scripts")

HELLO = f'{{"event": "hello", "id": 0, "protocol": {VERSION}, "version": "0", "pid": 1}}'
LOADED = (
    '{"id": %s, "event": "done", "name": "m", "revision": "r", "precision": "fp32", "device": "cpu", "context": 9, '
    '"request": "Describe.", "notes": []}'
)


@pytest.fixture
def rogue(tmp_path):
    """A client of a program of these lines of Python; `next_id()` is the number of the next request but stops."""
    made: list[Driven] = []

    def make(*lines: str) -> Driven:
        script = tmp_path / "python"
        head = (
            f"#!{sys.executable}\nimport json, os, sys, time\n"
            "def said(text):\n    print(text, flush=True)\n"
            "def next_id():\n    return json.loads(sys.stdin.readline())['id']\n"
        )
        script.write_text(head + "\n".join(lines) + "\n")
        script.chmod(0o700)
        made.append(Driven(str(script)))
        return made[-1]

    yield make
    for driven in made:
        driven.client.close()


GREETED = (f"said('{HELLO}')", "next_id()")


ASKED = (*GREETED, "n = next_id()")
LAZY = "time.sleep(9)"
ROGUES = {
    "ends at once": ((), "could not start the reader", "crash"),
    "lacks the library": (("sys.exit('No module named X')",), "start the reader: No module named X", "crash"),
    "newer": (("said(json.dumps({'event': 'hello', 'protocol': 99}))", LAZY), "protocol 99", "protocol"),
    "ends": ((*ASKED, "os._exit(7)"), r"ended unexpectedly \(exit code 7\)", "crash"),
    "crashes": ((*ASKED, "os.kill(os.getpid(), 11)"), r"ended unexpectedly \(SIGSEGV\)", "crash"),
    "is killed": ((*ASKED, "os.kill(os.getpid(), 9)"), "memory ran out", "memory"),
    "warns": ((*ASKED, "said('warning: garbage')", LAZY), "what it should not: no JSON", "protocol"),
    "writes a long line": ((*ASKED, f"said('x' * {2 * LONGEST})", LAZY), "a line of more than", "protocol"),
    "writes without end": (
        (*ASKED, f"sys.stdout.write('x' * {2 * LONGEST})", "sys.stdout.flush()", LAZY), "a line of more", "protocol",
    ),
    "sings": ((*ASKED, "said(json.dumps({'id': n, 'event': 'sings'}))", LAZY), "unknown event", "protocol"),
    "forgets": ((*ASKED, "said(json.dumps({'id': n, 'event': 'done'}))", LAZY), "lacks something", "protocol"),
    "says nothing of whom": ((*ASKED, "said('{}')", LAZY), "without a number", "protocol"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "message", "trouble"), ROGUES.values(), ids=ROGUES)
def test_whatever_it_does_is_one_message_within_a_second(rogue, lines, message, trouble):
    driven = rogue(*lines)
    began = time.monotonic()
    failed = driven.failed(lambda told: driven.client.load("m", on_event=told))
    assert time.monotonic() - began < 1.0 + 1.0  # the second one for starting an interpreter

    assert re.search(message, failed.message), failed.message
    assert failed.trouble == trouble
    assert failed.to_do
    driven.until(lambda: len(driven.exits) == 1)


def test_an_interpreter_that_is_not_there_is_named():
    driven = Driven("/nowhere/python")
    failed = driven.failed(lambda told: driven.client.load(on_event=told))
    assert "'/nowhere/python' could not start" in failed.message
    assert "No such file" in failed.message
    assert driven.exits[0].code is None
    assert driven.failed(lambda told: driven.client.load(on_event=told)).message == failed.message
    driven.client.close()


def test_another_interpreter_is_used_from_the_next_request_on_and_the_old_program_ended(rogue):
    driven = rogue(*GREETED, f"said({LOADED!r} % next_id())", "time.sleep(9)")
    assert isinstance(driven.last(lambda told: driven.client.load("m", on_event=told)), Loaded)
    driven.client.use(driven.client.running.program.python)
    assert driven.client.running.program.state == "ready", "the same one: nothing changes"
    driven.client.use("/nowhere/python")
    driven.until(lambda: len(driven.exits) == 1)
    assert driven.exits[0].wanted
    assert "'/nowhere/python'" in driven.failed(lambda told: driven.client.load("m", on_event=told)).message
    driven.client.close()


def test_what_is_printed_before_the_greeting_is_left_aside(rogue):
    driven = rogue("said('Welcome to this Python!')", *GREETED, f"said({LOADED!r} % next_id())", "time.sleep(9)")
    assert isinstance(driven.last(lambda told: driven.client.load("m", on_event=told)), Loaded)


def test_words_of_a_program_that_went_wrong_are_kept_and_the_next_request_starts_it_anew(rogue, tmp_path):
    driven = rogue(
        *GREETED, f"said({LOADED!r} % next_id())",
        "n = next_id()", "said(json.dumps({'id': n, 'event': 'done', 'volume_keys': ['k'], 'key': 'k', 'notes': [],"
        " 'preparation': {}, 'grids': [], 'boxes': []}))",
        "n = next_id()", "said(json.dumps({'id': n, 'event': 'word', 'text': 'The <b>lung'}))",
        "said(json.dumps({'id': n, 'event': 'word', 'text': ' is'}))", "said('Segmentation fault')", "time.sleep(9)",
    )  # fmt: skip
    study = driven.client.see(Volume(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 4), np.eye(4))))
    failed = driven.failed(lambda told: driven.client.ask(study, "Why?", on_event=told))
    assert failed.words == "The <b>lung is"
    assert (failed.reading.text, failed.reading.complete, failed.reading.model) == ("The <b>lung is", False, "m")
    again = Told()
    driven.client.ask(study, "Why?", on_event=again)
    driven.until(lambda: again.over)
    assert [event.stage for event in again.events if isinstance(event, Started)] == ["program"]
    assert again.has(Word)


def test_a_program_that_heeds_no_stop_is_ended(rogue, monkeypatch):
    monkeypatch.setattr("MedVLMReaderLib.worker.running.LOADING_S", 0.1)
    driven = rogue(*GREETED, "next_id()", "time.sleep(60)")
    told = Told()
    number = driven.client.load("m", on_event=told)
    driven.until(lambda: driven.client.running._step is not None)
    driven.client.stop(number)
    driven.until(lambda: told.over, 5)
    assert isinstance(told.last, Cancelled)
    assert driven.exits[0].wanted


def test_one_that_never_greets_is_ended(rogue, monkeypatch):
    monkeypatch.setattr("MedVLMReaderLib.worker.program.STARTING_S", 0.2)
    driven = rogue("time.sleep(60)")
    assert "nothing within" in driven.failed(lambda told: driven.client.load("m", on_event=told)).message


def test_closing_in_mid_start_leaves_no_process_and_tells_nobody(rogue):
    driven = rogue("time.sleep(60)")
    told = Told()
    driven.client.load("m", on_event=told)
    driven.client.advance()
    process, folder = driven.transport.process, driven.folder
    driven.client.close()
    process.wait(5)
    assert not folder.exists()
    assert [type(event) for event in told.events] == [Started]
    late = driven.failed(lambda told: driven.client.load("m", on_event=told))
    assert "was closed" in late.message


def test_a_disk_without_room_for_the_voxels_is_said_and_half_a_file_does_not_stay(rogue):
    import resource

    driven = rogue(*GREETED, f"said({LOADED!r} % next_id())", "time.sleep(9)")
    volume = Volume(np.zeros((200, 100, 100), np.int16), Grid((200, 100, 100), np.eye(4)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        failed = driven.failed(lambda told: driven.client.see(volume, on_event=told))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "temporary files could not be used (File too large)" in failed.message
    assert "Make room" in failed.to_do
    assert not list(driven.folder.glob("*.npy"))


def test_torch_and_slicer_stay_out_of_the_asking_program(tmp_path):
    program = (
        "import sys\n"
        "from MedVLMReaderLib.worker import blocking, client, logic, transport\n"
        "bad = {'torch', 'transformers', 'slicer', 'qt', 'multiprocessing'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
