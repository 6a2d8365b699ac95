"""Whether verification tells true sentences from the same with the side or the organ exchanged, on made studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation.findings import interval
from MedVLMReaderLib.evaluation.forced import Case, Progress, case_of, measured_with
from MedVLMReaderLib.evaluation.phantom import check_seeds
from MedVLMReaderLib.evaluation.rows import Rows
from MedVLMReaderLib.phantom_report import report, sentence
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.truth import Finding, Truth
from MedVLMReaderLib.verdict import REGIONS

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

ORGANS = {"liver": "spleen", "spleen": "liver", "spine": "liver"}
"""Where no side can be exchanged, the organ that takes the place of another."""


NONE = "undecided"


@dataclass(frozen=True)
class Judged:
    """A sentence, true or with something exchanged."""

    true: bool
    margin: float
    likelihood: float
    """A token, so that the length of a sentence does not count."""
    said: str
    """The verdict."""


def evaluate(
    reader: Reader, seeds: Sequence[int], *, regions: int = REGIONS, kept: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Area under the ROC curve of the margin, and of the likelihood alone, with 95 % intervals over studies.

    Every true sentence of a finding in the true report, and the same with the side or the organ exchanged in the report
    that would say so; its own heatmap says what is painted over. `kept`: a file to which the rows of each study are
    added, and from which it goes on. Raises ReaderError where no study has a finding.
    """
    check_seeds(seeds)
    rows, found = Rows(kept, measured_with(reader, "verification", regions=regions)), []
    for n, seed in enumerate(seeds):
        row = rows.of(int(seed), lambda seed=int(seed): _row(reader, seed, regions))  # type: ignore[misc]
        found.append([Judged(**one) for one in row])
        if progress:
            progress(n + 1, len(seeds))
    if not any(found):
        raise ReaderError("None of these studies has a finding whose side or organ can be exchanged. Take more seeds.")
    return {
        "model": reader.model.name, "revision": reader.model.revision, "seeds": [int(seeds[0]), int(seeds[-1])],
        "studies": len(seeds), "regions": regions, **figures(found),
    }  # fmt: skip


def figures(rows: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """The areas, and how many true and exchanged sentences got which verdict."""
    counts = {
        name: {verdict: sum(one.said == verdict for row in rows for one in row if one.true == true)
               for verdict in ("supported", "undecided", "not supported")}
        for name, true in (("true_sentences", True), ("exchanged_sentences", False))
    }  # fmt: skip
    return {
        "verification_auc": _area(rows, lambda one: one.margin),
        "likelihood_auc": _area(rows, lambda one: one.likelihood), **counts,
    }  # fmt: skip


def _row(reader: Reader, seed: int, regions: int) -> list[dict[str, Any]]:
    case = case_of(reader, seed)
    return [asdict(one) for one in judged(reader, case, regions)] if case else []


def judged(reader: Reader, case: Case, regions: int) -> list[Judged]:
    """Every sentence and its counterpart; those without one are left out."""
    found = []
    for span, finding in zip(case.spans, case.findings, strict=True):
        other = exchanged(finding, case.study.truth)
        if other is None:
            continue
        found.append(_judged(reader, case, case.reading.text, span, regions, true=True))
        text, span = told_instead(case.study.truth, finding, other)
        found.append(_judged(reader, case, text, span, regions, true=False))
    return found


def _judged(reader: Reader, case: Case, text: str, span: Span, regions: int, *, true: bool) -> Judged:
    reading = reader.look(case.seen, case.reading, text=text)
    tokens = len(reader.model.tokenizer.encode(text[slice(*span)], add_special_tokens=False))
    try:
        verdict = reader.verify(case.study.volume, case.seen, reading, span, regions=regions)
    except ReaderError:  # nothing to paint over: the image has no part in these words
        return Judged(true, 0.0, _likelihood(reader, case, reading, span) / tokens, NONE)
    return Judged(true, float(np.nan_to_num(verdict.margin)), verdict.likelihood / tokens, verdict.said)


def _likelihood(reader: Reader, case: Case, reading: Reading, span: Span) -> float:
    import torch

    from MedVLMReaderLib.relevance import log_likelihood

    messages = [Message("user", reading.question)]
    answer = reader.forced(case.seen, messages, reading.text)
    start, stop = answer.rows_of([span], reading.text)[0]
    with torch.no_grad():
        return float(log_likelihood(reader.model, case.seen, messages, answer.ids)[start:stop].sum())


def exchanged(finding: Finding, truth: Truth) -> Finding | None:
    """The finding on the other side, or else in another organ; None where such a one is there as well."""
    if finding.side:
        other = replace(finding, side="left" if finding.side == "right" else "right")
    else:
        other = replace(finding, organ=ORGANS[finding.organ])
    there = {(one.kind, one.organ, one.side) for one in truth.findings}
    return None if (other.kind, other.organ, other.side) in there else other


def told_instead(truth: Truth, finding: Finding, other: Finding) -> tuple[str, Span]:
    """The report with one finding in the place of another, and where it says so."""
    findings = tuple(other if one == finding else one for one in truth.findings)
    text, said = report(replace(truth, findings=findings)), sentence(other)
    start = text.index(said)
    return text, (start, start + len(said))


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
