"""Figures of a reader on made studies: what it says, where it points, how steady it is. Each with a 95 % interval."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy.spatial import cKDTree

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation.baseline import thresholded
from MedVLMReaderLib.evaluation.findings import Said, Tally
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.phantom import Study, made_study
from MedVLMReaderLib.phantom_report import Exchange, QuestionType, questions
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.study import OUT_OF_DOMAIN, Seen
from MedVLMReaderLib.truth import Finding, Kind, Truth
from MedVLMReaderLib.volume import Volume

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

CLOSED_TYPES: tuple[QuestionType, ...] = ("plane", "phase", "organ", "abnormality", "location")
TURNED = 50
"""So many studies, the first ones, are read a second time from another storage order."""

Share = tuple[float, float]
"""What one study adds to a figure: (part, whole). The figure is the sum of parts over the sum of wholes."""


@dataclass(frozen=True)
class Asked:
    """A closed question, answered."""

    type: QuestionType
    right: bool
    agrees: bool | None
    """With the report, on whether a structure has a finding; None where something else was asked."""


@dataclass(frozen=True)
class Pointed:
    """Where the reader pointed for one true finding."""

    finding: Finding
    said: bool
    """Rightly, in the report."""
    hit: bool
    """The peak for its sentence lies in its mask grown by a cell; False where it was not said."""
    chance: float
    """Share of the body in the grown mask."""


@dataclass(frozen=True)
class Row:
    """What one study showed."""

    model: str
    revision: str
    found: dict[str, Tally]
    """By kind."""
    baseline: Tally
    sides: tuple[int, int]
    size_errors: tuple[float, ...]
    pointed: tuple[Pointed, ...]
    asked: tuple[Asked, ...]
    cell_mm: tuple[float, float]
    """Of the heatmaps' first grid: the wider side of a cell in its slice, and the slice."""
    flagged: bool
    same_turned: bool | None
    """The report from another storage order is the same, letter by letter; None where it was not asked for."""
    mirrored: tuple[bool, ...] | None
    """For each finding said and hit: whether it is in the mirrored study too; None where that was not read."""


def evaluate(
    reader: Reader,
    seeds: Sequence[int],
    *,
    questions_each: int | None = None,
    mirrored: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The figures of `figures`, after reading the studies of `seeds`, as plain data for json.dumps.

    `questions_each`: at most so many closed questions of each type a study; None: all. `mirrored`: read the mirror
    images too. `progress` is told (studies done, all of them). Raises ReaderError where the seeds cannot be used.
    """
    check_seeds(seeds)
    rows = []
    for n, seed in enumerate(seeds):
        rows.append(_read(reader, int(seed), questions_each, n < TURNED, mirrored))
        if progress:
            progress(n + 1, len(seeds))
    return {"studies": len(rows), "seeds": [int(seed) for seed in seeds], **figures(rows)}


def check_seeds(seeds: Sequence[int]) -> None:
    from MedVLMReaderLib.training.made_data import FIRST_TRAINING_SEED

    if not len(seeds):
        raise ReaderError("No seeds were given. Name at least one, for example 0-299.")
    if min(seeds) < 0:
        raise ReaderError(f"The seed {min(seeds)} is negative. Take seeds from 0 to {FIRST_TRAINING_SEED - 1}.")
    if trained := sorted(seed for seed in seeds if seed >= FIRST_TRAINING_SEED):
        which = f"{trained[0]} to {trained[-1]}" if len(trained) > 1 else f"{trained[0]}"
        raise ReaderError(f"The seeds {which} were used for training. Take seeds below {FIRST_TRAINING_SEED}.")


# --- one study --------------------------------------------------------------------------------------------------------


def _read(reader: Reader, seed: int, questions_each: int | None, turn: bool, mirrored: bool) -> Row:
    study = made_study(seed)
    seen = reader.see(study.volume)
    reading = reader.report(seen)
    said, findings = scoring.parsed(reading.text), study.truth.findings
    matching, pointed = scoring.matched(said, findings), _pointed(study, reading)
    cell = reading.grids[0].spacing
    return Row(
        model=reading.model,
        revision=reading.revision,
        found=scoring.tallies(matching),
        baseline=scoring.micro(scoring.tallies(scoring.matched(thresholded(study.volume), findings))),
        sides=scoring.sides(said, findings),
        size_errors=tuple(scoring.size_errors(matching)),
        pointed=pointed,
        asked=tuple(_asked(reader, seen, study.truth, said, questions_each)),
        cell_mm=(float(max(cell[1:])), float(cell[0])),
        flagged=any(note.startswith(OUT_OF_DOMAIN) for note in seen.notes),
        same_turned=_text(reader, turned(study.volume, seed)) == reading.text if turn else None,
        mirrored=_mirrored(reader, seed, [p.finding for p in pointed if p.hit]) if mirrored else None,
    )


def _pointed(study: Study, reading: Reading) -> tuple[Pointed, ...]:
    """One for each true finding, in their order."""
    matching = scoring.matched(scoring.parsed(reading.text), study.truth.findings)
    spans = {finding: said.span for said, finding in matching.pairs}
    body = study.volume.grid.to_world(np.argwhere(study.labels[:, ::3, ::3]) * (1, 3, 3))
    found = []
    for finding, mask in zip(study.truth.findings, study.masks, strict=True):
        peak = _peak(reading, spans[finding]) if finding in spans else None
        places = body if peak is None else np.vstack([body, peak])
        near = within_a_cell(places, mask, study.volume.grid, reading.grids[0])
        chance = float(near[: len(body)].mean())
        found.append(Pointed(finding, finding in spans, peak is not None and bool(near[-1]), chance))
    return tuple(found)


def _peak(reading: Reading, span: Span) -> Array | None:
    """(r, a, s); None where nothing was recorded for the span, or zero everywhere."""
    try:
        return reading.heatmap(span).peak()
    except ReaderError:
        return None


def within_a_cell(places: Array, mask: Array, grid: Grid, cell: Grid) -> Array:
    """(n,) whether each of the places (n, 3) in RAS mm lies in a mask on `grid`, grown by one cell of `cell` all round.

    Along each axis of the cells on its own, so that the mask grows by a box; its voxels count with their full width.
    """
    voxel = np.linalg.solve(cell.affine, grid.affine)[:3, :3]
    reach = 1 + np.abs(voxel).sum(1) / 2 + 1e-6
    filled = cell.to_index(grid.to_world(np.argwhere(mask))) / reach
    distance, _ = cKDTree(filled).query(cell.to_index(places) / reach, p=np.inf, distance_upper_bound=1.0)
    return np.isfinite(distance)


def _asked(
    reader: Reader, seen: Seen, truth: Truth, said: Sequence[Said], questions_each: int | None
) -> Iterable[Asked]:
    from MedVLMReaderLib.reader import Options

    abnormal = {(one.organ, one.side) for one in said}
    for exchange in closed_questions(truth, questions_each):
        *_, reading = reader.ask(seen, exchange.question, options=Options(heatmaps=False))
        assert isinstance(reading, Reading)
        letter, agrees = scoring.chosen(reading.text, exchange.question), None
        right = letter == exchange.answer[0]
        if exchange.type == "abnormality" and exchange.structure:  # yes or no
            yes = exchange.answer.endswith("yes") == right
            agrees = bool(letter) and yes == (exchange.structure in abnormal)
        yield Asked(exchange.type, right, agrees)


def closed_questions(truth: Truth, questions_each: int | None = None) -> list[Exchange]:
    """The closed questions that a study's seed draws, at most `questions_each` of each type."""
    drawn = [exchange for exchange in questions(truth, random.Random(truth.seed)) if exchange.closed]
    return [one for name in CLOSED_TYPES for one in [e for e in drawn if e.type == name][:questions_each]]


def turned(volume: Volume, seed: int) -> Volume:
    """The same voxels in the same places, stored with axes in another order or counted from the other end.

    `seed` picks one of the 47 ways.
    """
    orders = [(order, ends) for order in permutations(range(3)) for n in range(4) for ends in combinations(range(3), n)]
    order, ends = orders[1 + seed % (len(orders) - 1)]
    stored = volume.transpose(order).flip(*ends)
    return replace(stored, values=np.ascontiguousarray(stored.values))


def _text(reader: Reader, volume: Volume) -> str:
    from MedVLMReaderLib.reader import Options

    return reader.report(reader.see(volume), Options(heatmaps=False)).text


def _mirrored(reader: Reader, seed: int, findings: Sequence[Finding]) -> tuple[bool, ...]:
    """For each of the findings, whether its mirror image is said and hit."""
    if not findings:
        return ()
    study = made_study(seed, mirrored=True)
    hits = {_unsided(p.finding): p.hit for p in _pointed(study, reader.report(reader.see(study.volume)))}
    return tuple(hits[_unsided(finding)] for finding in findings)


def _unsided(finding: Finding) -> tuple[str, float, float, float]:
    """What a finding and its mirror image share."""
    return finding.kind, finding.size_mm, finding.ras[1], finding.ras[2]


# --- all of them ------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Each figure as {"value", "low", "high", "n"}: n findings, questions or studies; null where n is 0."""
    model, revision = rows[0].model, rows[0].revision
    said = [[p for p in row.pointed if p.said] for row in rows]
    total = [scoring.micro(row.found) for row in rows]
    shown: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "findings_f1": _f1(total),
        "findings_precision": figure([(t.true_positives, t.true_positives + t.false_positives) for t in total]),
        "findings_recall": figure([(t.true_positives, t.true_positives + t.false_negatives) for t in total]),
        "findings_f1_by_kind": {kind: _f1([row.found.get(kind, Tally()) for row in rows]) for kind in get_args(Kind)},
        "baseline_f1": _f1([row.baseline for row in rows]),
        "side_accuracy": figure([row.sides for row in rows]),
        "size_mae_mm": _mean([row.size_errors for row in rows]),
        "closed_accuracy": {
            name: _mean([[a.right for a in row.asked if a.type == name] for row in rows]) for name in CLOSED_TYPES
        },
        "pointing": _mean([[p.hit for p in ours] for ours in said]),
        "pointing_chance": _mean([[p.chance for p in ours] for ours in said]),
        "pointing_all": _mean([[p.hit for p in row.pointed] for row in rows]),
        "pointing_all_chance": _mean([[p.chance for p in row.pointed] for row in rows]),
        "cell_mm": _mean([[row.cell_mm[0]] for row in rows]),
        "cell_slice_mm": _mean([[row.cell_mm[1]] for row in rows]),
        "orientation_agreement": _mean([_known([row.same_turned]) for row in rows]),
        "report_answer_agreement": _mean([_known([a.agrees for a in row.asked]) for row in rows]),
        "flagged_out_of_domain": _mean([[row.flagged] for row in rows]),
    }
    if any(row.mirrored is not None for row in rows):
        shown["mirrored_agreement"] = _mean([row.mirrored or () for row in rows])
    return shown


def _known(values: Iterable[bool | None]) -> list[bool]:
    return [value for value in values if value is not None]


def _f1(counted: Sequence[Tally]) -> dict[str, Any]:
    """Of tallies, one a study; n: findings said or there."""
    wrong = [tally.false_positives + tally.false_negatives for tally in counted]
    shares = [(t.true_positives, t.true_positives + w / 2) for t, w in zip(counted, wrong, strict=True)]
    return figure(shares, sum(t.true_positives for t in counted) + sum(wrong))


def _mean(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of values, any number a study."""
    return figure([(sum(ours), len(ours)) for ours in values])


def figure(shares: Sequence[Share], n: int | None = None) -> dict[str, Any]:
    """A ratio of sums with its interval; n is the sum of the wholes where it is not given."""
    three = (_ratio(shares), *scoring.interval(shares, _ratio))
    value, low, high = (None if np.isnan(x) else round(float(x), 4) for x in three)
    return {"value": value, "low": low, "high": high, "n": round(sum(w for _, w in shares)) if n is None else n}


def _ratio(shares: Sequence[Share]) -> float:
    whole = sum(w for _, w in shares)
    return sum(p for p, _ in shares) / whole if whole else float("nan")
