"""What a report says, held against what is known: findings read from text, matched with the truth, scored.

The reading is by regular expressions made for the wording of `phantom_report`, with some tolerance: what they do not
know they pass over. The scoring knows nothing of wording.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from MedVLMReaderLib.planting import sided
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Finding, Side

Span = tuple[int, int]
Row = TypeVar("Row")

SIDED = frozenset(organ for organ, side in STRUCTURES if side)
"""Organs that there are two of."""

_HEADING = re.compile(r"\b(findings|impression|conclusion)[ \t]*:", re.IGNORECASE)
_SENTENCE = re.compile(r"\S(?:[^.!?\n]|\.(?=\d))*(?<=\S)[.!?]*")  # a point inside a number ends nothing
_CLAUSE = re.compile(r";|\bbut\b|\bhowever\b|\balthough\b", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:no|not|without|absent|never|neither|nor|negative for|free of)\b"
    r"(?!.*(?:,|\band\b)\s+(?:an?|there (?:is|are))\b)",  # "no effusion and a nodule" affirms the nodule
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(r"\s+(?:is|are|was|were)\s+(?:not|absent)\b", re.IGNORECASE)
_NOUN = re.compile(
    r"\b(?P<nodule>nodules?)\b|(?<!pericardial )\b(?P<effusion>effusions?)\b|\b(?P<stone>stones?|calcul(?:us|i))\b"
    r"|\b(?<!rib )(?P<fracture>fractures?)\b|\b(?P<lesion>lesions?)\b",
    re.IGNORECASE,
)
_ORGAN = re.compile(
    r"\b(?:(?P<lung>lungs?|pulmonary)|(?P<pleura>pleura|pleural)|(?P<heart>heart|cardiac)|(?P<liver>liver|hepatic)"
    r"|(?P<spleen>spleen|splenic)|(?P<kidney>kidneys?|renal)|(?P<spine>spine|spinal|vertebrae?|vertebral))\b",
    re.IGNORECASE,
)
_SIDE = re.compile(r"\b(?:(?P<right>right)|(?P<left>left)|(?P<both>both|bilateral(?:ly)?))\b", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:\s*[x\u00d7]\s*\d+(?:\.\d+)?)*)\s*(mm|cm|millimet|centimet)", re.IGNORECASE)
_DARK = re.compile(r"\b(dark|hypodense|hypointense|hypoattenuating|low[- ]density)\b", re.IGNORECASE)
_BRIGHT = re.compile(r"\b(bright|hyperdense|hyperintense|hyperattenuating|high[- ]density)\b", re.IGNORECASE)
_CUT = re.compile(r",|\band\b", re.IGNORECASE)
_CHOICE = re.compile(r"\b([A-E])\.\s*(.+?)(?=\s+[A-E]\.\s|\s*$)", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """One finding as a report says it."""

    kind: str
    """One of truth.Kind where it could be told; else the bare noun, which matches nothing."""
    organ: str
    side: Side
    """"" where none is said, and of organs that there is one of."""
    size_mm: float | None = None
    sentence: str = ""
    span: Span = (0, 0)
    """Of the sentence, in characters of the report."""


@dataclass(frozen=True)
class Matching:
    """What was said, paired with what is there."""

    pairs: tuple[tuple[Said, Finding], ...]
    extra: tuple[Said, ...]
    """Said, but not there."""
    missed: tuple[Finding, ...]
    """There, but not said."""


@dataclass(frozen=True)
class Tally:
    """Counts of findings said rightly, said wrongly and not said; they add up over kinds and studies."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def precision(self) -> float:
        """Share of what was said that is there; NaN where nothing was said."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of what is there that was said; NaN where nothing is there."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; NaN where nothing was said and nothing is there."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def sentences(text: str) -> list[Span]:
    """(start, end) of each sentence of `text`, headings such as "Findings:" left out."""
    blanked = _HEADING.sub(lambda heading: "\n" * len(heading.group()), text)
    return [match.span() for match in _SENTENCE.finditer(blanked)]


def parsed(report: str) -> list[Said]:
    """The findings that the Findings part of a report affirms, in its order. All of a text without headings is read."""
    start, end = _findings_part(report)
    return [said for a, b in sentences(report) if start <= a < end for said in _said(report[a:b], (a, b))]


def _findings_part(report: str) -> Span:
    headings = [(match.group(1).lower(), match.start(), match.end()) for match in _HEADING.finditer(report)]
    start = next((after for word, _, after in headings if word == "findings"), 0)
    return start, next((before for word, before, _ in headings if word != "findings" and before >= start), len(report))


def _said(sentence: str, span: Span) -> Iterable[Said]:
    for clause in _CLAUSE.split(sentence):
        for noun, part in _parts(clause):
            if not _DENIED.search(clause[: noun.start()]) and not _DENIED_AFTER.match(clause, noun.end()):
                yield from _claims(noun, part, clause, sentence, span)


def _parts(clause: str) -> Iterable[tuple[re.Match[str], str]]:
    """Each noun of a clause with the words that belong to it: cut at the last comma or "and" before the next noun."""
    nouns = list(_NOUN.finditer(clause))
    starts = [0]
    for before, noun in pairwise(nouns):
        cuts = [cut.end() for cut in _CUT.finditer(clause, before.end(), noun.start())]
        starts.append(cuts[-1] if cuts else noun.start())
    for noun, start, end in zip(nouns, starts, [*starts[1:], len(clause)], strict=False):
        yield noun, clause[start:end]


def _claims(noun: re.Match[str], part: str, clause: str, sentence: str, span: Span) -> Iterable[Said]:
    """One for each side and each size said."""
    word = str(noun.lastgroup)
    organ = _organ(word, part) or _organ(word, clause) or ORGAN_OF.get(word, "")  # type: ignore[call-overload]
    sides = (_sides(part) or _sides(clause) or [""]) if organ in SIDED else [""]
    plural = noun.group().lower().endswith(("s", "i")) and noun.group().lower() != "calculus"
    sizes: list[float | None] = [_size_mm(*found) for found in _SIZE.findall(part)] or [None]
    for side in sides:
        for size in sizes if plural else sizes[:1]:
            yield Said(_kind(word, organ, part), organ, side, size, sentence, span)  # type: ignore[arg-type]


def _organ(word: str, text: str) -> str:
    organs = [str(match.lastgroup) for match in _ORGAN.finditer(text)]
    if word == "effusion" and "lung" in organs:  # an effusion said of a lung lies around it
        return "pleura"
    return organs[0] if organs else ""


def _sides(text: str) -> list[str]:
    found = {match.lastgroup for match in _SIDE.finditer(text)}
    return [side for side in ("right", "left") if side in found or "both" in found]


def _size_mm(numbers: str, unit: str) -> float:
    largest = max(float(number) for number in re.findall(r"\d+(?:\.\d+)?", numbers))
    return largest * (10 if unit.lower().startswith("c") else 1)


def _kind(word: str, organ: str, text: str) -> str:
    if word != "lesion":
        return word
    if organ == "liver" and bool(_DARK.search(text)) != bool(_BRIGHT.search(text)):
        return "dark liver lesion" if _DARK.search(text) else "bright liver lesion"
    return "splenic lesion" if organ == "spleen" else "lesion"


def matched(said: Sequence[Said], findings: Sequence[Finding]) -> Matching:
    """One to one by kind, organ and side: a wrong count is an error. Among equals, the nearest sizes together."""
    return _matched(said, findings, lambda f: (f.kind, f.organ, f.side))


def _matched(said: Sequence[Said], findings: Sequence[Finding], key: Callable[[Said | Finding], Hashable]) -> Matching:
    claimed, there = _grouped(said, key), _grouped(findings, key)
    pairs: list[tuple[Said, Finding]] = []
    extra: list[Said] = []
    missed = [finding for group in there if group not in claimed for finding in there[group]]
    for group, ours in claimed.items():
        theirs = there[group]
        rows, columns = _nearest(ours, theirs)
        pairs += [(ours[row], theirs[column]) for row, column in zip(rows, columns, strict=True)]
        extra += [one for row, one in enumerate(ours) if row not in rows]
        missed += [finding for column, finding in enumerate(theirs) if column not in columns]
    return Matching(tuple(pairs), tuple(extra), tuple(missed))


def _grouped(items: Sequence[Row], key: Callable[[Row], Hashable]) -> defaultdict[Hashable, list[Row]]:
    groups: defaultdict[Hashable, list[Row]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _nearest(said: list[Said], findings: list[Finding]) -> tuple[list[int], list[int]]:
    """Indices of pairs with the least total difference of sizes; of equal totals, the one with more right sides."""
    if not findings:
        return [], []
    rows, columns = linear_sum_assignment([[_difference(one, finding) for finding in findings] for one in said])
    return rows.tolist(), columns.tolist()


def _difference(said: Said, finding: Finding) -> float:
    size = 1e3 if said.size_mm is None else min(abs(said.size_mm - finding.size_mm), 1e3)
    return size + 1e-3 * (said.side != finding.side)


def tallies(matching: Matching) -> dict[str, Tally]:
    """A tally for each kind said or there, of one study; sum over studies with `summed`, over kinds with `micro`."""
    counted: defaultdict[str, Tally] = defaultdict(Tally)
    for _, finding in matching.pairs:
        counted[finding.kind] += Tally(true_positives=1)
    for said in matching.extra:
        counted[said.kind] += Tally(false_positives=1)
    for finding in matching.missed:
        counted[finding.kind] += Tally(false_negatives=1)
    return dict(counted)


def summed(studies: Iterable[dict[str, Tally]]) -> dict[str, Tally]:
    """The tallies of several studies, kind by kind."""
    total: defaultdict[str, Tally] = defaultdict(Tally)
    for study in studies:
        for kind, tally in study.items():
            total[kind] += tally
    return dict(total)


def micro(by_kind: dict[str, Tally]) -> Tally:
    """All kinds counted together."""
    return sum(by_kind.values(), Tally())


def size_errors(matching: Matching) -> list[float]:
    """|said size - true size| in mm of the pairs whose size was said."""
    return [abs(said.size_mm - finding.size_mm) for said, finding in matching.pairs if said.size_mm is not None]


def sides(said: Sequence[Said], findings: Sequence[Finding]) -> tuple[int, int]:
    """(on the right side, all) of the pairs by kind and organ alone, in organs that there are two of."""
    pairs = _matched(said, findings, lambda f: (f.kind, f.organ)).pairs
    right = [one.side == finding.side for one, finding in pairs if finding.organ in SIDED]
    return sum(right), len(right)


def mirrored(said: Sequence[Said]) -> list[Said]:
    """The same with right and left exchanged, as of the mirrored study. Sentences stay as they were said."""
    return [replace(one, side=sided(one.side, True)) for one in said]


def same_findings(one: Sequence[Said | Finding], other: Sequence[Said | Finding]) -> bool:
    """Whether both hold the same kinds in the same organs on the same sides, counts included; sizes do not matter."""
    return Counter((f.kind, f.organ, f.side) for f in one) == Counter((f.kind, f.organ, f.side) for f in other)


def chosen(answer: str, question: str) -> str:
    """The letter that an answer to a closed question chooses, by its letter or by the words of one choice; else ""."""
    choices = dict(_CHOICE.findall(question.rpartition("Choices:")[2]))
    lettered = re.match(r"\W*([A-E])(?:[.):]|\s*$)", answer)
    if lettered and lettered.group(1) in choices:
        return lettered.group(1)
    worded = [k for k, words in choices.items() if re.search(rf"\b{re.escape(words)}\b", answer, re.IGNORECASE)]
    return worded[0] if len(worded) == 1 else ""


def closed_right(output: str, expected_answer: str) -> bool:
    """The published rule of M3D and Med3DVLM: right where the letter with its point stands anywhere in the output.

    It lets an output pass that names every letter; `chosen` does not. Source: M3D Bench/eval/eval_vqa.py.
    """
    return f"{expected_answer[0]}." in output


def interval(
    values_per_study: Sequence[Row], statistic: Callable[[list[Row]], float], seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap over studies of a statistic of rows, one row a study. NaN where there are no rows.

    Draws for which the statistic is NaN are left out.
    """
    if not len(values_per_study):
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, len(values_per_study), (draws, len(values_per_study)))
    drawn = np.array([statistic([values_per_study[n] for n in pick]) for pick in picks], np.float64)
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn.size else (float("nan"), float("nan"))
    return float(low), float(high)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
