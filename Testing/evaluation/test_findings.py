"""Findings are read back from reports as they were said, and scored one to one with the truth."""

from __future__ import annotations

import math
import random

import pytest

from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.evaluation.findings import Said, Tally, matched, parsed
from MedVLMReaderLib.phantom_report import questions, report
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Finding, Kind, Side, Truth


def made_truth(seed: int) -> Truth:
    """A random truth with up to three findings of a kind in a structure."""
    rng = random.Random(seed)
    in_view = tuple(structure for structure in STRUCTURES if rng.random() < 0.8)
    found = [
        finding(kind, side, rng.uniform(1, 60))
        for organ, side in in_view
        for kind, where in ORGAN_OF.items()
        if where == organ
        for _ in range(rng.choice((0, 0, 1, 2, 3)))
    ]
    plane = rng.choice(("axial", "coronal", "sagittal"))
    phase = rng.choice(("plain", "contrast"))
    return Truth(seed, rng.choice(("CT", "MR")), phase, plane, in_view, tuple(found))  # type: ignore[arg-type]


def finding(kind: Kind, side: Side = "", size_mm: float = 10.0) -> Finding:
    return Finding(kind, ORGAN_OF[kind], side, size_mm, (0.0, 0.0, 0.0), 5.0)


def said(kind: Kind, side: Side = "", size_mm: float | None = 10.0) -> Said:
    return Said(kind, ORGAN_OF[kind], side, size_mm)


def read(text: str) -> list[tuple[str, str, str, float | None]]:
    return [(one.kind, one.organ, one.side, one.size_mm) for one in parsed(text)]


def test_a_true_report_is_read_back_exactly() -> None:
    for seed in range(300):
        truth = made_truth(seed)
        expected = [(f.kind, f.organ, f.side, float(max(1, round(f.size_mm)))) for f in truth.findings]
        assert read(report(truth)) == expected
        matching = matched(parsed(report(truth)), truth.findings)
        assert not matching.extra
        assert not matching.missed
        assert max(scoring.size_errors(matching), default=0) <= 0.5


def test_a_span_holds_the_sentence_and_no_heading() -> None:
    for seed in range(30):
        text = report(made_truth(seed))
        for one in parsed(text):
            assert text[slice(*one.span)] == one.sentence
            assert one.sentence.endswith(".")
            assert "Findings" not in one.sentence
    assert [text[a:b] for text in ("Findings: A b. 1.5 mm c!\nImpression: D",) for a, b in scoring.sentences(text)] == [
        "A b.", "1.5 mm c!", "D",
    ]  # fmt: skip


def test_the_impression_is_not_counted_again() -> None:
    assert len(parsed("Findings: Stone of 7 mm in the left kidney.\nImpression: Stone in the left kidney.")) == 1
    assert parsed("Impression: Stone in the left kidney.") == []
    assert len(parsed("Stone in the left kidney.")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a 1.4 cm nodule in the right lung.", [("nodule", "lung", "right", 14.0)]),
        ("NODULES of 14 mm and 8 mm in the left lung", [("nodule", "lung", "left", s) for s in (14.0, 8.0)]),
        ("Bilateral pleural effusions.", [("effusion", "pleura", side, None) for side in ("right", "left")]),
        ("Hypodense lesion, 20 x 12 mm, in the right liver lobe.", [("dark liver lesion", "liver", "", 20.0)]),
        ("Splenic lesion.", [("splenic lesion", "spleen", "", None)]),
        ("Stone in the right kidney and a nodule of 9 mm in the left lung.",
         [("stone", "kidney", "right", None), ("nodule", "lung", "left", 9.0)]),
        ("No effusion on the left but a nodule in the left lung.", [("nodule", "lung", "left", None)]),
        ("No pleural effusion and a stone in the left kidney.", [("stone", "kidney", "left", None)]),
        ("No nodule, no effusion or stone. Nodules are not seen. Lungs without nodules.", []),
        ("Nodule of 8 mm in the liver.", [("nodule", "liver", "", 8.0)]),
        ("Pericardial effusion. Rib fracture. A sunny day.", []),
    ],
)  # fmt: skip
def test_other_wordings_are_read_too(text: str, expected: list[tuple[str, str, str, float | None]]) -> None:
    assert read(text) == expected


def test_any_text_is_read_without_an_error() -> None:
    rng = random.Random(0)
    words = ["nodule", "Nodules", "lesion", "effusion,", "and", "no", "right", "both", "lung", "liver", "3", "4.5", "x"]
    words += ["mm", "cm", ".", "..", "!", "\n", ";", "Findings:", "Impression:", "\u00b2", "\u0663", "\ud83e"]
    for _ in range(500):
        text = rng.choice(("", " ")).join(rng.choices(words, k=rng.randrange(40)))
        for one in parsed(text):
            assert text[slice(*one.span)] == one.sentence
        scoring.chosen(text, text)


def test_a_wrong_count_a_wrong_side_and_a_wrong_kind_are_errors() -> None:
    there = [
        finding("nodule", "right", 14),
        finding("nodule", "right", 8),
        finding("stone", "left"),
        finding("fracture"),
    ]
    ours = [said("nodule", "right"), said("stone", "right"), said("splenic lesion"), said("fracture"), said("fracture")]
    by_kind = scoring.tallies(matched(ours, there))
    assert by_kind == {
        "nodule": Tally(1, 0, 1), "stone": Tally(0, 1, 1), "splenic lesion": Tally(0, 1, 0), "fracture": Tally(1, 1, 0),
    }  # fmt: skip
    assert scoring.micro(by_kind) == Tally(2, 3, 2)
    assert scoring.summed([by_kind, by_kind])["stone"] == Tally(0, 2, 2)


def test_the_same_object_said_twice_counts_twice() -> None:
    nodule = said("nodule", "left")
    assert scoring.micro(scoring.tallies(matched([nodule, nodule], [finding("nodule", "left")]))) == Tally(1, 1, 0)


def test_among_equals_the_nearest_sizes_are_paired() -> None:
    there = [finding("nodule", "right", 30), finding("nodule", "right", 10), finding("nodule", "left", 20)]
    matching = matched([said("nodule", "right", 11), said("nodule", "right", 28), said("nodule", "left", None)], there)
    assert sorted(scoring.size_errors(matching)) == [1, 2]
    assert len(matching.pairs) == 3


def test_tallies_give_precision_recall_and_f1_and_nothing_where_nothing_is_counted() -> None:
    tally = Tally(6, 2, 4)
    assert (tally.precision, tally.recall) == (0.75, 0.6)
    assert tally.f1 == pytest.approx(2 / 3)
    assert all(math.isnan(share) for share in (Tally().precision, Tally().recall, Tally().f1))


def test_sides_are_judged_in_paired_organs_of_kinds_that_were_found_at_all() -> None:
    there = [finding("nodule", "right"), finding("stone", "left"), finding("effusion", "left"), finding("fracture")]
    assert scoring.sides([said("nodule", "left"), said("stone", "left"), said("fracture")], there) == (1, 2)


def test_equal_sizes_on_both_sides_are_not_taken_for_a_wrong_side() -> None:
    there = [finding("nodule", "right", 14.2), finding("nodule", "left", 14.4)]
    assert scoring.sides([said("nodule", "left", 14), said("nodule", "right", 14)], there) == (2, 2)


def test_a_report_with_sides_swapped_is_the_mirrored_one_and_scores_no_side() -> None:
    text = "Findings: Nodule of 8 mm in the right lung. Stone of 5 mm in the left kidney. Lesion of 9 mm in the spleen."
    swapped = text.replace("right", "LEFT").replace("left", "right").replace("LEFT", "left")
    assert scoring.same_findings(scoring.mirrored(parsed(text)), parsed(swapped))
    assert not scoring.same_findings(parsed(text), parsed(swapped))
    there = [finding("nodule", "right"), finding("stone", "left"), finding("splenic lesion")]
    assert scoring.sides(parsed(swapped), there) == (0, 2)
    assert scoring.micro(scoring.tallies(matched(parsed(swapped), there))) == Tally(1, 2, 2)


def test_the_same_findings_are_the_same_in_any_order_but_not_in_another_number() -> None:
    one = [said("nodule", "right", 3), said("stone", "left")]
    assert scoring.same_findings(one, [finding("stone", "left"), finding("nodule", "right")])
    assert not scoring.same_findings(one, [*one, said("stone", "left")])


def test_a_closed_answer_is_right_where_its_letter_stands_with_a_point() -> None:
    assert scoring.closed_right("The answer is B. left", "B. left")
    assert not scoring.closed_right("left", "B. left")
    assert not scoring.closed_right("A. right", "B. left")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B. left lung", "B"), ("b", ""), ("B", "B"), ("It lies in the left lung.", "B"), ("A nodule is seen.", ""),
     ("E. heart", ""), ("In the left lung or the spleen", ""), ("", "")],
)  # fmt: skip
def test_the_choice_is_told_by_letter_or_by_words(answer: str, letter: str) -> None:
    assert scoring.chosen(answer, "Where is the nodule? Choices: A. right lung B. left lung C. spleen") == letter


def test_right_answers_to_made_questions_are_scored_right_and_the_other_letters_wrong() -> None:
    for seed in range(50):
        for exchange in questions(made_truth(seed), random.Random(seed)):
            if exchange.closed:
                assert scoring.closed_right(exchange.answer, exchange.answer)
                assert scoring.chosen(exchange.answer, exchange.question) == exchange.answer[0]
                assert scoring.chosen(exchange.answer[3:], exchange.question) == exchange.answer[0]
                assert sum(scoring.closed_right(f"{letter}.", exchange.answer) for letter in "ABCDE") == 1


def test_an_interval_holds_the_estimate_narrows_with_studies_and_can_be_drawn_again() -> None:
    rng = random.Random(3)
    rows = [Tally(rng.randrange(4), rng.randrange(2), rng.randrange(2)) for _ in range(200)]

    def f1(some: list[Tally]) -> float:
        return sum(some, Tally()).f1

    low, high = scoring.interval(rows, f1)
    assert low < f1(rows) < high
    few_low, few_high = scoring.interval(rows[:20], f1)
    assert few_high - few_low > high - low
    assert scoring.interval(rows, f1) == (low, high) != scoring.interval(rows, f1, seed=1)


def test_an_interval_of_nothing_is_not_a_number_and_of_equal_rows_has_no_width() -> None:
    assert all(math.isnan(end) for end in scoring.interval([], sum))
    assert all(math.isnan(end) for end in scoring.interval([Tally()], lambda rows: sum(rows, Tally()).f1))
    assert scoring.interval([2.0, 2.0], lambda rows: sum(rows) / len(rows)) == (2.0, 2.0)
