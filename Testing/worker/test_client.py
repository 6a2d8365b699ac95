"""A real worker with a tiny model: studies, questions, chats, heatmaps; stopped, killed, out of memory, restarted."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.options import Options
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.session import ChatSession
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.worker.events import (
    Answered,
    Cancelled,
    Failed,
    Heatmap,
    Loaded,
    Needs,
    Prepared,
    Progress,
    Saw,
    Started,
    Verified,
    Word,
)
from MedVLMReaderLib.worker.plain import history_of
from Testing.tiny_model import TINY_TEXT
from Testing.tiny_scan import tiny_scan
from Testing.worker.driven import Driven, Told

QUICK = Options(heatmaps=False)
ENDLESS = Options(heatmaps=False, sample=True, temperature=9.0, top_p=1.0)
"""Random letters up to the longest answer: there is time to do something meanwhile."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits another process, as only Linux lets one do")


@pytest.fixture(scope="module")
def driven(tiny_model):
    driven = Driven()
    driven.client.load(str(tiny_model))
    yield driven
    driven.client.close()


@pytest.fixture
def study(driven) -> int:
    told = Told()
    study = driven.client.see(tiny_scan(), on_event=told)
    driven.until(lambda: told.over)
    assert isinstance(told.last, Saw)
    yield study
    driven.client.forget(study)
    driven.until(lambda: not driven.client.busy)


def answered(driven: Driven, study: int, question: str | None = "Is there a nodule?", **how: object) -> Answered:
    how.setdefault("options", QUICK)
    event = driven.last(lambda told: driven.client.ask(study, question, on_event=told, **how))
    assert isinstance(event, Answered), event
    return event


def test_words_come_one_by_one_and_the_reading_last(driven, study):
    told = Told()
    driven.client.ask(study, None, on_event=told)
    assert told.events == []
    driven.until(lambda: told.over)
    reading = told.last.reading
    assert "".join(told.words) == reading.text == TINY_TEXT
    assert len(told.words) > 10
    assert (reading.question, reading.complete) == ("Describe the findings.", True)
    assert [trace.method for trace in reading.traces] == ["relevance"]
    assert reading.boxes[0].same_as(tiny_scan().grid)
    assert isinstance(driven.client.loaded, Loaded)
    assert driven.client.seen(study).volume_keys == (tiny_scan().key,)


def test_two_studies_are_asked_in_turn_and_each_answer_goes_to_its_own(driven):
    scans = [tiny_scan(1), tiny_scan(2).flip(1)]
    tolds, order = [Told(), Told(), Told()], []
    studies = [driven.client.see(scan, on_event=Told()) for scan in scans]
    for n, (which, told) in enumerate(zip((0, 1, 0), tolds, strict=True)):
        told.then = lambda event, n=n: order.append(n)
        driven.client.ask(studies[which], f"Question {n}?", options=Options(longest=3), on_event=told)
    driven.idle()
    assert order == sorted(order)
    assert [told.last.study for told in tolds] == [studies[0], studies[1], studies[0]]
    assert [told.last.reading.question for told in tolds] == ["Question 0?", "Question 1?", "Question 2?"]
    for told, which in zip(tolds, (0, 1, 0), strict=True):
        assert told.last.reading.boxes[0].same_as(scans[which].grid)
    for one in studies:
        driven.client.forget(one)


def test_more_studies_than_the_worker_keeps_are_seen_again_when_asked_about(driven):
    studies = [driven.client.see(tiny_scan(n)) for n in range(5)]
    driven.idle()
    assert list(driven.client.running.seen) == studies[-3:]
    told = Told()
    driven.client.ask(studies[0], "Why?", options=QUICK, on_event=told)
    driven.until(lambda: told.over)
    assert [event.stage for event in told.events if isinstance(event, Started)] == ["study", "answer"]
    assert isinstance(told.last, Answered)
    for one in studies:
        driven.client.forget(one)
    assert not list(driven.folder.glob("study-*"))


def test_a_chat_is_told_what_was_answered_while_the_question_waited(driven, study):
    session = ChatSession(())
    for question in (" One?", "Two?"):
        driven.client.ask(study, question, session=session, options=QUICK, on_event=Told())
    driven.idle()
    assert [turn.question for turn in session.turns] == ["One?", "Two?"]
    assert session.volumes == (tiny_scan().key,)
    assert session.messages[:2] == (Message("user", "One?"), Message("assistant", TINY_TEXT))
    edited = answered(driven, study, "Another?", session=session, number=0)
    assert edited.number == 0
    assert [turn.question for turn in session.turns] == ["Another?"]
    drawn = driven.last(
        lambda told: driven.client.regenerate(
            study, session, 7, options=replace(QUICK, temperature=3.0, longest=9), on_event=told
        )
    )
    assert session.turns[0].reading is drawn.reading
    assert (drawn.reading.options["seed"], drawn.reading.options["sample"]) == (7, True)


def test_the_history_changes_what_a_chat_answers_as_it_does_for_a_reader(driven, study, tiny_model):
    from MedVLMReaderLib.chat import Chat
    from MedVLMReaderLib.reader import load

    how = replace(QUICK, sample=True, temperature=2.0, longest=12, seed=3)
    chat, session = Chat(load(tiny_model), tiny_scan()), ChatSession(())
    middle = tuple(float(x) for x in tiny_scan().grid.centre)
    for question, place in (("One?", None), ("Two?", Place(middle, "axial"))):
        *_, reading = chat.ask(question, place, options=how)
        there = answered(driven, study, question, session=session, place=place, options=how).reading
        assert (there.question, there.text, there.notes) == (reading.question, reading.text, reading.notes)
    assert "axial slice" in session.turns[1].reading.question
    assert session.turns[1].question == "Two?"


def test_a_chat_outgrows_the_context_and_says_so(driven, study):
    session = ChatSession(())
    for n in range(7):
        event = answered(
            driven, study, f"Number {n}? {'qz ' * 20}", session=session, options=replace(QUICK, longest=40)
        )
    assert session.first_told > 0
    assert any("outgrown" in note for note in event.reading.notes)


def test_a_view_is_part_of_the_study(driven):
    event = driven.last(lambda told: driven.client.see(tiny_scan(), View(400.0, 40.0, (0.0, 0.0, 0.0)), on_event=told))
    assert isinstance(event, Saw)
    driven.client.forget(event.study)


def test_a_recorded_heatmap_is_drawn_while_a_question_is_answered_and_another_is_looked_up(driven, study):
    reading = answered(driven, study, options=Options()).reading
    busy, told = Told(), Told()
    driven.client.ask(study, "Why?", options=ENDLESS, on_event=busy)
    driven.until(lambda: busy.has(Word))
    driven.client.heatmap(study, reading, 1, on_event=told)
    driven.until(lambda: told.over)
    assert not busy.over
    driven.client.stop()
    driven.until(lambda: busy.over)
    np.testing.assert_array_equal(told.last.volume.values, reading.heatmap(1).values)
    assert (told.last.span, told.last.method) == (reading.sentences[1], "relevance")
    looked = driven.last(lambda told: driven.client.heatmap(study, reading, 1, "attention", on_event=told))
    assert isinstance(looked, Heatmap)
    assert [trace.method for trace in looked.reading.traces] == ["relevance", "attention"]
    assert driven.last(lambda told: driven.client.heatmap(None, looked.reading, 1, "attention", on_event=told)).method


def test_words_that_somebody_has_written_are_looked_for(driven, study):
    session = ChatSession(())
    answered(driven, study, "One?", session=session)
    reading = answered(driven, study, "Two?", session=session).reading
    event = driven.last(
        lambda told: driven.client.heatmap(
            study, reading, "stone in", text="A stone in it.", history=history_of(session, 1), on_event=told
        )
    )
    assert isinstance(event, Heatmap)
    assert event.reading.text == "A stone in it."
    assert any("edited by hand" in note for note in event.reading.notes)
    assert abs(event.volume.values.sum() - 1) < 1e-3


def test_a_sentence_is_held_against_the_image_and_what_the_model_saw_is_shown(driven, study):
    reading = answered(driven, study, options=Options()).reading
    told = Told()
    driven.client.verify(study, reading, 0, regions=3, on_event=told)
    driven.until(lambda: told.over)
    assert isinstance(told.last, Verified), told.last
    assert told.last.verdict.said in ("supported", "not supported", "undecided")
    assert told.has(Progress)
    shown = driven.last(lambda told: driven.client.prepared(study, on_event=told))
    assert isinstance(shown, Prepared)
    assert len(shown.volumes) == 3
    assert not list(driven.folder.glob("shown-*"))
    needs = driven.last(lambda told: driven.client.needs("built-in", on_event=told))
    assert isinstance(needs, Needs)
    assert needs.chosen in needs.sizes


def test_a_stop_is_obeyed_within_a_word_and_the_words_stay(driven, study):
    told, at = Told(), []

    def stop(event: object) -> None:
        if isinstance(event, Word) and len(told.words) == 5:
            at.append(time.monotonic())
            driven.client.stop()

    told.then = stop
    driven.client.ask(study, "Why?", options=ENDLESS, on_event=told)
    driven.until(lambda: told.over)
    assert isinstance(told.last, Answered)
    assert not told.last.reading.complete
    assert "".join(told.words) == told.last.reading.text
    assert time.monotonic() - at[0] < 1
    assert len(told.words) < 100  # of up to 512; those that were on their way when the stop was sent


def test_a_stop_is_obeyed_while_the_prompt_is_read_and_while_a_study_is_encoded(driven, study):
    told = Told(lambda event: driven.client.stop() if event == Started("answer") else None)
    driven.client.ask(study, "Why? " + "xq" * 150, options=ENDLESS, on_event=told)
    driven.until(lambda: told.over)
    assert isinstance(told.last, (Answered, Cancelled))
    assert len(told.words) < 100
    told = Told(lambda event: driven.client.stop() if event == Started("study") else None)
    large = Volume(
        np.random.default_rng(0).integers(0, 99, (90, 90, 90)).astype(np.int16), Grid((90, 90, 90), np.eye(4))
    )
    again = driven.client.see(large, on_event=told)
    driven.until(lambda: told.over)
    assert isinstance(told.last, Cancelled)
    driven.client.forget(again)


def test_what_waits_in_line_is_taken_out_of_it(driven, study):
    tolds = [Told(), Told(), Told()]
    numbers = [driven.client.ask(study, "Why?", options=QUICK, on_event=told) for told in tolds]
    driven.client.stop(numbers[1])
    driven.idle()
    assert [type(told.last) for told in tolds] == [Answered, Cancelled, Answered]


def test_a_study_that_is_forgotten_in_mid_answer_ends_quietly(driven):
    study = driven.client.see(tiny_scan(8))
    busy, waiting, late = Told(), Told(), Told()
    driven.client.ask(study, "Why?", options=ENDLESS, on_event=busy)
    driven.client.ask(study, "And?", options=QUICK, on_event=waiting)
    driven.until(lambda: busy.has(Word))
    driven.client.forget(study)
    driven.client.ask(study, "Still?", on_event=late)
    driven.idle()
    assert isinstance(busy.last, Answered)
    assert isinstance(waiting.last, Cancelled)
    assert "closed" in late.last.message


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"question": "  "}, "question is empty"), ({"question": "xq" * 600}, "reads 512"),
        ({"question": "x" * (1 << 20)}, "Shorten it"),
        ({"question": "x", "options": replace(ENDLESS, top_p=0.0)}, "top_p"),
        ({"question": "x", "place": Place((9e3, 0.0, 0.0)), "session": ChatSession(())}, "outside the volume"),
        ({"question": "x", "session": ChatSession(("another",))}, "another scan"),
        ({"question": "x", "session": ChatSession(()), "number": 3}, "no question 4"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_told_and_the_worker_stays(driven, study, how, message):
    pid = driven.pid
    failed = driven.failed(lambda told: driven.client.ask(study, on_event=told, **{"options": QUICK, **how}))
    assert message in failed.message
    assert failed.trouble == "mend"
    assert answered(driven, study).reading.text == TINY_TEXT
    assert driven.pid == pid


def test_nothing_to_answer_again_and_no_such_words_are_said(driven, study):
    with pytest.raises(ReaderError, match="Nothing has been asked"):
        driven.client.regenerate(study, ChatSession(()), 1)
    reading = answered(driven, study, options=Options()).reading
    assert (
        "does not say"
        in driven.failed(lambda told: driven.client.heatmap(None, reading, "unicorn", on_event=told)).message
    )


def test_a_model_that_cannot_be_loaded_is_said_and_the_one_before_can_be_had_back(driven, study, tiny_model, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert driven.failed(lambda told: driven.client.load("no/such model", on_event=told)).trouble == "mend"
    failed = driven.failed(lambda told: driven.client.load(str(tmp_path), on_event=told))
    assert failed.trouble == "mend", failed
    assert driven.failed(lambda told: driven.client.ask(study, "Why?", on_event=told)).message == failed.message
    driven.client.load(str(tiny_model))
    assert answered(driven, study).reading.text == TINY_TEXT


@linux
def test_memory_that_runs_out_is_said_and_the_next_question_works(driven, study):
    import resource

    used = int(Path(f"/proc/{driven.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    pid, limits = driven.pid, resource.prlimit(driven.pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (32 << 20), limits[1]))
    large = Volume(np.zeros((200, 500, 500), np.int16), Grid((200, 500, 500), np.eye(4)))
    told = Told()
    big = driven.client.see(large, on_event=told)
    driven.until(lambda: told.over)
    driven.client.forget(big)
    assert isinstance(told.last, Failed), told.last
    assert told.last.trouble == "memory"
    assert "memory ran out" in told.last.message
    resource.prlimit(pid, resource.RLIMIT_AS, limits)
    assert answered(driven, study).reading.text == TINY_TEXT
    assert driven.pid == pid


@linux
def test_a_disk_that_is_full_costs_the_heatmaps_and_not_the_words(driven, study):
    import resource

    limits = resource.prlimit(driven.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(driven.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
    failed = driven.failed(lambda told: driven.client.ask(study, "Why?", on_event=told))
    resource.prlimit(driven.pid, resource.RLIMIT_FSIZE, limits)
    assert failed.words == TINY_TEXT
    assert failed.reading.text == TINY_TEXT
    assert "Make room on the disk" in failed.to_do
    assert answered(driven, study).reading.text == TINY_TEXT


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_in_mid_answer_the_words_stay_and_the_next_question_works(driven, study):
    session, told = ChatSession(()), Told()
    answered(driven, study, "One?", session=session)
    driven.client.ask(study, "Two?", session=session, options=ENDLESS, on_event=told)
    driven.until(lambda: len(told.words) > 3)
    exits = len(driven.exits)
    os.kill(driven.pid, signal.SIGKILL)
    began = time.monotonic()
    driven.until(lambda: told.over)
    assert time.monotonic() - began < 1
    failed = told.last
    assert failed.trouble == "memory"
    assert failed.words == "".join(told.words)
    assert "Ask again" in failed.to_do
    assert len(driven.exits) == exits + 1
    assert session.turns[1].reading is failed.reading
    assert not session.turns[1].reading.complete
    again = Told()
    driven.client.ask(study, "Three?", session=session, options=QUICK, on_event=again)
    driven.until(lambda: again.over)
    stages = [event.stage for event in again.events if isinstance(event, Started)]
    assert stages == ["program", "model", "study", "answer"]
    assert again.last.number == 2


def test_memory_is_given_back_and_taken_again_and_all_goes_in_the_end(driven, study):
    told = Told()
    driven.client.ask(study, "Why?", options=ENDLESS, on_event=told)
    driven.until(lambda: told.has(Word))
    driven.client.free()
    driven.until(lambda: told.over)
    assert told.last.words
    assert "memory was freed" in told.last.message
    driven.until(lambda: driven.exits[-1:] and driven.exits[-1].wanted)
    assert driven.client.loaded is None
    again = driven.last(lambda told: driven.client.ask(study, "Why?", options=QUICK, on_event=told))
    assert isinstance(again, Answered), again
    process, folder = driven.transport.process, driven.folder
    driven.client.close()
    process.wait(5)
    assert not folder.exists()
