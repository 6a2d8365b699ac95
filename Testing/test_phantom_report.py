"""What is said of a made study is regular, complete and true."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from MedVLMReaderLib import phantom_report
from MedVLMReaderLib.phantom_report import Exchange, questions, report
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Finding, Kind, Side, Truth


def made_truth(seed: int) -> Truth:
    """A random truth: any structures in view, up to three findings of a kind, odd sizes."""
    rng = random.Random(seed)
    in_view = tuple(s for s in STRUCTURES if rng.random() < rng.choice((0.3, 0.8, 1.0)))
    findings: list[Finding] = []
    for organ, side in in_view:
        kinds: list[Kind] = [kind for kind, where in ORGAN_OF.items() if where == organ and rng.random() < 0.4]
        several = 1 if organ in ("pleura", "spine") else rng.choice((1, 1, 2, 3))
        here = [finding(kind, side, rng.uniform(0.4, 60)) for kind in kinds for _ in range(several)]
        findings += sorted(here, key=lambda f: -f.size_mm)
    plane = rng.choice(("axial", "coronal", "sagittal"))
    phase = rng.choice(("plain", "contrast"))
    return Truth(seed, rng.choice(("CT", "MR")), phase, plane, in_view, tuple(findings))  # type: ignore[arg-type]


def finding(kind: Kind, side: Side, size_mm: float) -> Finding:
    return Finding(kind, ORGAN_OF[kind], side, size_mm, (0.0, 0.0, 0.0), 5.0)


def asked(seed: int) -> list[Exchange]:
    return questions(made_truth(seed), random.Random(seed))


def choices(exchange: Exchange) -> list[str]:
    """The words of the lettered choices."""
    return re.split(r"\s*\b[A-E]\. ", exchange.question.split(" Choices:")[1])[1:]


def answer(exchange: Exchange) -> str:
    return exchange.answer[3:]


CLOSED = [(seed, exchange) for seed in range(300) for exchange in asked(seed) if exchange.closed]


def test_a_report_says_each_finding_and_each_normal_structure_once_in_order() -> None:
    truth = Truth(
        0, "CT", "contrast", "axial", STRUCTURES,
        (finding("nodule", "right", 14.2), finding("nodule", "right", 8.0), finding("effusion", "left", 22.0),
         finding("dark liver lesion", "", 19.6), finding("stone", "right", 7.0), finding("fracture", "", 9.0)),
    )  # fmt: skip
    assert report(truth) == (
        "Findings: Axial CT with contrast. Nodule of 14 mm in the right lung. Nodule of 8 mm in the right lung. "
        "The left lung is clear. No pleural effusion on the right. Pleural effusion of 22 mm on the left. "
        "The heart is normal. Dark lesion of 20 mm in the liver. The spleen is normal. "
        "Stone of 7 mm in the right kidney. The left kidney is normal. "
        "Fracture of the spine with 9 mm of lost height.\n"
        "Impression: Nodules in the right lung. Pleural effusion on the left. Dark lesion in the liver. "
        "Stone in the right kidney. Fracture of the spine."
    )


def test_a_report_without_findings_says_so_and_keeps_silent_about_what_is_not_in_view() -> None:
    truth = Truth(0, "MR", "plain", "coronal", (("spleen", ""), ("kidney", "left")), ())
    assert report(truth) == (
        "Findings: Coronal MR without contrast. The spleen is normal. The left kidney is normal.\n"
        "Impression: No abnormality."
    )


def test_the_words_are_few() -> None:
    texts = [report(made_truth(seed)) for seed in range(300)] + list(phantom_report.REPORT_REQUESTS)
    texts += [text for seed in range(300) for e in asked(seed) for text in (e.question, e.answer)]
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert len(words) < 250


def test_a_closed_question_has_two_to_four_different_choices_and_its_answer_is_one_of_them() -> None:
    for _, exchange in CLOSED:
        assert 2 <= len(choices(exchange)) <= 4
        assert len(set(choices(exchange))) == len(choices(exchange))
        assert choices(exchange)["ABCDE".index(exchange.answer[0])] == answer(exchange)


def test_of_the_kinds_to_choose_from_exactly_one_is_seen() -> None:
    for seed, exchange in CLOSED:
        if exchange.type == "abnormality" and exchange.structure is None:
            seen = {f.kind for f in made_truth(seed).findings} & set(choices(exchange))
            assert seen == ({answer(exchange)} if answer(exchange) != "none of these" else set())
            assert "none of these" in choices(exchange)  # or its being there would tell the answer


def test_of_the_structures_to_choose_from_exactly_one_is_right() -> None:
    for seed, exchange in CLOSED:
        truth = made_truth(seed)
        if exchange.type in ("organ", "location") and exchange.structure is None:
            right = truth.in_view if exchange.type == "organ" else [(f.organ, f.side) for f in truth.findings]
            assert {phantom_report.name(s) for s in right} & set(choices(exchange)) == {answer(exchange)}


def test_yes_and_no_are_true_to_the_truth() -> None:
    for seed, exchange in CLOSED:
        truth = made_truth(seed)
        if answer(exchange) in ("yes", "no"):
            right = truth.in_view if exchange.type == "organ" else [(f.organ, f.side) for f in truth.findings]
            assert (exchange.structure in right) == (answer(exchange) == "yes")


def test_yes_and_no_are_as_frequent_within_a_study_where_both_are_possible() -> None:
    for seed in range(300):
        truth = made_truth(seed)
        said = Counter(answer(e) for e in asked(seed) if e.closed and e.type == "abnormality" and e.structure)
        abnormal = {(f.organ, f.side) for f in truth.findings}
        if abnormal and set(truth.in_view) - abnormal - {("heart", "")}:
            assert said["yes"] == said["no"]
        assert said.total() >= 1


def test_no_letter_is_favoured() -> None:
    letters = Counter(exchange.answer[0] for _, exchange in CLOSED if len(choices(exchange)) == 2)
    assert letters["A"] / letters.total() == pytest.approx(0.5, abs=0.05)


def test_where_a_kind_lies_is_asked_with_choices_only_if_all_of_it_lies_in_one_structure() -> None:
    where = [(seed, e) for seed, e in CLOSED if e.type == "location" and e.structure]
    assert where
    for seed, exchange in where:
        kind = next(kind for kind in ("nodule", "effusion", "stone") if kind in exchange.question.split(" Choices")[0])
        found = {(f.organ, f.side) for f in made_truth(seed).findings if f.kind == kind}
        assert exchange.structure
        assert found == {exchange.structure}
        assert answer(exchange) in (exchange.structure[1], phantom_report.name(exchange.structure))


def test_a_size_is_asked_only_of_a_finding_that_is_alone_of_its_kind_in_its_structure() -> None:
    for seed in range(300):
        for exchange in asked(seed):
            if exchange.type == "size":
                found = [f for f in made_truth(seed).findings if (f.organ, f.side) == exchange.structure]
                named = [f for f in found if phantom_report.NOUN[f.kind] in exchange.question]
                assert exchange.answer in [f"{phantom_report.millimetres(f)}." for f in named]
                assert Counter(f.kind for f in named).most_common(1)[0][1] == 1


def test_an_open_answer_is_what_the_report_says_of_the_structure() -> None:
    for seed in range(300):
        for exchange in asked(seed):
            if exchange.type == "open":
                assert exchange.answer in report(made_truth(seed))


def test_every_study_gives_a_closed_question_of_each_type() -> None:
    for seed in range(300):
        types = {e.type for e in asked(seed) if e.closed}
        assert {"plane", "phase", "organ", "abnormality"} <= types
        assert ("location" in types) == bool(made_truth(seed).findings)


def test_the_same_random_state_asks_the_same_and_another_asks_otherwise() -> None:
    assert asked(7) == asked(7)
    assert questions(made_truth(7), random.Random(8)) != asked(7)
