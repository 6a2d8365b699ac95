"""Which heads of a decoder localise, and how ways of looking compare: on made studies, whose masks are known.

The true report is what the model is made to say, so that models which write otherwise, or wrongly, can be measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.calibration import Calibration
from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation.phantom import check_seeds, figure, within_a_cell
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.phantom import Study, made_study
from MedVLMReaderLib.phantom_report import REPORT_REQUEST, report
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.volume import Volume

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

COUNTS = 1, 2, 3, 5, 8, 12
"""So many of the best heads are tried together."""
LAST, LATER, ENTROPY, KNOWN, RELATIVE, RELEVANCE = (
    "last layer", "later half", "localisation heads", "calibrated heads", "relative to a generic prompt", "relevance",
)  # fmt: skip
"""The ways of looking that the table compares."""
Head = tuple[int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Case:
    """A study with a finding and the sentence of the true report that says it."""

    study: Study
    seen: Seen
    reading: Reading
    """The true report, as if the model had written it."""
    spans: tuple[Span, ...]
    masks: tuple[Array, ...]
    """Of what each span says, on the study's voxels."""


def cases(reader: Reader, seeds: Sequence[int], progress: Progress | None = None) -> Iterator[Case]:
    """One for each of the studies that have a finding."""
    for n, seed in enumerate(seeds):
        study = made_study(int(seed))
        if study.truth.findings:
            yield _case(reader, study)
        if progress:
            progress(n + 1, len(seeds))


def _case(reader: Reader, study: Study) -> Case:
    seen, text = reader.see(study.volume), report(study.truth)
    pairs = scoring.matched(scoring.parsed(text), study.truth.findings).pairs
    numbers = {finding: n for n, finding in enumerate(study.truth.findings)}
    reading = Reading(
        REPORT_REQUEST, text, True, (), seen.token_map.grids, reader.model.name, reader.model.revision,
        boxes=seen.boxes,
    )  # fmt: skip
    masks = tuple(study.masks[numbers[finding]] for _, finding in pairs)
    return Case(study, seen, reading, tuple(said.span for said, _ in pairs), masks)


# ---- Heads that localise --------------------------------------------------------------------------------------------


def calibrate(reader: Reader, seeds: Sequence[int], progress: Progress | None = None) -> Calibration:
    """The heads that point best together.

    Every head is scored on the first half of the studies; how many of the best, or all of the later half of the layers,
    point best together is found on the other half. Raises ReaderError where either half has no finding.
    """
    check_seeds(seeds)
    half = len(seeds) // 2
    scored: list[Array] = []
    hits: dict[str, list[float]] = {}
    for case in cases(reader, seeds[:half], _part(progress, 0, len(seeds))):
        maps = head_maps(reader, case)
        scored += [_scores(maps[:, :, n], case, n) for n in range(len(case.spans))]
    if not scored:
        raise ReaderError(f"The first {half} of these studies have no finding. Take more seeds.")
    total = np.sum(scored, axis=0)
    best: list[Head] = sorted(np.ndindex(total.shape), key=lambda head: -total[head])
    choices: dict[str, list[Head]] = {f"the {k} heads that localise best": best[:k] for k in COUNTS if k <= len(best)}
    choices[LATER] = [head for head in best if head[0] >= total.shape[0] // 2]
    for case in cases(reader, seeds[half:], _part(progress, half, len(seeds))):
        maps = head_maps(reader, case)
        for name, heads in choices.items():
            layers, numbers = zip(*heads, strict=True)
            together = maps[list(layers), list(numbers)].mean(0)
            hits.setdefault(name, []).extend(_score(together[n], case, n) for n in range(len(case.spans)))
    if not hits:
        raise ReaderError(f"The last {len(seeds) - half} of these studies have no finding. Take more seeds.")
    name = max(hits, key=lambda one: float(np.mean(hits[one])))
    pointing = float(np.mean([score >= 1 for score in hits[name]]))
    return Calibration(
        reader.model.name, reader.model.revision, tuple((int(a), int(b)) for a, b in choices[name]), name,
        (int(seeds[0]), int(seeds[-1])), len(hits[name]), round(pointing, 4),
    )  # fmt: skip


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    return (lambda done, _: progress(before + done, total)) if progress else None


def head_maps(reader: Reader, case: Case) -> Array:
    """(layers, heads, sentences, cells) attention of every head, sinks left out, at the cells inside the scan."""
    from MedVLMReaderLib.looking import on_cells

    found = _attended(reader, case).without_sinks()
    cells = on_cells(case.seen, found.flatten(0, 2))
    return cells.reshape(*found.shape[:3], -1)


def _attended(reader: Reader, case: Case) -> Any:
    from MedVLMReaderLib.attention import attended

    messages = [Message("user", case.reading.question)]
    answer = reader.forced(case.seen, messages, case.reading.text)
    rows = answer.rows_of(case.spans, case.reading.text)
    return attended(reader.model, case.seen, messages, answer.ids, rows)


def _scores(maps: Array, case: Case, n: int) -> Array:
    """(layers, heads) of `_score`, for the sentence n."""
    near, density = _near(case, n), 1 / _cell_mm3(case)
    hit = near[(maps * density).argmax(-1)]
    mass = (maps * near).sum(-1) / np.maximum(maps.sum(-1), 1e-30)
    return np.asarray(hit + mass)


def _score(weights: Array, case: Case, n: int) -> float:
    """1 where the densest cell lies in the mask grown by a cell, and how much of all weight lies there."""
    return float(_scores(weights[None, None], case, n)[0, 0])


def _near(case: Case, n: int) -> Array:
    """(cells,) whether each centre lies in a sentence's mask grown by a cell of the first grid."""
    grids = case.seen.token_map.grids
    places = [g.to_world(np.stack(np.unravel_index(np.arange(np.prod(g.shape)), g.shape), -1)) for g in grids]
    return within_a_cell(np.concatenate(places), case.masks[n], case.study.volume.grid, grids[0])


def _cell_mm3(case: Case) -> Array:
    """(cells,) sizes."""
    sizes = [np.full(int(np.prod(g.shape)), abs(np.linalg.det(g.affine[:3, :3]))) for g in case.seen.token_map.grids]
    return np.concatenate(sizes)


def localising(weights: Array, share: Array, count: int = 3) -> list[Head]:
    """The heads that a look at one answer alone calls localisers: arXiv 2503.06287.

    `weights` (layers, heads, visual tokens), `share` (layers, heads) of the attention on the image. Of the heads that
    pay the image more than the average one does, those of least entropy. The first two layers are passed over, as
    there; the entropy is of tokens rather than of blobs, because tokens need not lie on a grid.
    """
    p = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
    entropy[share < share.mean()] = np.inf
    if len(entropy) > 2:
        entropy[:2] = np.inf
    order = np.argsort(entropy, axis=None, kind="stable")[:count]
    found = [(int(a), int(b)) for a, b in zip(*np.unravel_index(order, entropy.shape), strict=True)]
    return [head for head in found if np.isfinite(entropy[head])] or found[:1]


# ---- The table ------------------------------------------------------------------------------------------------------


def compare(reader: Reader, seeds: Sequence[int], progress: Progress | None = None) -> dict[str, Any]:
    """Of every way of looking `pointing` and `overlap` with 95 % intervals, and the best above the last layer.

    Pointing: the peak of the heatmap lies in the mask grown by a cell. Overlap: Dice of the mask and the equally large
    region of highest heat. Forced true sentences. Raises ReaderError where no study has a finding.
    """
    check_seeds(seeds)
    rows: list[dict[str, list[tuple[bool, float]]]] = []
    for case in cases(reader, seeds, progress):
        found: dict[str, list[tuple[bool, float]]] = {}
        for way, reading in ways(reader, case):
            found[way] = [_judged(reading, case, n) for n in range(len(case.spans))]
        rows.append(found)
    if not rows:
        raise ReaderError("None of these studies has a finding. Take more seeds.")
    table = {way: _figures([row[way] for row in rows]) for way in rows[0]}
    best = max(table, key=lambda way: table[way]["pointing"]["value"])
    gain = [_gain(row[best], row[LAST]) for row in rows]
    return {
        "model": reader.model.name, "revision": reader.model.revision, "seeds": [int(seeds[0]), int(seeds[-1])],
        "methods": table, "best": best, "best_above_last_layer": figure(gain),
    }  # fmt: skip


def ways(reader: Reader, case: Case) -> Iterator[tuple[str, Reading]]:
    """The true report with the heatmaps of each way of looking."""
    from MedVLMReaderLib.attention import relative
    from MedVLMReaderLib.looking import generic, on_cells, relevance_trace, with_trace
    from MedVLMReaderLib.reading import Trace

    every = _attended(reader, case)
    depth, width = every.weights.shape[:2]
    later = [(layer, head) for layer in range(depth // 2, depth) for head in range(width)]

    def shown(weights: Any) -> Reading:
        return with_trace(case.reading, case.reading.text, Trace("attention", case.spans, on_cells(case.seen, weights)))

    yield LAST, shown(every.weights[-1].mean(0))
    yield LATER, shown(every.mean(later))
    clean = every.without_sinks().numpy()
    chosen = localising(clean.mean(2), every.share.numpy().mean(-1))
    yield ENTROPY, shown(every.mean(chosen))
    known = reader.calibration.heads if reader.calibration else None
    if known:
        yield KNOWN, shown(every.mean(known))
    heads = known or later
    yield RELATIVE, shown(relative(every.mean(heads), generic(reader.model, case.seen, heads, reader.prefix)))
    messages = [Message("user", case.reading.question)]
    answer = reader.forced(case.seen, messages, case.reading.text)
    rows = answer.rows_of(case.spans, case.reading.text)
    trace = relevance_trace(reader.model, case.seen, messages, answer.ids, case.spans, rows)
    yield RELEVANCE, with_trace(case.reading, case.reading.text, trace)


def _judged(reading: Reading, case: Case, n: int) -> tuple[bool, float]:
    """(the peak lies in the grown mask, overlap); nothing where nothing was found."""
    try:
        heat = reading.heatmap(case.spans[n])
    except ReaderError:
        return False, 0.0
    grid, mask = case.study.volume.grid, case.masks[n]
    hit = within_a_cell(heat.peak()[None], mask, grid, case.reading.grids[0])
    return bool(hit[0]), overlap(heat, mask, grid)


def overlap(heat: Volume, mask: Array, grid: Any) -> float:
    """Dice of a mask on `grid` and the cells of highest heat that fill as much space, equal ones by share.

    Both are as large, so it is the share of the mask's voxels that lie in these cells.
    """
    cell, voxel = (abs(float(np.linalg.det(g.affine[:3, :3]))) for g in (heat.grid, grid))
    count = mask.sum() * voxel / cell
    values = np.sort(heat.values, axis=None)[::-1]
    limit = values[min(int(count), len(values) - 1)]
    above, equal = int((values > limit).sum()), int((values == limit).sum())
    there = np.nan_to_num(heat.at(grid.to_world(np.argwhere(mask))), nan=-1.0)
    shares = (there > limit) + (there == limit) * min(1.0, max(count - above, 0) / equal)
    return float(np.mean(shares))


def _figures(rows: Sequence[Sequence[tuple[bool, float]]]) -> dict[str, Any]:
    names = ("pointing", "overlap")
    return {name: figure([(sum(one[n] for one in row), len(row)) for row in rows]) for n, name in enumerate(names)}


def _gain(best: Sequence[tuple[bool, float]], last: Sequence[tuple[bool, float]]) -> tuple[float, float]:
    return sum(a[0] - b[0] for a, b in zip(best, last, strict=True)), len(best)
