"""What is said of a made study: its report, and questions of the five M3D types with their answers.

One canonical wording for every fact, so that little has to be learnt about language and a parser can read all of it
back. The question types are those of M3D-VQA (Bai et al. 2024, arXiv 2404.00578): plane, phase, organ, abnormality
and location, closed ones with lettered choices; size and free descriptions are added.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Finding, Kind, Side, Truth

Structure = tuple[str, Side]
QuestionType = Literal["plane", "phase", "organ", "abnormality", "location", "size", "open"]
T = TypeVar("T")

REPORT_REQUESTS = (
    "Describe the findings.",
    "Write a report of this scan.",
    "What does this scan show?",
    "Report the findings of this scan.",
    "Please describe this scan.",
)
REPORT_REQUEST = REPORT_REQUESTS[0]
"""The canonical one."""

NONE_OF_THESE = "none of these"
NOUN: dict[Kind, str] = {
    "nodule": "nodule", "effusion": "pleural effusion", "dark liver lesion": "dark lesion",
    "bright liver lesion": "bright lesion", "stone": "stone", "splenic lesion": "lesion", "fracture": "fracture",
}  # fmt: skip
"""What a finding is called next to its place."""

_ASKED = tuple(s for s in STRUCTURES if s[0] in ORGAN_OF.values())
"""Structures in which there can be a finding: asked of another one, the words alone would tell the answer."""
_SIDED: tuple[Kind, ...] = ("nodule", "effusion", "stone")
_PHASE = {"plain": "without contrast", "contrast": "with contrast"}


@dataclass(frozen=True)
class Exchange:
    """One question about a made study and its right answer."""

    type: QuestionType
    question: str
    """With " Choices: A. ... B. ..." at its end where closed."""
    answer: str
    """Where closed, the letter and the words of the choice: "A. axial"."""
    closed: bool
    structure: Structure | None = None
    """The structure asked about, where there is one."""


def report(truth: Truth) -> str:
    """Two lines, "Findings: ..." and "Impression: ...".

    A sentence for each finding, and one for each structure in view without a finding.
    """
    opening = f"{truth.plane.capitalize()} {truth.modality} {_PHASE[truth.phase]}."
    findings = " ".join([opening, *(description(truth, structure) for structure in _mentioned(truth))])
    return f"Findings: {findings}\nImpression: {_impression(truth)}"


def sentence(finding: Finding) -> str:
    """The finding with its place and its size in whole millimetres."""
    noun, where = NOUN[finding.kind].capitalize(), place((finding.organ, finding.side))
    if finding.kind == "fracture":
        return f"{noun} {where} with {millimetres(finding)} of lost height."
    return f"{noun} of {millimetres(finding)} {where}."


def description(truth: Truth, structure: Structure) -> str:
    """The sentences of the report about one structure; the normal sentence where nothing is found in it."""
    found = _found(truth, structure)
    return " ".join(sentence(f) for f in found) if found else normal(structure)


def normal(structure: Structure) -> str:
    """What is said of a structure without a finding."""
    if structure[0] == "pleura":
        return f"No {NOUN['effusion']} {place(structure)}."
    return f"The {name(structure)} is {'clear' if structure[0] == 'lung' else 'normal'}."


def name(structure: Structure) -> str:
    """Such as "right lung", "spleen" or "left pleural space"."""
    organ, side = structure
    return f"{side} {'pleural space' if organ == 'pleura' else organ}".strip()


def place(structure: Structure) -> str:
    """Where a finding lies: "in the right lung", "on the left" for an effusion, "of the spine"."""
    organ, side = structure
    if organ == "pleura":
        return f"on the {side}"
    return f"{'of' if organ == 'spine' else 'in'} the {name(structure)}"


def millimetres(finding: Finding) -> str:
    """The size in whole millimetres, at least one: "14 mm"."""
    return f"{max(1, round(finding.size_mm))} mm"


def questions(truth: Truth, rng: random.Random) -> list[Exchange]:
    """Open and closed questions about one study, each with its one right answer; wordings and choices drawn by `rng`.

    At least one closed question each of plane, phase, organ and abnormality; of location where there is a finding.
    """
    makers = (_plane, _phase, _organ, _abnormality, _location, _size, _open)
    return [exchange for make in makers for exchange in make(truth, rng)]


def _plane(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    wordings = (
        "In which plane was the scan acquired?", "What is the plane of this scan?", "Which plane does this scan have?",
    )  # fmt: skip
    others = [plane for plane in ("axial", "coronal", "sagittal") if plane != truth.plane]
    yield Exchange("plane", rng.choice(wordings), f"{truth.plane.capitalize()}.", False)
    yield _closed("plane", rng.choice(wordings), truth.plane, rng.sample(others, rng.choice((1, 2))), rng)


def _phase(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    wordings = ("Was contrast given?", "Is this scan with or without contrast?", "What is the phase of this scan?")
    right = _PHASE[truth.phase]
    yield Exchange("phase", rng.choice(wordings), f"{right.capitalize()}.", False)
    yield _closed("phase", rng.choice(wordings), right, [text for text in _PHASE.values() if text != right], rng)


def _organ(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    seen = list(truth.in_view)
    unseen = [structure for structure in STRUCTURES if structure not in truth.in_view]
    listed = ", ".join(name(structure) for structure in seen).capitalize() or "None"
    question = rng.choice(("Which organs are in the scan?", "What organs does this scan show?"))
    yield Exchange("organ", question, f"{listed}.", False)
    wordings = ("Is the {} in the scan?", "Does this scan show the {}?")
    for right, structures in (("yes", seen), ("no", unseen)):
        if structures:
            structure = rng.choice(structures)
            question = rng.choice(wordings).format(name(structure))
            yield _closed("organ", question, right, _other(right), rng, structure)
    if seen and unseen:
        wrong = rng.sample(unseen, min(len(unseen), rng.choice((1, 2, 3))))
        question = rng.choice(("Which of these is in the scan?", "Which of these does this scan show?"))
        yield _closed("organ", question, name(rng.choice(seen)), [name(structure) for structure in wrong], rng)


def _abnormality(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    for structure in _balanced(truth, rng):
        right = "yes" if _found(truth, structure) else "no"
        wordings = ("Is there a finding in the {}?", "Is there an abnormality in the {}?", "Is the {} abnormal?")
        yield _closed("abnormality", rng.choice(wordings).format(name(structure)), right, _other(right), rng, structure)
    yield _which_kind(truth, rng)
    yield from _is_there(truth, rng)


def _is_there(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    """Whether there is a finding of one kind, answered by what the report says of its organ; half of them present."""
    present = [kind for kind in ORGAN_OF if _of_kind(truth, kind)]
    kind = rng.choice(present if present and rng.random() < 0.5 else list(ORGAN_OF))
    asked = [structure for structure in _mentioned(truth) if structure[0] == ORGAN_OF[kind]]
    if asked:
        both = {"lung": "in the lungs", "kidney": "in the kidneys", "pleura": "in this scan"}
        question = f"Is there a {NOUN[kind]} {both.get(asked[0][0]) or place(asked[0])}?"
        yield Exchange("abnormality", question, " ".join(description(truth, s) for s in asked), False)


def _balanced(truth: Truth, rng: random.Random) -> list[Structure]:
    """As many structures with a finding as without, at most three each; one, where all in view are alike."""
    abnormal = [structure for structure in _mentioned(truth) if _found(truth, structure)]
    healthy = [structure for structure in _mentioned(truth) if structure in _ASKED and structure not in abnormal]
    count = min(len(abnormal), len(healthy), 3)
    if not count:
        return rng.sample(abnormal or healthy or list(_ASKED), 1)
    chosen = rng.sample(abnormal, count)
    other_sides = [s for s in healthy if any(s[0] == c[0] for c in chosen)]  # the hardest comparison first
    rest = [structure for structure in healthy if structure not in other_sides]
    return _shuffled([*chosen, *(_shuffled(other_sides, rng) + _shuffled(rest, rng))[:count]], rng)


def _which_kind(truth: Truth, rng: random.Random) -> Exchange:
    present = [kind for kind in ORGAN_OF if _of_kind(truth, kind)]
    absent = [kind for kind in ORGAN_OF if kind not in present]
    question = rng.choice(("Which of these is seen?", "Which of these abnormalities does this scan show?"))
    if not present or (len(absent) >= 2 and rng.random() < 0.25):
        return _closed("abnormality", question, NONE_OF_THESE, rng.sample(absent, min(len(absent), 3)), rng)
    wrong: list[str] = [*rng.sample(absent, min(len(absent), 2)), NONE_OF_THESE]
    return _closed("abnormality", question, rng.choice(present), wrong, rng)


def _location(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    for kind in _SIDED:  # of organs with sides: elsewhere the kind alone tells the place
        found = _of_kind(truth, kind)
        structures = [s for s in STRUCTURES if s in {(f.organ, f.side) for f in found}]
        if not found:
            continue
        thing = f"are the {NOUN[kind]}s" if len(found) > 1 else f"is the {NOUN[kind]}"
        answer = " and ".join(f"in the {name(s)}" for s in structures)
        yield Exchange("location", f"Where {thing}?", f"{answer.capitalize()}.", False)
        if len(structures) == 1:
            yield _where(thing, structures[0], rng)
    if truth.findings:
        yield _which_structure(truth, rng)


def _where(thing: str, right: Structure, rng: random.Random) -> Exchange:
    other: Structure = (right[0], "left" if right[1] == "right" else "right")
    if rng.random() < 0.5:
        return _closed("location", f"On which side {thing}?", right[1], [other[1]], rng, right)
    rest = [s for s in STRUCTURES if s[0] != right[0]]
    wrong = [other, *rng.sample(rest, rng.choice((0, 1, 2)))]
    return _closed("location", f"Where {thing}?", name(right), [name(s) for s in wrong], rng, right)


def _which_structure(truth: Truth, rng: random.Random) -> Exchange:
    abnormal = [structure for structure in _mentioned(truth) if _found(truth, structure)]
    seen = [structure for structure in _mentioned(truth) if structure in _ASKED and structure not in abnormal]
    unseen = [structure for structure in STRUCTURES if structure not in _mentioned(truth)]
    healthy = seen or unseen or [("heart", "")]
    wrong = rng.sample(healthy, min(len(healthy), rng.choice((1, 2, 3))))
    question = rng.choice(("Which of these has a finding?", "In which of these is there a finding?"))
    return _closed("location", question, name(rng.choice(abnormal)), [name(s) for s in wrong], rng)


def _size(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    for finding in truth.findings:
        structure = (finding.organ, finding.side)
        if sum(f.kind == finding.kind for f in _found(truth, structure)) > 1:
            continue
        wordings: tuple[str, ...] = ("How large is the {} {}?", "What is the size of the {} {}?")
        if finding.kind == "fracture":
            wordings = ("How much height is lost in the {} {}?",)
        question = rng.choice(wordings).format(NOUN[finding.kind], place(structure))
        yield Exchange("size", question, f"{millimetres(finding)}.", False, structure)


def _open(truth: Truth, rng: random.Random) -> Iterable[Exchange]:
    wordings = ("What is wrong with the {}?", "Describe the {}.", "What is seen in the {}?", "How is the {}?")
    abnormal = [structure for structure in _mentioned(truth) if _found(truth, structure)]
    healthy = [structure for structure in _mentioned(truth) if structure not in abnormal]
    for structure in rng.sample(abnormal, min(2, len(abnormal))) + rng.sample(healthy, min(2, len(healthy))):
        question = rng.choice(wordings).format(name(structure))
        yield Exchange("open", question, description(truth, structure), False, structure)


def _closed(
    kind: QuestionType,
    question: str,
    right: str,
    wrong: Sequence[str],
    rng: random.Random,
    structure: Structure | None = None,
) -> Exchange:
    """The question with its choices in random order."""
    choices = _shuffled([right, *wrong], rng)
    lettered = [f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False)]
    return Exchange(kind, f"{question} Choices: {' '.join(lettered)}", lettered[choices.index(right)], True, structure)


def _other(answer: str) -> list[str]:
    return ["no" if answer == "yes" else "yes"]


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    return rng.sample(items, len(items))


def _mentioned(truth: Truth) -> list[Structure]:
    """What the report speaks of: structures in view, or with a finding."""
    found = {(finding.organ, finding.side) for finding in truth.findings}
    return [structure for structure in STRUCTURES if structure in truth.in_view or structure in found]


def _found(truth: Truth, structure: Structure) -> list[Finding]:
    return [finding for finding in truth.findings if (finding.organ, finding.side) == structure]


def _of_kind(truth: Truth, kind: Kind) -> list[Finding]:
    return [finding for finding in truth.findings if finding.kind == kind]


def _impression(truth: Truth) -> str:
    """A sentence for each kind of finding in each structure, without counts or sizes."""
    ordered = [(f.kind, s) for s in _mentioned(truth) for f in _found(truth, s)]
    counted = Counter(ordered)
    said = [f"{NOUN[kind].capitalize()}{'s' * (counted[kind, s] > 1)} {place(s)}." for kind, s in counted]
    return " ".join(said) or "No abnormality."
