"""The figures of a reader on made studies, on readers whose right and wrong answers are known beforehand."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation import phantom as evaluation
from MedVLMReaderLib.evaluation.phantom import closed_questions, evaluate, turned, within_a_cell
from MedVLMReaderLib.geometry import Array, Grid, TokenMap
from MedVLMReaderLib.phantom import Study, made_study, made_truth
from MedVLMReaderLib.phantom_report import questions, report
from MedVLMReaderLib.reader import Options
from MedVLMReaderLib.reading import Reading, Trace, sentence_spans
from MedVLMReaderLib.study import Seen
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

SEEDS = (1, 3, 4, 7)  # a stone; a normal study; two stones in one kidney; a nodule, a liver lesion and a fracture
FINDINGS = 6
WITH_HEATMAPS = Options()
study_of = cache(made_study)


@pytest.fixture(scope="module", autouse=True)
def _each_study_is_made_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "made_study", study_of)
        patch.setattr(evaluation, "thresholded", cache(evaluation.thresholded))
        yield


class Knowing:
    """Answers from the truth, and points at the right cells of an axial and a coronal grid."""

    notes: tuple[str, ...] = ()

    def study(self, source: str) -> Study:
        seed, *rest = source.removeprefix("made-").split("-")
        return study_of(int(seed), mirrored=True) if rest else study_of(int(seed))

    def see(self, volume: Volume) -> Seen:
        grids = tuple(_cells(volume.as_seen(plane).grid) for plane in ("axial", "coronal"))
        return Seen((), None, TokenMap(grids), {}, volume.source, self.notes)  # type: ignore[arg-type]

    def report(self, seen: Seen, options: Options = WITH_HEATMAPS) -> Reading:
        study = self.study(seen.key)
        text = self.words(report(study.truth), seen)
        traces = (self.trace(text, study, seen),) if options.heatmaps else ()
        return Reading("", text, True, traces, seen.token_map.grids, "knowing", "1")

    def ask(self, seen: Seen, question: str, *, options: Options) -> Iterator[str | Reading]:
        assert not options.heatmaps
        truth = self.study(seen.key).truth
        right = {e.question: e.answer for e in questions(truth, random.Random(truth.seed))}
        answer = self.answer(right[question])
        yield answer
        yield Reading(question, answer, True, (), seen.token_map.grids, "knowing", "1")

    def trace(self, text: str, study: Study, seen: Seen) -> Trace:
        """A report says the findings in the order of the truth, after the sentence about the scan."""
        spans = sentence_spans(text)
        about = [n for n, (a, b) in enumerate(spans) if " mm" in text[a:b]]
        weights = np.full((len(spans), seen.token_map.cells), 1e-4, np.float32)
        for n, mask in zip(about, study.masks, strict=False):
            start = 0
            for grid in seen.token_map.grids:
                cell = np.rint(grid.to_index(self.place(mask, study.volume.grid))).astype(int)
                weights[n, start + int(np.ravel_multi_index(tuple(cell), grid.shape, mode="clip"))] = 1
                start += int(np.prod(grid.shape))
        return Trace("relevance", spans, weights)

    def words(self, text: str, seen: Seen) -> str:
        return text

    def answer(self, right: str) -> str:
        return right

    def place(self, mask: Array, grid: Grid) -> Array:
        filled = grid.to_world(np.argwhere(mask))
        return filled[np.linalg.norm(filled - filled.mean(0), axis=1).argmin()]


def _cells(grid: Grid) -> Grid:
    """The box in cells of about 8 x 25 x 25 mm."""
    size = np.array(grid.shape) * grid.spacing
    return grid.resize([max(1, round(float(n))) for n in size / (8, 25, 25)])


class SidesSwapped(Knowing):
    def words(self, text: str, seen: Seen) -> str:
        return re.sub("right|left", lambda side: "left" if side.group() == "right" else "right", text)


class Silent(Knowing):
    def words(self, text: str, seen: Seen) -> str:
        return ""

    def answer(self, right: str) -> str:
        return ""


class PointsAtACorner(Knowing):
    def place(self, mask: Array, grid: Grid) -> Array:
        return grid.to_world((0, 0, 0))


def figures_of(reader: Any, **asked: Any) -> dict[str, Any]:
    return evaluate(reader, SEEDS, **asked)


def every_figure(shown: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, figure in shown.items():
        if isinstance(figure, dict):
            yield from [(name, figure)] if "value" in figure else every_figure(figure)


@pytest.fixture(scope="module")
def knowing(_each_study_is_made_once: None) -> dict[str, Any]:
    return figures_of(Knowing(), mirrored=True)


def test_who_knows_the_truth_is_always_right(knowing: dict[str, Any]) -> None:
    names = (
        "findings_f1", "findings_precision", "findings_recall", "side_accuracy", "pointing", "pointing_all",
        "orientation_agreement", "mirrored_agreement", "report_answer_agreement",
    )  # fmt: skip
    assert {name: knowing[name]["value"] for name in names} == dict.fromkeys(names, 1.0)
    assert {one["value"] for one in knowing["closed_accuracy"].values()} == {1.0}
    assert {one["value"] for one in knowing["findings_f1_by_kind"].values()} == {1.0, None}
    assert knowing["size_mae_mm"]["value"] <= 0.5
    assert knowing["flagged_out_of_domain"]["value"] == 0


def test_counts_and_names_are_told_with_the_figures(knowing: dict[str, Any]) -> None:
    assert (knowing["studies"], knowing["seeds"]) == (4, list(SEEDS))
    assert (knowing["model"], knowing["revision"]) == ("knowing", "1")
    assert knowing["findings_f1"]["n"] == knowing["pointing_all"]["n"] == knowing["mirrored_agreement"]["n"] == FINDINGS
    assert knowing["orientation_agreement"]["n"] == knowing["cell_mm"]["n"] == 4
    asked = sum(one["n"] for one in knowing["closed_accuracy"].values())
    assert asked == sum(len(closed_questions(made_truth(seed))) for seed in SEEDS)


def test_the_baseline_and_chance_are_no_better_than_they_are(knowing: dict[str, Any]) -> None:
    assert 0 <= knowing["baseline_f1"]["value"] < 1
    assert 0 < knowing["pointing_chance"]["value"] < 0.2
    assert 20 < knowing["cell_mm"]["value"] < 30
    assert 6 < knowing["cell_slice_mm"]["value"] < 10


def test_intervals_hold_their_values_and_all_is_plain_json(knowing: dict[str, Any]) -> None:
    for name, figure in every_figure(knowing):
        assert set(figure) == {"value", "low", "high", "n"}, name
        assert figure["n"] == 0 or figure["low"] <= figure["value"] <= figure["high"], name
    assert json.loads(json.dumps(knowing, allow_nan=False)) == knowing


def test_swapped_sides_are_no_sides_and_contradict_the_answers() -> None:
    shown = figures_of(SidesSwapped())
    assert shown["side_accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert shown["findings_f1"]["value"] == pytest.approx(2 / 6, abs=1e-4)  # the liver's and the spine's are right
    assert shown["findings_f1"]["n"] == 2 + 4 + 4  # said and there, only said, only there
    assert shown["pointing"]["value"] == 1
    assert shown["pointing_all"]["value"] == pytest.approx(2 / 6, abs=1e-4)
    assert shown["report_answer_agreement"]["value"] < 1
    assert "mirrored_agreement" not in shown


def test_saying_nothing_is_scored_and_nothing_divides_by_zero() -> None:
    shown = figures_of(Silent(), mirrored=True)
    assert shown["findings_recall"]["value"] == shown["findings_f1"]["value"] == shown["pointing_all"]["value"] == 0
    assert {one["value"] for one in shown["closed_accuracy"].values()} == {0.0}
    assert shown["report_answer_agreement"]["value"] == 0
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    names = ("findings_precision", "side_accuracy", "size_mae_mm", "pointing", "pointing_chance", "mirrored_agreement")
    assert {name: shown[name] for name in names} == dict.fromkeys(names, nothing)
    json.dumps(shown, allow_nan=False)


def test_right_words_with_a_peak_elsewhere_do_not_point() -> None:
    shown = figures_of(PointsAtACorner(), mirrored=True)
    assert shown["findings_f1"]["value"] == 1
    assert shown["pointing"]["value"] == 0
    assert shown["mirrored_agreement"]["n"] == 0  # nothing was right before


def test_a_sentence_without_a_heatmap_does_not_point() -> None:
    class Blind(Knowing):
        def report(self, seen: Seen, options: Options = WITH_HEATMAPS) -> Reading:
            return replace(super().report(seen, options), traces=())

    assert figures_of(Blind())["pointing"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": FINDINGS}


def test_who_reads_the_mirror_image_like_the_study_is_found_out() -> None:
    class Rigid(Knowing):
        def study(self, source: str) -> Study:
            return study_of(int(source.split("-")[1]))

    shown = figures_of(Rigid(), mirrored=True)
    assert shown["findings_f1"]["value"] == shown["pointing"]["value"] == 1
    assert shown["mirrored_agreement"]["value"] <= 2 / 6  # the spine's, and the liver's where it reaches the middle


def test_a_report_that_follows_the_storage_order_is_found_out() -> None:
    class Dizzy(Knowing):
        def see(self, volume: Volume) -> Seen:
            stored = "" if volume.grid.same_as(study_of(int(volume.source.split("-")[1])).volume.grid) else "turned"
            return replace(super().see(volume), notes=(stored,))

        def words(self, text: str, seen: Seen) -> str:
            return text + " ".join(seen.notes)

    assert figures_of(Dizzy())["orientation_agreement"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def test_only_the_first_studies_are_read_from_another_storage_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "TURNED", 3)
    assert figures_of(Knowing(), questions_each=1)["orientation_agreement"]["n"] == 3


def test_studies_noted_as_out_of_domain_are_counted() -> None:
    class Doubting(Knowing):
        notes = ("Reads made studies only.", "Out of domain: 9.1 of at most 3.")

    assert figures_of(Doubting(), questions_each=1)["flagged_out_of_domain"]["value"] == 1


def test_fewer_questions_are_asked_where_so_wished_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    shown = figures_of(Knowing(), questions_each=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {name: one["n"] for name, one in shown["closed_accuracy"].items()} == {
        "plane": 4, "phase": 4, "organ": 4, "abnormality": 4, "location": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((5, 1_000_000), "The seeds 1000000 were used for training. Take seeds below 1000000."),
        ((2_000_000, 1_000_001), "The seeds 1000001 to 2000000 were used for training."),
        ((), "No seeds were given."),
        ((3, -1), "The seed -1 is negative."),
    ],
)
def test_seeds_of_the_training_and_no_seeds_are_refused(seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ReaderError, match=re.escape(message)):
        evaluate(Knowing(), seeds)  # type: ignore[arg-type]


def test_each_storage_order_is_another_one_and_leaves_every_voxel_in_its_place() -> None:
    grid = oblique_grid((3, 4, 5))
    volume = Volume(np.arange(60).reshape(3, 4, 5), grid)
    places = grid.to_world(np.argwhere(volume.values >= 0))
    stored = [turned(volume, seed) for seed in range(47)]
    assert all(np.array_equal(one.at(places), volume.at(places)) for one in stored)
    affines = [volume.grid.affine, *(one.grid.affine for one in stored)]
    assert len({tuple(np.round(affine, 3).ravel()) for affine in affines}) == 48


def test_a_mask_grows_by_one_cell_along_each_axis_of_the_cells() -> None:
    fine = oblique_grid((8, 30, 24), (5.0, 2.0, 2.5))
    mask = np.zeros(fine.shape, bool)
    mask[4, 12:14, 10] = True
    cell = fine.resize((8, 3, 3))  # 5 x 20 x 20 mm
    edges = np.array([[3.5, 11.5, 9.5], [4.5, 13.5, 10.5]])  # of the mask, in voxels
    grown = np.array([1, 10, 8])  # a cell, in voxels
    inside = np.array([edges[0] - grown + 0.01, edges[1] + grown - 0.01, [4, 12, 10]])
    outside = np.array([[edges[0, 0] - 1.01, 12, 10], [4, edges[1, 1] + 10.01, 10], [4, 12, edges[0, 2] - 8.01]])
    assert within_a_cell(fine.to_world(inside), mask, fine, cell).all()
    assert not within_a_cell(fine.to_world(outside), mask, fine, cell).any()
