"""tokenizer.model, read without SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.sentencepiece import read_llama_tokenizer, read_vocabulary
from Testing.tiny_m3d import sentencepiece_model, vocabulary, write_tokenizer


def words(folder: Path, text: str) -> list[str]:
    tokenizer = read_llama_tokenizer(folder)
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


def test_a_text_becomes_the_pieces_whose_joining_scores_best(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("ab", -9.0, 1), ("bc", -1.0, 1), ("abc", -2.0, 1)]
    letters = [(letter, -20.0, 1) for letter in "▁abcs/<>"]
    write_tokenizer(tmp_path, ())
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces + letters))
    assert words(tmp_path, "abc abb") == ["<s>", "▁", "abc", "▁", "ab", "b"]
    assert read_vocabulary(tmp_path / "tokenizer.model").merges == [("b", "c"), ("ab", "c"), ("a", "bc"), ("a", "b")]


def test_letters_that_are_no_piece_become_their_bytes(tmp_path):
    write_tokenizer(tmp_path)
    assert words(tmp_path, "the é") == ["<s>", "▁the", "▁", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize(("begins", "expected"), [(True, ["<s>", "<im_patch>", "Can"]), (False, ["<im_patch>", "Can"])])
def test_the_token_that_begins_a_text_is_as_the_settings_say(tmp_path, begins, expected):
    write_tokenizer(tmp_path, add_bos_token=begins)
    assert words(tmp_path, "<im_patch>Can") == expected


def test_a_word_after_an_added_token_has_a_space_before_it_only_in_the_old_way(tmp_path):
    write_tokenizer(tmp_path, legacy=False)
    assert words(tmp_path, "<im_patch>is") == ["<s>", "<im_patch>", "i", "s"]
    write_tokenizer(tmp_path, legacy=True)
    assert words(tmp_path, "<im_patch>is") == ["<s>", "<im_patch>", "▁is"]


def test_added_tokens_of_the_plain_table_are_read_where_the_settings_have_none(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["added_tokens_decoder"]
    path.write_text(json.dumps({**settings, "bos_token": {"content": "<s>", "lstrip": False}}))
    assert words(tmp_path, "<im_patch>Can") == ["<s>", "<im_patch>", "Can"]


def test_what_was_written_comes_back_as_text(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = read_llama_tokenizer(tmp_path)
    said = tokenizer("<im_patch>the liver is normal, 7 é.")["input_ids"]
    assert tokenizer.decode(said, skip_special_tokens=True) == "the liver is normal, 7 é."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sentencepiece_model(vocabulary())[:-7], "is damaged"),
        (sentencepiece_model(vocabulary(), kind=1), "not a SentencePiece vocabulary of byte pairs"),
        (b"", "not a SentencePiece vocabulary"),
        (b"\x0f\x00\x00", "damaged .*kind 7"),
        (b"\xff" * 12, "damaged .*number too long"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, said):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ReaderError, match=said):
        read_vocabulary(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("settings", "said"),
    [("[]", "one JSON object"), ("{", "cannot be read"), ('{"added_tokens_decoder": {"x": {}}}', "cannot be read")],
)
def test_settings_that_are_none_are_refused(tmp_path, settings, said):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ReaderError, match=said):
        read_llama_tokenizer(tmp_path)
