"""A reader in a worker, waited for: it cannot be told from the reader itself. And what the Python console asks."""

from __future__ import annotations

import gc
import json
import threading

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError, reader
from MedVLMReaderLib.options import Options
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.study import Message, Stopped
from MedVLMReaderLib.worker import blocking
from MedVLMReaderLib.worker.events import Answered, Loaded, Started
from MedVLMReaderLib.worker.logic import Logic
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import tiny_scan, write_tiny_scan
from Testing.worker.driven import Told

QUICK = Options(heatmaps=False)
DRAWN = Options(sample=True, temperature=3.0, longest=12, seed=5)


EVENTS: list[object] = []


@pytest.fixture(scope="module")
def there(tiny_model):
    EVENTS.clear()
    with blocking.load(str(tiny_model), on_event=EVENTS.append) as there:
        yield there


@pytest.fixture(scope="module")
def here(tiny_model):
    return reader.load(tiny_model)


def said(parts: object) -> Reading:
    *_, reading = parts
    return reading


def plain(reading: Reading) -> dict[str, object]:
    """All but arrays and what differs from one time to the next."""
    content = json.loads(json.dumps(reading.plain()[0], default=np.ndarray.tolist))
    return {name: content[name] for name in content if name not in ("timings", "created", "grids", "boxes")}


def test_see_ask_look_and_verify_give_what_a_reader_gives(here, there):
    scan, history = tiny_scan(), [Message("user", "One?"), Message("assistant", "Two.")]
    readings = []
    for one in (here, there):
        seen = one.see(scan)
        parts = list(one.ask(seen, " Why? ", history=history, options=DRAWN))
        assert all(isinstance(part, str) for part in parts[:-1])
        assert "".join(parts[:-1]) == parts[-1].text
        looked = one.look(seen, parts[-1], method="attention", history=history)
        edited = one.look(seen, parts[-1], text="A stone.", history=history)
        readings.append([one.report(seen), parts[-1], looked, edited])
    for mine, yours in zip(*readings, strict=True):
        assert plain(mine) == plain(yours)
        assert [trace.method for trace in mine.traces] == [trace.method for trace in yours.traces]
        for a, b in zip(mine.traces, yours.traces, strict=True):
            np.testing.assert_allclose(a.weights, b.weights, atol=1e-5)
    mine, yours = here.see(scan), there.see(scan)
    assert (mine.key, mine.notes) == (yours.key, yours.notes)
    assert mine.token_map.cells == yours.token_map.cells
    assert (here.context, here.model.name, here.model.revision, here.model.report_request()) == (
        there.context, there.model.name, there.model.revision, there.model.report_request(),
    )  # fmt: skip
    verdicts = [
        here.verify(scan, mine, readings[0][0], 0, regions=2), there.verify(yours, readings[1][0], 0, regions=2)
    ]  # fmt: skip
    assert abs(verdicts[0].drop - verdicts[1].drop) < 1e-3
    for a, b in zip(here.model.prepared([scan], None), there.model.prepared([scan]), strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_a_stop_is_what_it_is_for_a_reader(there):
    with pytest.raises(Stopped):
        there.see(tiny_scan(), stopped=lambda: True)
    seen, words = there.see(tiny_scan()), []
    (reading,) = there.ask(seen, "Why?", stopped=lambda: True)
    assert (reading.text, reading.complete) == ("", False)
    for part in there.ask(seen, "Why?", options=Options(heatmaps=False, sample=True, temperature=9.0, top_p=1.0)):
        words.append(part)
        if len(words) == 3:
            break
    assert said(there.ask(seen, "Again?", options=QUICK)).text == TINY_TEXT


def test_what_goes_wrong_is_the_error_that_a_reader_raises(there, tiny_model):
    seen = there.see(tiny_scan())
    with pytest.raises(ReaderError, match="question is empty"):
        said(there.ask(seen, " "))
    with pytest.raises(ReaderError, match="No model 'nobody'"):
        there.load("nobody")
    there.load(str(tiny_model))
    there.forget()
    assert said(there.ask(seen, "Why?", options=QUICK)).text == TINY_TEXT


def test_studies_that_nobody_holds_any_more_are_forgotten(there):
    kept = there.see(tiny_scan())
    for n in range(4):
        there.see(tiny_scan(n))
    gc.collect()
    there.report(kept, QUICK)
    assert list(there.client.studies) == [kept.study]


def test_two_threads_take_turns(there):
    answers: dict[int, Reading] = {}

    def work(n: int) -> None:
        answers[n] = said(there.ask(there.see(tiny_scan(n)), f"Number {n}?", options=QUICK))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {n: reading.question for n, reading in answers.items()} == {n: f"Number {n}?" for n in range(3)}


MEANWHILE: list[int] = []
"""Grows while something is waited for."""


@pytest.fixture
def logic(there):
    logic = Logic(there.client, meanwhile=lambda: MEANWHILE.append(0))
    yield logic
    logic.forget()


def test_the_console_reads_asks_and_draws_and_all_about_a_scan_is_one_chat(logic):
    scan = tiny_scan()
    MEANWHILE.clear()
    report = logic.read(scan)
    assert MEANWHILE
    assert report.text == TINY_TEXT
    answer = logic.ask(scan, "Is there a stone?", options=QUICK)
    assert answer.question == "Is there a stone?"
    assert [turn.reading for turn in logic.session(scan).turns] == [report, answer]
    assert abs(logic.heatmap(scan, report, "stone").values.sum() - 1) < 1e-3
    assert logic.session(tiny_scan(1)).turns == []


def test_the_console_does_not_wait_where_it_is_called_back(logic):
    told = [Told(), Told()]
    number = logic.read(tiny_scan(), key=("node", 1), options=QUICK, on_event=told[0])
    assert isinstance(number, int)
    logic.ask(tiny_scan(), "Why?", key=("node", 1), options=QUICK, on_event=told[1])
    assert told[0].events == []
    logic.wait()
    assert all(isinstance(one.last, Answered) for one in told)
    assert [turn.question for turn in logic.session(tiny_scan(), ("node", 1)).turns] == [
        "Describe the findings.",
        "Why?",
    ]


def test_a_folder_is_read_as_batch_reads_it(logic, tmp_path):
    batch = pytest.importorskip("MedVLMReaderLib.batch", reason="the batch module is not here yet")
    for n in range(2):
        write_tiny_scan(tmp_path / "scans" / f"{n}.nii.gz", n)
    (tmp_path / "scans" / "x.nii.gz").write_bytes(b"no scan")
    progress: list[batch.Progress] = []
    report = logic.read_folder(tmp_path / "scans", tmp_path / "out", options=QUICK, progress=progress.append)
    assert (report.read, report.failed) == (2, 1)
    again = logic.read_folder(tmp_path / "scans", tmp_path / "out", options=QUICK)
    assert (again.read, again.there) == (0, 2)
    readings = list((tmp_path / "out").rglob("reading.json"))
    assert [Reading.load(path.parent).text for path in readings] == [TINY_TEXT] * 2
    assert not any("Started" in path.read_text() for path in readings)


def test_everything_that_goes_on_is_told_to_who_wants_to_know(there):
    assert EVENTS[:2] == [Started("program"), Started("model")]
    assert isinstance(EVENTS[2], Loaded)
