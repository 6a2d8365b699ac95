"""The papers' protocols: retrieval, reports, questions, masks and labels, each figure with a 95 % interval.

Answers are kept as they come, one JSON object a line, so that a run that was stopped goes on. Intervals resample
volumes, because questions about one volume hang together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import TYPES, Case
from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation import language
from MedVLMReaderLib.evaluation.phantom import figure
from MedVLMReaderLib.geometry import Array

POOLS = 100, 500, 1000, 2000
"""Sizes of the pools in which the papers look for the right one: the first so many pairs."""
RANKS = 1, 5, 10
REPORTS = 1000
"""Reports that the papers score: the first of the test part."""

Figures = dict[str, Any]


# ---- Retrieval ------------------------------------------------------------------------------------------------------


def retrieval(images: Array, texts: Array, pools: Sequence[int] = POOLS) -> Figures:
    """Share of right ones among the first 1, 5 and 10, both ways, in pools of the first so many pairs.

    `images` and `texts`: (pairs, width) unit vectors, row by row of one pair. Pools larger than what there is are left
    out; all pairs together are always a pool. Among equals the right one counts as last.
    """
    if images.shape != texts.shape or len(images) < 2:
        raise ReaderError(f"Retrieval needs at least two pairs; there are {len(images)} scans, {len(texts)} texts.")
    sizes = sorted({*(n for n in pools if n <= len(images)), min(len(images), max(pools))})
    return {f"pool_{n}": _both_ways(images[:n] @ texts[:n].T) for n in sizes}


def _both_ways(likeness: Array) -> Figures:
    ways = {"text_of_image": likeness, "image_of_text": likeness.T}
    ranks = {way: _ranks(table) for way, table in ways.items()}
    return {
        way: {f"recall_{k}": figure([(float(rank < k), 1.0) for rank in found]) for k in RANKS}
        for way, found in ranks.items()
    }


def _ranks(likeness: Array) -> Array:
    """(n,) how many others fit row n at least as well as its own column does."""
    own = np.diag(likeness)[:, None]
    return np.asarray((likeness >= own).sum(1) - 1)


# ---- Answers --------------------------------------------------------------------------------------------------------


class Answers:
    """What a model answered, kept in a file while it goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.kept: dict[tuple[str, str], str] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path and path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
        for line in whole:
            try:
                one = json.loads(line)
                self.kept[one["volume"], one["question"]] = one["answer"]
            except (ValueError, KeyError, TypeError):
                raise ReaderError(f"'{path}' holds something else than answers. Name another file.") from None
        if path and len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")

    def of(self, case: Case, ask: Callable[[Case], str]) -> str:
        """The answer to a case, asked for where it is not there."""
        key = case.volume, case.asked
        if key not in self.kept:
            self.kept[key] = ask(case)
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    line = {"volume": case.volume, "question": case.asked, "answer": self.kept[key]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return self.kept[key]


def asked_of(reader: Any, longest: int = 256) -> Callable[[Case], str]:
    """What asks a reader: each volume is seen once, as long as its questions follow one another."""
    from MedVLMReaderLib.reader import Options
    from MedVLMReaderLib.training.prepared import volume_of

    last: dict[str, Any] = {}
    options = Options(heatmaps=False, longest=longest)

    def ask(case: Case) -> str:
        if case.volume not in last:
            last.clear()
            last[case.volume] = reader.see(volume_of(case.volume))
        seen = last[case.volume]
        if not case.question:
            return str(reader.report(seen, options).text)
        *_, reading = reader.ask(seen, case.asked, options=options)
        return str(reading.text)

    return ask


def answered(cases: Sequence[Case], answers: Answers, ask: Callable[[Case], str], progress: Callable[[int], None]
             ) -> list[str]:  # fmt: skip
    """The answer to each case, in their order."""
    said = []
    for n, case in enumerate(cases, 1):
        said.append(answers.of(case, ask))
        progress(n)
    return said


# ---- Reports and questions ------------------------------------------------------------------------------------------


def reports(cases: Sequence[Case], said: Sequence[str], *, wordnet: Path = language.WORDNET, bert: Path | None = None
            ) -> Figures:  # fmt: skip
    """Figures of reports against those of the data set."""
    found, without = language.scores(said, [case.report for case in cases], wordnet=wordnet, bert=bert)
    figures = {name: _by_volume(cases, values) for name, values in found.items()}
    return {"reports": len(cases), **figures, **_left_out(without)}


def questions(cases: Sequence[Case], said: Sequence[str], *, wordnet: Path = language.WORDNET, bert: Path | None = None
              ) -> Figures:  # fmt: skip
    """Closed questions by type, by the published rule and by a strict one; open ones by their words."""
    pairs = list(zip(cases, said, strict=True))
    closed = [(case, one) for case, one in pairs if case.closed]
    opened = [(case, one) for case, one in pairs if not case.closed]
    figures: Figures = {"questions": len(cases)}
    if closed:
        figures["closed"] = {
            "published_rule": _by_type(closed, lambda case, one: scoring.closed_right(one, case.expected)),
            "one_choice_only": _by_type(closed, lambda case, one: scoring.chosen(one, case.asked) == case.letter),
        }
    if opened:
        told = [case.answer for case, _ in opened]
        found, without = language.scores([one for _, one in opened], told, wordnet=wordnet, bert=bert)
        asked = [case for case, _ in opened]
        figures["open"] = {**{n: _by_volume(asked, v) for n, v in found.items()}, **_left_out(without)}
    return figures


def _by_type(pairs: Sequence[tuple[Case, str]], right: Callable[[Case, str], bool]) -> Figures:
    """Accuracy of all, and of each type that was asked; the mean over types is the papers' total."""
    names = [name for name in TYPES if any(case.type == name for case, _ in pairs)]
    names += sorted({case.type for case, _ in pairs if case.type} - set(TYPES))
    parts = {name: [(case, one) for case, one in pairs if case.type == name] for name in names}
    return {
        name: _by_volume([case for case, _ in part], [float(right(case, one)) for case, one in part])
        for name, part in {"all": list(pairs), **parts}.items()
    }


def _by_volume(cases: Sequence[Case], values: Sequence[float]) -> Figures:
    """Mean of the values; its interval resamples volumes."""
    sums: dict[str, tuple[float, float]] = {}
    for case, value in zip(cases, values, strict=True):
        part, whole = sums.get(case.volume, (0.0, 0.0))
        sums[case.volume] = part + value, whole + 1
    return figure(list(sums.values()))


def _left_out(without: Mapping[str, str]) -> Figures:
    return {"left_out": dict(without)} if without else {}


# ---- Masks and labels -----------------------------------------------------------------------------------------------


def masks(
    pairs: Iterable[tuple[Array, Array, Sequence[float]]], classes: Sequence[str], *, distances: bool = True
) -> Figures:
    """Dice and, with `distances`, 95 % Hausdorff distance in mm of each class but the first, through MONAI.

    `pairs`: of each study (k, j, i) class numbers found and true, and the spacing in mm. A study counts for a class
    where the class is there; distances only where it was found as well.
    """
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    dice: dict[str, list[float]] = {name: [] for name in classes[1:]}
    distance: dict[str, list[float]] = {name: [] for name in classes[1:]}
    for found, true, spacing in pairs:
        if found.shape != true.shape:
            raise ReaderError(f"A mask of {found.shape} voxels cannot be compared with one of {true.shape}.")
        for n, name in enumerate(classes[1:], 1):
            ours, theirs = (torch.from_numpy((one == n)[None, None].astype(np.float32)) for one in (found, true))
            if not theirs.any():
                continue
            dice[name].append(float(compute_dice(ours, theirs)))
            if distances and ours.any():
                mm = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95,
                                                spacing=[float(x) for x in spacing])  # fmt: skip
                distance[name].append(float(mm))
    return {"dice": _each(dice), **({"hausdorff_95_mm": _each(distance)} if distances else {})}


def _each(values: Mapping[str, Sequence[float]]) -> Figures:
    mean = [value for part in values.values() for value in part]
    return {name: figure([(value, 1.0) for value in part]) for name, part in {"all": mean, **values}.items()}


def labels(scores: Array, truth: Array, names: Sequence[str]) -> Figures:
    """Of each label and of all: accuracy, precision, recall and F1 at 0.5, and the area under the ROC curve.

    (studies, labels) scores from 0 to 1, and 0 or 1. A label that all studies have, or none, has no area; the area of
    all is the mean of the others.
    """
    said, true = scores >= 0.5, truth > 0.5
    hits, claims, there = (said & true).astype(float), said.astype(float), true.astype(float)
    parts = {
        "accuracy": ((said == true).astype(float), np.ones_like(there)), "precision": (hits, claims),
        "recall": (hits, there), "f1": (2 * hits, claims + there),
    }  # fmt: skip
    shown: Figures = {name: {"all": _shares(part, whole)} for name, (part, whole) in parts.items()}
    for name, (part, whole) in parts.items():
        shown[name] |= {label: _shares(part[:, [n]], whole[:, [n]]) for n, label in enumerate(names)}
    return {**shown, "auc": _areas(scores, truth, names)}


def _shares(part: Array, whole: Array) -> Figures:
    """The sum of the parts over that of the wholes, both (studies, labels); the interval resamples studies."""
    return figure([(float(a), float(b)) for a, b in zip(part.sum(1), whole.sum(1), strict=True)])


def _areas(scores: Array, truth: Array, names: Sequence[str]) -> Figures:
    """The area of each label that some studies have and some have not; their mean first."""
    import torch
    from monai.metrics.rocauc import compute_roc_auc

    areas = {
        name: float(compute_roc_auc(torch.from_numpy(scores[:, n].copy()), torch.from_numpy(truth[:, n].copy())))
        for n, name in enumerate(names)
        if 0 < truth[:, n].sum() < len(truth)
    }
    every = {"all": float(np.mean(list(areas.values()))), **areas} if areas else {}
    return {name: {"value": round(area, 4), "low": None, "high": None, "n": len(truth)} for name, area in every.items()}
