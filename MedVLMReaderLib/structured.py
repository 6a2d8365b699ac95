"""Structured findings: what a report says, sentence by sentence, as fields that its own words bear out.

The fields and their meaning are published as a JSON schema, Resources/findings.schema.json. A field that the sentence
does not bear out is left empty: nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.resources import resource

SCHEMA = "findings.schema.json"
Laterality = Literal["right", "left", "both"]
_NUMBERS = re.compile(r"(\d+(?:[.,]\d+)?)(?=(?:\s*[x×]\s*\d+(?:[.,]\d+)?)*\s*(mm|cm|millimet|centimet))", re.IGNORECASE)
_SIDES: dict[str, str] = {"right": r"\bright\b", "left": r"\bleft\b", "both": r"\b(both|bilateral(ly)?)\b"}


@dataclass(frozen=True)
class StructuredFinding:
    """One finding of a report; None stands for what the sentence does not say."""

    sentence: str
    """As it stands in the report."""
    finding: str | None = None
    organ: str | None = None
    side: Laterality | None = None
    size_mm: float | None = None
    """The largest number of the sentence that is meant."""
    place: str | None = None
    """The sentence's words for where it lies within the organ."""
    supported: bool | None = None
    """What verification says of the sentence; None where it was not asked or did not decide."""

    def plain(self) -> dict[str, Any]:
        """JSON-ready, as the schema has it; `from_plain` reads it back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> StructuredFinding:
        """What `plain` wrote. Raises KeyError or TypeError where it is damaged."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    @property
    def empty(self) -> bool:
        """Whether nothing but the sentence is known."""
        return (self.finding, self.organ, self.side, self.size_mm, self.place) == (None,) * 5


@cache
def schema() -> dict[str, Any]:
    """The published JSON schema of a list of findings."""
    content: dict[str, Any] = json.loads(resource(SCHEMA).read_bytes())
    return content


def as_sentences(sentences: Iterable[str]) -> tuple[StructuredFinding, ...]:
    """The list of a model that cannot say more: each sentence, and no field."""
    return tuple(StructuredFinding(sentence) for sentence in sentences)


def from_json(text: str, sentences: Sequence[str]) -> tuple[StructuredFinding, ...]:
    """The findings that a model has written as JSON about `sentences` of its report.

    Raises ReaderError where it is no list of the schema. A finding of a sentence that is not in the report is left
    out, and so is every field that its sentence does not bear out.
    """
    import jsonschema

    try:
        rows = json.loads(text)
        jsonschema.validate(rows, schema())
    except ValueError as error:
        raise ReaderError("The model's list of findings is not JSON. Use the sentences instead.") from error
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the list itself"
        raise ReaderError(f"The model's list of findings does not keep to its schema, at {where}.") from error
    stated = (StructuredFinding.from_plain({**row, "supported": None}) for row in rows["findings"])
    return tuple(borne_out(one) for one in stated if one.sentence in sentences)


def borne_out(stated: StructuredFinding) -> StructuredFinding:
    """The same with only the fields that the sentence bears out."""
    text = stated.sentence

    def word(value: str | None) -> str | None:
        return value if value and re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) else None

    side = stated.side if stated.side and re.search(_SIDES[stated.side], text, re.IGNORECASE) else None
    size = stated.size_mm if stated.size_mm in sizes_mm(text) else None
    return replace(
        stated, finding=word(stated.finding), organ=word(stated.organ), side=side, size_mm=size,
        place=word(stated.place),
    )  # fmt: skip


def sizes_mm(text: str) -> tuple[float, ...]:
    """Every length that a sentence states, in mm."""
    return tuple(
        round(float(number.replace(",", ".")) * (10 if unit.lower().startswith("c") else 1), 6)
        for number, unit in _NUMBERS.findall(text)
    )


def standing(stated: Iterable[StructuredFinding], text: str) -> tuple[StructuredFinding, ...]:
    """Those whose sentences still stand in a text that may have been edited."""
    return tuple(one for one in stated if one.sentence in text)


def with_verdicts(stated: Iterable[StructuredFinding], verdicts: Mapping[str, str]) -> tuple[StructuredFinding, ...]:
    """With what verification said (`Verdict.said`) of each sentence."""
    known = {"supported": True, "not supported": False}
    return tuple(replace(one, supported=known.get(verdicts.get(one.sentence, ""))) for one in stated)
