"""Constrained decoding: a model writes findings as JSON, and no token may come that the published schema forbids.

JSON of a schema without recursion is a regular language: the schema becomes a regular expression, and a token may come
if what is written then can still become a match.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import regex
import torch
from transformers import LogitsProcessor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reader import Options, Reader, never
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.structured import StructuredFinding, as_sentences, from_json, schema
from MedVLMReaderLib.study import Message, Seen

REQUEST = (
    "List the findings of this report as JSON: for each finding the sentence that states it, the finding, organ, side, "
    "size_mm and place in the words of that sentence, and null for what the sentence does not say. Report: "
)
MOST_ROWS = 20
NEARBY = 256
"""Tokens tried by their score before all are."""
KEPT = 16
"""Allowed tokens that are left to choose from, the likeliest ones."""
_LETTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'


def pattern(rules: dict[str, Any]) -> str:
    """A regular expression of the JSON texts that a schema allows, written without spaces, keys in the schema's order.

    Knows objects whose keys are all required (others are never written), arrays, strings, numbers, enum, anyOf and
    null. Raises ValueError for a rule that it does not know.
    """
    if "enum" in rules:
        return "(?:" + "|".join(regex.escape(json.dumps(one, ensure_ascii=False)) for one in rules["enum"]) + ")"
    if "anyOf" in rules:
        return "(?:" + "|".join(pattern(one) for one in rules["anyOf"]) + ")"
    kind = rules.get("type")
    if kind == "object":
        keys = [key for key in rules["properties"] if key in rules["required"]]
        pairs = (regex.escape(json.dumps(key)) + ":" + pattern(rules["properties"][key]) for key in keys)
        return r"\{" + ",".join(pairs) + r"\}"
    if kind == "array":
        item, most = pattern(rules["items"]), int(rules.get("maxItems", MOST_ROWS))
        return rf"\[(?:{item}(?:,{item}){{0,{max(most - 1, 0)}}})?\]"
    if kind == "string":
        return f'"{_LETTER}{{{rules.get("minLength", 0)},{rules.get("maxLength", "")}}}"'
    if kind == "number":
        return r"(?:0|[1-9]\d{0,3})(?:\.\d{1,2})?"
    if kind == "null":
        return "null"
    raise ValueError(f"A schema's rule {sorted(rules)} is not known here.")


def pattern_of(sentences: Sequence[str]) -> str:
    """The findings' schema, with the report's own sentences as the only ones that may be written."""
    narrowed = json.loads(json.dumps(schema()))
    rows = narrowed["properties"]["findings"]
    rows["maxItems"] = min(MOST_ROWS, int(rows["maxItems"]))
    rows["items"]["properties"]["sentence"] = {"enum": list(sentences)}
    return pattern(narrowed)


class OnlyMatching(LogitsProcessor):
    """Leaves only tokens with which the text can still become a match, and the end once it is one."""

    def __init__(self, tokenizer: Any, expression: str, ends: Sequence[int], begin: int = 0) -> None:
        """`begin`: tokens of a prompt that stand before the text in what it is called with."""
        self.tokenizer, self.ends, self.begin = tokenizer, list(ends), begin
        self.expression = regex.compile(expression)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(1, vocabulary) scores, -inf but for allowed tokens: the likeliest ones of them, at least one."""
        written = [int(token) for token in input_ids[0, self.begin :]]
        text = self._text(written)
        kept: list[int] = []
        if self.expression.fullmatch(text):
            kept += self.ends
        order = torch.argsort(scores[0], descending=True).tolist()
        likely = (token for token in order[:NEARBY] if self._may_follow(written, text, token))
        kept += islice(likely, KEPT)
        if not kept:
            rest = (token for token in order[NEARBY:] if self._may_follow(written, text, token))
            kept += islice(rest, 1)
        if not kept:
            raise ReaderError("The model has no token with which its JSON could go on. Use the sentences instead.")
        only = torch.full_like(scores, -torch.inf)
        only[:, kept] = scores[:, kept]
        return only

    def _may_follow(self, written: list[int], before: str, token: int) -> bool:
        """Whether a token adds to what is written, `before`, and a match can still come of it."""
        if token in self.ends:
            return False
        text = self._text([*written, token])
        if text == before or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return False
        return self.expression.fullmatch(text, partial=True) is not None

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def listed_by(
    reader: Reader, seen: Seen, reading: Reading, *, longest: int = 1024, stopped: Callable[[], bool] = never
) -> tuple[StructuredFinding, ...]:
    """The findings of a report as its model lists them; its sentences without fields where it does not come to an end.

    Every sentence is one of the report's, and no field is kept that its sentence does not bear out.
    """
    sentences = [reading.text[slice(*span)] for span in reading.sentences]
    if not sentences:
        return ()
    ends = sorted({reader.model.tokenizer.eos_token_id, *getattr(reader.model, "ends", ())})
    only = OnlyMatching(reader.model.tokenizer, pattern_of(sentences), ends)
    history = [Message("user", reading.question), Message("assistant", reading.text)]
    options = Options(longest=longest, heatmaps=False)
    try:
        last = _last(
            reader.ask(seen, REQUEST + reading.text, history=history, options=options, stopped=stopped, constrain=only)
        )
        return from_json(last.text, sentences) if last.complete else as_sentences(sentences)
    except ReaderError:  # too long for its context, or no JSON: what it wrote as words still stands
        return as_sentences(sentences)


def _last(parts: Iterator[str | Reading]) -> Reading:
    *_, last = parts
    if isinstance(last, str):
        raise RuntimeError("The reader ended without a reading.")
    return last
