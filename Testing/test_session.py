"""Chats: history, editing, places on the screen, what no longer fits, and what is kept in a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.chat import Chat
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import CUT_OFF, ChatSession
from MedVLMReaderLib.study import Message, Stopped
from MedVLMReaderLib.volume import View, Volume
from Testing.tiny_model import TINY_TEXT

QUICK = Options(heatmaps=False)


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture
def chat(reader: Reader, body_ct: Volume) -> Chat:
    return Chat(reader, body_ct)


def said(parts: Any) -> Reading:
    *_, reading = parts
    assert isinstance(reading, Reading)
    return reading


def questions(chat: Chat) -> list[str]:
    return [turn.question for turn in chat.session.turns]


def test_the_study_is_encoded_once_and_the_history_is_told(chat):
    said(chat.ask(" Is there a nodule? ", options=QUICK))
    seen = chat.seen
    said(chat.ask("Is there a stone?", options=QUICK))
    assert chat.seen is seen
    assert questions(chat) == ["Is there a nodule?", "Is there a stone?"]
    assert chat.session.messages[:2] == (Message("user", "Is there a nodule?"), Message("assistant", TINY_TEXT))
    chat.look(View(400.0, 40.0, (0.0, 0.0, 0.0)))
    assert chat.see() is not seen


def test_an_edited_question_takes_the_place_of_the_old_one_and_of_all_after_it(chat):
    for question in ("One?", "Two?", "Three?"):
        said(chat.ask(question, options=QUICK))
    said(chat.edit(1, "Two, really?", options=QUICK))
    assert questions(chat) == ["One?", "Two, really?"]
    with pytest.raises(ReaderError, match="no question 9: it has 2"):
        chat.edit(8, "Nine?")


def test_an_answer_is_drawn_anew_with_a_seed(chat):
    hot = replace(QUICK, longest=20, temperature=3.0)
    said(chat.ask("One?", options=hot))
    drawn = {said(chat.regenerate(seed, options=hot)).text for seed in (1, 2, 3)}
    assert len(drawn) > 1
    assert questions(chat) == ["One?"]
    assert chat.session.turns[0].reading.options["seed"] == 3
    with pytest.raises(ReaderError, match="no question 0"):
        Chat(chat.reader, chat.volumes).regenerate(1)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused_even_about_a_place(chat, question):
    with pytest.raises(ReaderError, match="empty"):
        said(chat.ask(question, Place(tuple(chat.volumes[0].grid.centre))))
    with pytest.raises(ReaderError, match="this model reads 512"):
        said(chat.ask("xq" * 600))
    assert chat.session.turns == []


def test_a_cut_off_answer_is_marked_and_one_without_a_word_is_not_told(chat):
    said(chat.ask("One?", options=replace(QUICK, longest=3)))
    assert chat.session.turns[0].shown == f"Findings: The right {CUT_OFF}"
    said(chat.ask("Two?", options=replace(QUICK, longest=0)))
    assert chat.session.turns[1].shown == CUT_OFF
    assert [message.text for message in chat.session.messages] == ["One?", "Findings: The right"]
    with pytest.raises(Stopped):
        said(Chat(chat.reader, chat.volumes).ask("Three?", stopped=lambda: True))


def test_the_oldest_turns_go_where_the_chat_outgrows_the_context_and_the_image_stays(chat):
    options = replace(QUICK, longest=40)
    readings = [said(chat.ask(f"Is there a nodule number {n}? {'qz ' * 20}", options=options)) for n in range(8)]
    assert all(reading.complete for reading in readings)
    assert len(chat.session.turns) == 8
    first = chat.session.first_told
    assert 0 < first < 8
    assert any(f"the first {first} questions were not told" in note for note in readings[-1].notes)
    assert not any("outgrown" in note for note in readings[0].notes)


def test_a_question_about_a_place_says_where(chat):
    grid = chat.volumes[0].grid
    r, a, s = (float(x) for x in grid.centre + np.array([30, -20, 10]))
    asked = said(chat.ask("What is this?", Place((r, a, s), "axial"), options=QUICK)).question
    assert asked.startswith("About axial slice ")
    assert asked.endswith("30 mm right, 20 mm posterior and 10 mm superior of the middle of the scan: What is this?")
    assert chat.session.turns[0].question == "What is this?"
    asked = said(chat.ask("And here?", Place((r, a, s), None, (20.0, 30.0, 40.0)), options=QUICK)).question
    assert "region of 20 x 30 x 40 mm" in asked


def test_slices_are_counted_from_the_head_and_from_the_patients_right(oblique_ct):
    stack = oblique_ct.as_seen("axial")
    top = tuple(stack.grid.to_world((stack.grid.shape[0] - 1, 3, 3)))
    assert Place(top, "axial").about(oblique_ct).startswith(f"About axial slice 1 of {stack.grid.shape[0]}, counted")
    stack = oblique_ct.as_seen("sagittal")
    assert "slice 1 of" in Place(tuple(stack.grid.to_world((0, 3, 3))), "sagittal").about(oblique_ct)


def test_a_place_outside_the_scan_is_refused(chat):
    far = tuple(float(x) for x in chat.volumes[0].grid.centre + 900)
    with pytest.raises(ReaderError, match=r"cursor at .* outside the volume"):
        said(chat.ask("What is this?", Place(far)))
    with pytest.raises(ReaderError, match=r"region at .* 5 x 5 x 5 mm large, lies outside the volume"):
        said(chat.ask("What is this?", Place(far, None, (5.0, 5.0, 5.0))))
    assert "region" in Place(far, None, (2000.0, 2000.0, 2000.0)).about(chat.volumes[0])
    with pytest.raises(ReaderError, match="sides above 0"):
        Place(far, None, (5.0, 0.0, 5.0))
    assert chat.session.turns == []


@pytest.fixture
def kept(chat, tmp_path) -> Path:
    said(chat.ask("One?"))
    said(chat.ask("Two?", Place(tuple(float(x) for x in chat.volumes[0].grid.centre)), options=QUICK))
    chat.session.view = View(400.0, 40.0, (1.0, 2.0, 3.0))
    chat.session.save(tmp_path / "chat")
    return tmp_path / "chat"


def test_a_chat_comes_back_and_goes_on(chat, kept):
    again = ChatSession.load(kept)
    assert (again.volumes, again.view, again.messages) == (
        chat.session.volumes, chat.session.view, chat.session.messages,
    )  # fmt: skip
    assert [turn.place for turn in again.turns] == [turn.place for turn in chat.session.turns]
    np.testing.assert_array_equal(
        again.turns[0].reading.heatmap().values, chat.session.turns[0].reading.heatmap().values
    )
    more = Chat(chat.reader, chat.volumes, again)
    said(more.edit(1, "Another?", options=QUICK))
    more.session.save(kept)
    assert [turn.question for turn in ChatSession.load(kept).turns] == ["One?", "Another?"]
    assert len(list(kept.iterdir())) == 3  # the replaced reading is gone


def test_another_scan_is_refused_and_another_model_is_told(chat, kept):
    session = ChatSession.load(kept)
    with pytest.raises(ReaderError, match="another scan"):
        Chat(chat.reader, chat.volumes[0].flip(1), session)
    session.turns[0] = replace(session.turns[0], reading=replace(session.turns[0].reading, model="other"))
    notes = said(Chat(chat.reader, chat.volumes, session).ask("Three?", options=QUICK)).notes
    assert any("written by other" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"newer version \(format 2; this version reads up to 1\).*Update"),
        ({"turns": [{"question": "x", "place": None, "reading": "../../x"}]}, "no folder of a reading"),
        ({"first_told": 7}, "damaged"), ({"turns": None}, "damaged"), ({"view": {}}, "damaged"),
        ({"format": "new"}, "damaged"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_read_says_why(kept, change, message):
    content = json.loads((kept / "chat.json").read_text())
    (kept / "chat.json").write_text(json.dumps(content | change))
    with pytest.raises(ReaderError, match=message):
        ChatSession.load(kept)


def test_a_missing_reading_is_named_and_so_is_a_missing_chat(kept):
    shutil.rmtree(next(kept.glob("turn-002-*")))
    with pytest.raises(ReaderError, match=r"'Two\?', in turn-002-.*no reading\.json"):
        ChatSession.load(kept)
    with pytest.raises(ReaderError, match=r"no chat\.json"):
        ChatSession.load(kept / "nowhere")
