"""How ways of looking compare, on made studies whose masks are known: do they point at what a sentence says?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation.forced import Case, Progress, case_of, measured_with
from MedVLMReaderLib.evaluation.phantom import check_seeds, figure, within_a_cell
from MedVLMReaderLib.evaluation.rows import Rows
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.reading import Reading, Trace
from MedVLMReaderLib.volume import Volume

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

LAST, LATER, ENTROPY, KNOWN, RELATIVE, RELEVANCE = (
    "last layer", "later half", "localisation heads", "calibrated heads", "relative to a generic prompt", "relevance",
)  # fmt: skip
"""The ways of looking that are compared; all but the last are attention."""
Head = tuple[int, int]


def compare(
    reader: Reader, seeds: Sequence[int], *, kept: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Of every way of looking `pointing`, `overlap` and more with 95 % intervals over studies, see `figures`.

    Forced true sentences. `kept`: a file to which the rows of each study are added, and from which it goes on. Raises
    ReaderError where no study has a finding.
    """
    check_seeds(seeds)
    calibration = reader.calibration
    about = measured_with(reader, "heatmaps", heads=[list(head) for head in calibration.heads] if calibration else None)
    rows, found = Rows(kept, about), []
    for n, seed in enumerate(seeds):
        found.append(rows.of(int(seed), lambda seed=int(seed): _row(reader, seed)))  # type: ignore[misc]
        if progress:
            progress(n + 1, len(seeds))
    if not any(found):
        raise ReaderError("None of these studies has a finding. Take more seeds.")
    told = {"model": reader.model.name, "revision": reader.model.revision, "seeds": [int(seeds[0]), int(seeds[-1])]}
    return {**told, "studies": len(seeds), **figures([row for row in found if row])}


# ---- One study -------------------------------------------------------------------------------------------------------


def _row(reader: Reader, seed: int) -> dict[str, Any] | None:
    """Of each finding: whether the model says it itself, the chance, and of each way (pointed at, overlap)."""
    case = case_of(reader, seed)
    if case is None:
        return None
    ways = {way: [_judged(looked, case, n) for n in range(len(case.spans))] for way, looked in looks(reader, case)}
    return {"said": _said(reader, case), "chance": [_chance(case, mask) for mask in case.masks], "ways": ways}


def _said(reader: Reader, case: Case) -> list[bool]:
    from MedVLMReaderLib.options import Options

    text = reader.report(case.seen, Options(heatmaps=False)).text
    told = {finding for _, finding in scoring.matched(scoring.parsed(text), case.study.truth.findings).pairs}
    return [finding in told for finding in case.findings]


def _chance(case: Case, mask: Array) -> float:
    """Share of the body in the grown mask."""
    body = case.study.volume.grid.to_world(np.argwhere(case.study.labels[:, ::3, ::3]) * (1, 3, 3))
    return round(float(within_a_cell(body, mask, case.study.volume.grid, case.reading.grids[0]).mean()), 4)


def looks(reader: Reader, case: Case) -> Iterator[tuple[str, Reading]]:
    """The true report with the heatmaps of each way of looking."""
    from MedVLMReaderLib.attention import attended, relative
    from MedVLMReaderLib.looking import generic, on_cells, relevance_trace, with_trace
    from MedVLMReaderLib.relevance import decided

    messages, ids, rows = case.told(reader)
    every = attended(reader.model, case.seen, messages, ids, rows)
    depth, width = every.weights.shape[:2]
    later = [(layer, head) for layer in range(depth // 2, depth) for head in range(width)]

    def shown(weights: Any) -> Reading:
        return with_trace(case.reading, case.reading.text, Trace("attention", case.spans, on_cells(case.seen, weights)))

    yield LAST, shown(every.weights[-1].mean(0))
    yield LATER, shown(every.mean(later))
    clean = every.without_sinks().numpy()
    yield ENTROPY, shown(every.mean(localising(clean.mean(2), every.share.numpy().mean(-1))))
    best, heads = every, later
    if known := reader.calibration:
        heads = list(known.heads)
        if known.weighed:
            counts = decided(reader.model, case.seen, messages, ids)
            best = attended(reader.model, case.seen, messages, ids, rows, counts=counts)
        yield KNOWN, shown(best.mean(heads))
    yield RELATIVE, shown(relative(best.mean(heads), generic(reader.model, case.seen, heads, reader.prefix)))
    trace = relevance_trace(reader.model, case.seen, messages, ids, case.spans, rows)
    yield RELEVANCE, with_trace(case.reading, case.reading.text, trace)


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


def _judged(reading: Reading, case: Case, n: int) -> tuple[bool, float]:
    """(the peak lies in the grown mask, overlap); nothing where nothing was found."""
    try:
        heat = reading.heatmap(case.spans[n])
    except ReaderError:
        return False, 0.0
    return pointed(heat, case, n), round(overlap(heat, case.masks[n], case.study.volume.grid), 6)


def pointed(heat: Volume, case: Case, n: int) -> bool:
    """Whether a heatmap's peak lies in the mask of a sentence, grown by a cell of the first grid."""
    near = within_a_cell(heat.peak()[None], case.masks[n], case.study.volume.grid, case.reading.grids[0])
    return bool(near[0])


def overlap(heat: Volume, mask: Array, grid: Grid) -> float:
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


# ---- All of them -----------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each with its interval. Of every way of looking:

    pointing            share of the findings whose peak lies in the mask grown by a cell
    pointing_said       the same of those that the model says itself: what it overlooks, it cannot point at
    overlap             Dice of the mask and the equally large region of highest heat
    above_last_layer    of pointing, paired: what the way gains on the raw last layer, study by study
    """
    ways = {way: _of_way(rows, way) for way in rows[0]["ways"]}
    best = max(ways, key=lambda way: ways[way]["pointing"]["value"])
    return {
        "chance": figure([(sum(row["chance"]), len(row["chance"])) for row in rows]), "methods": ways, "best": best,
        "best_above_last_layer": ways[best]["above_last_layer"],
    }  # fmt: skip


def _of_way(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    found = [row["ways"][way] for row in rows]
    hits = [[float(hit) for hit, _ in one] for one in found]
    mine = [[h for h, said in zip(one, row["said"], strict=True) if said] for one, row in zip(hits, rows, strict=True)]
    last = [[float(hit) for hit, _ in row["ways"][LAST]] for row in rows]
    return {
        "pointing": figure([(sum(one), len(one)) for one in hits]),
        "pointing_said": figure([(sum(one), len(one)) for one in mine]),
        "overlap": figure([(sum(share for _, share in one), len(one)) for one in found]),
        "above_last_layer": figure([(sum(a) - sum(b), len(a)) for a, b in zip(hits, last, strict=True)]),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The figures of `compare` as a table for a page."""
    lines = ["| way of looking | points at the finding | of those it says itself | overlap | above the last layer |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for way, row in sorted(found["methods"].items(), key=lambda one: -one[1]["pointing"]["value"]):
        lines.append(f"| {way} | " + " | ".join(_cell(row[name]) for name in _COLUMNS) + " |")
    lines.append(f"| by chance | {_cell(found['chance'])} | | | |")
    first, last = found["seeds"]
    return "\n".join([*lines, "", f"Studies {first} to {last}, model {found['model']}, weights `{found['revision']}`."])


_COLUMNS = "pointing", "pointing_said", "overlap", "above_last_layer"


def _cell(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "-"
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}; n {one['n']})"
