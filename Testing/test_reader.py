"""The reader: words as they come, the same answer every time, and where the model looked for each sentence."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.ms_vlm import MADE_STUDIES_ONLY
from MedVLMReaderLib.reader import Answer, Options, Reader, load
from MedVLMReaderLib.reading import Reading, sentence_spans
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.training.language import READER, USER
from Testing.tiny_model import TINY_TEXT

QUESTION = "Is there a nodule?"


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


@pytest.fixture
def seen(reader, body_ct) -> Seen:
    return reader.see(body_ct)


def answer(reader: Reader, seen: Seen, question: str = QUESTION, **more) -> tuple[list[str], Reading]:
    *words, reading = reader.ask(seen, question, **more)
    assert isinstance(reading, Reading)
    return [str(word) for word in words], reading


def test_words_come_one_by_one_and_the_reading_last(reader, seen):
    words, reading = answer(reader, seen)
    assert len(words) > 10
    assert "".join(words) == reading.text == TINY_TEXT
    assert reading.complete
    assert reading.question == QUESTION
    assert (reading.model, reading.revision) == (reader.model.name, reader.model.revision)
    assert reading.grids == seen.token_map.grids
    assert reading.preparation == seen.preparation
    assert reading.options["seed"] == 42
    assert set(reading.timings) == {"answer", "heatmaps"}


def test_the_same_question_has_the_same_answer(reader, seen, body_ct):
    _, first = answer(reader, seen)
    _, again = answer(reader, reader.see([body_ct]))
    assert again.text == first.text
    np.testing.assert_array_equal(again.traces[0].weights, first.traces[0].weights)


def test_a_seed_draws_the_same_words_again_and_another_seed_draws_others(reader, seen):
    def drawn(seed: int) -> str:
        options = Options(longest=25, sample=True, temperature=3.0, seed=seed, heatmaps=False)
        return answer(reader, seen, options=options)[1].text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in (1, 2, 3)}) > 1


def test_next_to_no_temperature_draws_the_likeliest_words(reader, seen):
    options = Options(sample=True, temperature=1e-4, heatmaps=False)
    assert answer(reader, seen, options=options)[1].text == TINY_TEXT


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_that_draw_nothing_are_refused(reader, seen, change):
    with pytest.raises(ReaderError, match="temperature"):
        list(reader.ask(seen, QUESTION, options=replace(Options(sample=True), **change)))


def test_stopped_before_the_first_word_the_reading_is_empty_and_incomplete(reader, seen):
    (reading,) = reader.ask(seen, QUESTION, stopped=lambda: True)
    assert isinstance(reading, Reading)
    assert (reading.text, reading.complete, reading.traces) == ("", False, ())


def test_stopped_midway_what_was_written_is_kept(reader, seen):
    words: list[str] = []
    for part in reader.ask(seen, QUESTION, stopped=lambda: len(words) >= 3):
        if isinstance(part, str):
            words.append(part)
        else:
            assert not part.complete
            assert part.text == "".join(words)
    assert len(words) == 3


@pytest.mark.parametrize("longest", [0, 1, 5])
def test_an_answer_cut_off_at_its_longest_is_incomplete(reader, seen, longest):
    words, reading = answer(reader, seen, options=Options(longest=longest))
    assert len(words) == longest
    assert not reading.complete
    assert TINY_TEXT.startswith(reading.text)


@pytest.mark.parametrize("question", ["", "  \n\t "])
def test_an_empty_question_is_refused_with_an_example(reader, seen, question):
    with pytest.raises(ReaderError, match="for example"):
        list(reader.ask(seen, question))


def test_a_question_longer_than_the_model_reads_is_refused(reader, seen):
    with pytest.raises(ReaderError, match=r"this model reads 512"):
        list(reader.ask(seen, "xq" * 600))


def test_an_answer_that_fills_the_context_ends_incomplete(reader, seen):
    room = reader.model.decoder.config.max_position_embeddings
    length = reader.model.prompt(seen, [Message("user", "x")]).inputs.shape[1]
    question = "x" * (room - length - 5)  # letters of an unseen word are one token each, or fewer
    while reader.model.prompt(seen, [Message("user", question)]).inputs.shape[1] < room - 6:
        question += "qz"
    words, reading = answer(reader, seen, question, options=Options(heatmaps=True))
    assert 0 < len(words) <= 8
    assert not reading.complete
    assert reading.text == "".join(words)
    assert len(reading.traces[0].spans) == len(sentence_spans(reading.text))


def test_the_prompt_is_the_picture_then_the_chat_between_its_marks(reader, seen):
    tokenizer, embed = reader.model.tokenizer, reader.model.decoder.get_input_embeddings()
    chat = [Message("user", "One?"), Message("assistant", "No."), Message("user", "Two {question} {x}?")]
    prompt = reader.model.prompt(seen, chat)
    said = f"{USER}One?{READER}No.{tokenizer.eos_token}{USER}Two {{question}} {{x}}?{READER}"
    wanted = torch.cat([seen.tokens, embed(torch.tensor(tokenizer.encode(said)))])
    torch.testing.assert_close(prompt.inputs[0], wanted)
    assert prompt.visual_positions == tuple(range(len(seen.tokens)))


def test_earlier_turns_are_part_of_the_question(reader, seen):
    history = (Message("user", "Is there a stone?"), Message("assistant", "Yes."))
    alone = reader.model.prompt(seen, [Message("user", QUESTION)]).inputs
    after = reader.model.prompt(seen, [*history, Message("user", QUESTION)]).inputs
    assert after.shape[1] > alone.shape[1]
    _, first = answer(reader, seen)
    _, second = answer(reader, seen, history=history)
    assert second.question == QUESTION
    assert not np.allclose(first.traces[0].weights, second.traces[0].weights, atol=0)


def test_a_closed_question_keeps_its_choices(reader, seen):
    closed = "Which side? A. right B. left"
    _, reading = answer(reader, seen, f"  {closed}\n")
    assert reading.question == closed
    assert reading.complete


def test_every_sentence_has_a_heatmap_in_patient_space(reader, seen, body_ct):
    _, reading = answer(reader, seen)
    (trace,) = reading.traces
    assert trace.method == "relevance"
    assert trace.spans == reading.sentences == sentence_spans(TINY_TEXT)
    assert next(TINY_TEXT[a:b] for a, b in trace.spans) == "The right lung is clear."
    for sentence in range(3):
        heatmap = reading.heatmap(sentence)
        assert heatmap.values.sum() == pytest.approx(1, abs=1e-4)
        assert body_ct.grid.contains(heatmap.peak())
    shares = trace.weights / trace.weights.sum(1, keepdims=True)
    assert not np.allclose(shares[0], shares[1])


def test_without_heatmaps_none_are_worked_out(reader, seen):
    _, reading = answer(reader, seen, options=Options(heatmaps=False))
    assert reading.traces == ()
    with pytest.raises(ReaderError):
        reading.heatmap(0)


def test_a_report_is_the_answer_to_the_models_own_request(reader, seen):
    report = reader.report(seen)
    assert report.question == reader.model.report_request()
    assert report.text == TINY_TEXT


def test_what_must_be_known_first_stands_in_the_notes(reader, seen, body_ct):
    assert seen.notes[0] == MADE_STUDIES_ONLY
    unknown = reader.see(replace(body_ct, modality="", notes=("The slices are unevenly spaced.",)))
    assert answer(reader, unknown)[1].notes == unknown.notes
    assert "The slices are unevenly spaced." in unknown.notes
    assert any("CT or MR" in note for note in unknown.notes)


def test_a_study_of_several_series_is_seen_as_one(reader, body_ct):
    both = reader.see([body_ct, body_ct.flip(1)])
    assert len(both.token_map.grids) == 6
    assert answer(reader, both)[1].complete
    with pytest.raises(ReaderError, match="No volume"):
        reader.see([])


def test_step_by_step_is_what_transformers_generate_writes(reader, seen):
    torch.manual_seed(5)
    decoder = reader.model.decoder
    head = decoder.get_output_embeddings().weight
    kept = head.clone()
    head.normal_(std=0.5)  # a random text, so that equality means something
    try:
        messages = [Message("user", QUESTION)]
        stepped = list(islice(reader._tokens(seen, messages, Options()), 30))
        inputs = reader.model.prompt(seen, messages).inputs
        generated = decoder.generate(
            inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2]), do_sample=False, max_new_tokens=30,
            eos_token_id=None, pad_token_id=0,
        )[0].tolist()  # fmt: skip
    finally:
        head.copy_(kept)
    assert len(set(generated)) > 3
    assert stepped == generated


def test_a_reading_is_kept_and_comes_back(reader, seen, tmp_path):
    _, reading = answer(reader, seen)
    reading.save(tmp_path)
    again = Reading.load(tmp_path)
    assert (again.text, again.question, again.notes, again.options) == (
        reading.text, reading.question, reading.notes, reading.options,
    )  # fmt: skip
    np.testing.assert_array_equal(again.traces[0].weights, reading.traces[0].weights)
    np.testing.assert_array_equal(again.heatmap(1).values, reading.heatmap(1).values)


def test_an_unknown_model_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(ReaderError, match=r"No model 'gpt'.*built-in.*folder"):
        load("gpt")
    with pytest.raises(ReaderError, match=r"config\.json"):
        load(tmp_path)


def test_letters_of_several_tokens_come_whole(reader):
    text = "Ø 5 µm – très 肺"
    ids = reader.model.tokenizer.encode(text)
    taken = Answer(reader.model.tokenizer)
    pieces = [taken.take(token) for token in ids]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) + taken.finish() == taken.text == text
    assert taken.tokens_of((0, len(text))) == (0, len(ids))


def test_an_answer_that_ends_within_a_letter_keeps_what_there_is(reader):
    ids = reader.model.tokenizer.encode("ab肺")[:-1]
    taken = Answer(reader.model.tokenizer)
    pieces = [taken.take(token) for token in ids]
    assert "".join(pieces) == "ab"
    pieces.append(taken.finish())
    assert "".join(pieces) == taken.text
    assert taken.tokens_of((0, len(taken.text))) == (0, len(ids))


def test_tokens_of_a_stretch_of_text_are_those_that_write_it(reader):
    taken = Answer(reader.model.tokenizer)
    ids = reader.model.tokenizer.encode(TINY_TEXT)
    for token in ids:
        taken.take(token)
    start = TINY_TEXT.index("right")
    a, b = taken.tokens_of((start, start + len("right lung")))
    assert reader.model.tokenizer.decode(ids[a:b]) == " right lung"
    last = TINY_TEXT.index("Renal")
    assert taken.tokens_of((last, len(TINY_TEXT)))[1] == len(ids)
