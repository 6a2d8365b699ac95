"""Whether verification tells true sentences from the same with the side or the organ exchanged, on made studies."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation.calibration import Case, cases
from MedVLMReaderLib.evaluation.findings import interval
from MedVLMReaderLib.evaluation.phantom import check_seeds
from MedVLMReaderLib.truth import other_side

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

ORGANS = {"liver": "spleen", "spleen": "liver", "spine": "liver"}
"""Where no side can be exchanged, the organ that takes the place of another."""


@dataclass(frozen=True)
class Judged:
    """A sentence, true or with something exchanged."""

    true: bool
    margin: float
    likelihood: float
    """A token, so that the length of a sentence does not count."""
    said: str


def evaluate(
    reader: Reader, seeds: Sequence[int], *, regions: int = 16, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Area under the ROC curve of the margin, and of the likelihood alone, with 95 % intervals over studies.

    Every true sentence of a finding, and the same with the side or the organ exchanged, in its place in the true
    report; its own heatmap says what is painted over. Raises ReaderError where no study has a finding.
    """
    check_seeds(seeds)
    rows = [judged(reader, case, regions) for case in cases(reader, seeds, progress)]
    if not any(rows):
        raise ReaderError("None of these studies has a finding whose side or organ can be exchanged. Take more seeds.")
    said = {
        name: {verdict: sum(one.said == verdict for row in rows for one in row if one.true == true)
               for verdict in ("supported", "undecided", "not supported")}
        for name, true in (("true_sentences", True), ("exchanged_sentences", False))
    }  # fmt: skip
    return {
        "model": reader.model.name, "revision": reader.model.revision, "seeds": [int(seeds[0]), int(seeds[-1])],
        "regions": regions, "verification_auc": _area(rows, lambda one: one.margin),
        "likelihood_auc": _area(rows, lambda one: one.likelihood), **said,
    }  # fmt: skip


def judged(reader: Reader, case: Case, regions: int) -> list[Judged]:
    """Every sentence and its counterpart; those without one are left out."""
    found = []
    for start, stop in case.spans:
        sentence = case.reading.text[start:stop]
        other = exchanged(sentence)
        if other is None:
            continue
        for words in (sentence, other):
            text = case.reading.text[:start] + words + case.reading.text[stop:]
            reading, span = reader.look(case.seen, case.reading, text=text), (start, start + len(words))
            try:
                verdict = reader.verify(case.study.volume, case.seen, reading, span, regions=regions)
            except ReaderError:  # nothing to paint over: the image has no part in these words
                found.append(Judged(words == sentence, 0.0, float("nan"), "undecided"))
                continue
            each = verdict.likelihood / max(1, len(reader.model.tokenizer.encode(words, add_special_tokens=False)))
            found.append(Judged(words == sentence, float(np.nan_to_num(verdict.margin)), each, verdict.said))
    return found


def exchanged(sentence: str) -> str | None:
    """The sentence with right for left, or else with another organ; None where it has neither."""
    if (other := other_side(sentence)) != sentence:
        return other
    other = re.sub(r"\b(?:" + "|".join(ORGANS) + r")\b", lambda found: ORGANS[found[0]], sentence)
    return other if other != sentence else None


def _area(rows: Sequence[Sequence[Judged]], score: Callable[[Judged], float]) -> dict[str, Any]:
    def area(drawn: Sequence[Sequence[Judged]]) -> float:
        known = [one for row in drawn for one in row if np.isfinite(score(one))]
        return area_under([score(one) for one in known], [one.true for one in known])

    value, (low, high) = area(rows), interval(rows, area)
    n = sum(len(row) for row in rows)
    shown = (None if np.isnan(x) else round(float(x), 4) for x in (value, low, high))
    return {**dict(zip(("value", "low", "high"), shown, strict=True)), "n": n}


def area_under(scores: Sequence[float], true: Sequence[bool]) -> float:
    """Share of the pairs of a true and a false one in which the true one scores higher; equal ones count half."""
    s, t = np.asarray(scores, np.float64), np.asarray(true, bool)
    if not t.any() or t.all():
        return float("nan")
    above = s[t][:, None] - s[~t][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))
