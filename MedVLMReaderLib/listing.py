"""The structured findings of a reading, as far as its model can say them: of the built-in model's fixed sentences."""

from __future__ import annotations

from MedVLMReaderLib.phantom_report import NOUN
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.structured import StructuredFinding, as_sentences

FIXED = ("built-in",)
"""Models that write the sentences of `phantom_report` alone."""


def listed(reading: Reading) -> tuple[StructuredFinding, ...]:
    """The findings of a reading; of a model whose wording is not known, its sentences without any field.

    A model that can be made to write JSON says more: see `constrained`.
    """
    if reading.model not in FIXED:
        return as_sentences(reading.text[slice(*span)] for span in reading.sentences)
    from MedVLMReaderLib.evaluation.findings import parsed

    return tuple(
        StructuredFinding(
            said.sentence,
            NOUN.get(said.kind, said.kind),  # type: ignore[call-overload]
            said.organ or None,
            said.side or None,
            said.size_mm,
        )
        for said in parsed(reading.text)
    )
