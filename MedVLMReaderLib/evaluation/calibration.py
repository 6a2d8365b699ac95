"""Which heads of a decoder localise: on made studies, whose masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.calibration import Calibration
from MedVLMReaderLib.evaluation.forced import Case, Progress, cases
from MedVLMReaderLib.evaluation.heatmaps import LATER, Head, pointed
from MedVLMReaderLib.evaluation.phantom import check_seeds, within_a_cell
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.reading import Trace

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

COUNTS = 1, 2, 3, 5, 8, 12
"""So many of the best heads are tried together."""
WEIGHED = {False: "all words alike", True: "words counted as far as the image decides them"}


@dataclass(eq=False)
class _Choice:
    """Some heads, and how well they point together."""

    name: str
    weighed: bool
    heads: list[Head]
    hits: list[bool] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def calibrate(reader: Reader, seeds: Sequence[int], progress: Progress | None = None) -> Calibration:
    """The heads that point best together.

    Every head is scored on the first half of the studies, with all words alike and with words counted as far as the
    image decides them. How many of the best, or all of the later half of the layers, point best together, and in which
    of the two ways, is found on the other half. Raises ReaderError where either half has no finding.
    """
    check_seeds(seeds)
    half = len(seeds) // 2
    total: dict[bool, Array] = {}
    for case in cases(reader, seeds[:half], _part(progress, 0, len(seeds))):
        for weighed in WEIGHED:
            maps = head_maps(reader, case, weighed)
            scored = np.sum([_scores(maps[:, :, n], case, n) for n in range(len(case.spans))], axis=0)
            total[weighed] = total.get(weighed, np.zeros_like(scored)) + scored
    if not total:
        raise ReaderError(f"The first {half} of these studies have no finding. Take more seeds.")
    choices = [one for weighed in WEIGHED for one in _choices(total[weighed], weighed)]
    for case in cases(reader, seeds[half:], _part(progress, half, len(seeds))):
        for weighed in WEIGHED:
            maps = head_maps(reader, case, weighed)
            for choice in choices:
                if choice.weighed == weighed:
                    _try(choice, maps, case)
    if not choices[0].hits:
        raise ReaderError(f"The last {len(seeds) - half} of these studies have no finding. Take more seeds.")
    best = max(choices, key=lambda one: float(np.mean(one.scores)))
    return Calibration(
        reader.model.name, reader.model.revision, tuple((int(a), int(b)) for a, b in best.heads),
        f"{best.name}, {WEIGHED[best.weighed]}", (int(seeds[0]), int(seeds[-1])), len(best.hits),
        round(float(np.mean(best.hits)), 4), best.weighed,
    )  # fmt: skip


def _choices(total: Array, weighed: bool) -> list[_Choice]:
    best: list[Head] = sorted(np.ndindex(total.shape), key=lambda head: -total[head])
    few = {f"the {k} heads that localise best": best[:k] for k in COUNTS if k <= len(best)}
    few[LATER] = [head for head in best if head[0] >= total.shape[0] // 2]
    return [_Choice(name, weighed, heads) for name, heads in few.items()]


def _try(choice: _Choice, maps: Array, case: Case) -> None:
    layers, numbers = zip(*choice.heads, strict=True)
    together = maps[list(layers), list(numbers)].mean(0)
    for n in range(len(case.spans)):
        hit = _points(together[n], case, n)
        choice.hits.append(hit)
        choice.scores.append(hit + float(_mass(together[n], _near(case, n))))


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    return (lambda done, _: progress(before + done, total)) if progress else None


def head_maps(reader: Reader, case: Case, weighed: bool) -> Array:
    """(layers, heads, sentences, cells) attention of every head, sinks left out, at the cells inside the scan.

    `weighed`: words counted as far as the image decides them.
    """
    from MedVLMReaderLib.attention import attended
    from MedVLMReaderLib.looking import on_cells
    from MedVLMReaderLib.relevance import decided

    messages, ids, rows = case.told(reader)
    counts = decided(reader.model, case.seen, messages, ids) if weighed else None
    found = attended(reader.model, case.seen, messages, ids, rows, counts=counts).without_sinks()
    return on_cells(case.seen, found.flatten(0, 2)).reshape(*found.shape[:3], -1)


def _points(weights: Array, case: Case, n: int) -> bool:
    """Whether the peak of (cells,) weights lies in the mask of the sentence n, grown by a cell."""
    from MedVLMReaderLib.looking import with_trace

    if not weights.any():
        return False
    span = case.spans[n]
    looked = with_trace(case.reading, case.reading.text, Trace("attention", (span,), weights[None]))
    return pointed(looked.heatmap(span), case, n)


def _scores(maps: Array, case: Case, n: int) -> Array:
    """(layers, heads): 1 where the densest cell lies in the grown mask, and how much of all weight lies there."""
    near = _near(case, n)
    return np.asarray(near[(maps / _cell_mm3(case)).argmax(-1)] + _mass(maps, near))


def _mass(weights: Array, near: Array) -> Array:
    """(...,) share of (..., cells) that lies `near`."""
    return np.asarray((weights * near).sum(-1) / np.maximum(weights.sum(-1), 1e-30))


def _near(case: Case, n: int) -> Array:
    """(cells,) whether each centre lies in a sentence's mask grown by a cell of the first grid."""
    grids = case.seen.token_map.grids
    places = [g.to_world(np.stack(np.unravel_index(np.arange(np.prod(g.shape)), g.shape), -1)) for g in grids]
    return within_a_cell(np.concatenate(places), case.masks[n], case.study.volume.grid, grids[0])


def _cell_mm3(case: Case) -> Array:
    """(cells,) sizes."""
    sizes = [np.full(int(np.prod(g.shape)), abs(np.linalg.det(g.affine[:3, :3]))) for g in case.seen.token_map.grids]
    return np.concatenate(sizes)
