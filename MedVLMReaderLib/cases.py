"""Data sets: volumes with what is said of them, read from the files in which they are published. No torch here.

Known: M3D-Cap (JSON), M3D-VQA (CSV), CT-RATE (CSV of reports), and plain CSV with the columns volume and report, or
volume, question and answer (with choices and type where there are any). Made studies are cases too.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError

TYPES = "plane", "phase", "organ", "abnormality", "location"
"""Question types of M3D-VQA, in the order of its numbers 1 to 5."""
MADE = "made:"
"""How the name of a made study begins; its seed follows, and "-mirrored" where its sides are exchanged."""
LETTERS = "ABCDE"
_CHOICES = re.compile(r"\s*Choices:\s*(?=[A-E]\.)")
_PART = re.compile(r"([A-E])\.\s*(.+?)(?=\s+[A-E]\.\s|\s*$)", re.DOTALL)
_FINDINGS = ("study_findings:", "discussion:")


@dataclass(frozen=True)
class Case:
    """A volume and a report on it, or a question with its answer."""

    volume: str
    """Path of the scan, or "made:SEED"."""
    report: str = ""
    question: str = ""
    answer: str = ""
    """Of a closed question the words of the right choice."""
    choices: tuple[str, ...] = ()
    """Of a closed question, in the order of their letters."""
    type: str = ""
    """One of TYPES, where it is known."""
    place: str = ""
    """Where it was read: file and row."""

    @property
    def closed(self) -> bool:
        return bool(self.choices)

    @property
    def asked(self) -> str:
        """The question as the papers ask it: choices after it."""
        lettered = " ".join(f"{letter}. {words}" for letter, words in zip(LETTERS, self.choices, strict=False))
        return f"{self.question} Choices: {lettered}" if self.choices else self.question

    @property
    def letter(self) -> str:
        """Of the right choice; "" where there is none."""
        return LETTERS[self.choices.index(self.answer)] if self.answer in self.choices else ""

    @property
    def expected(self) -> str:
        """The answer as the papers teach it: "B. spleen"."""
        return f"{self.letter}. {self.answer}" if self.letter else self.answer


# ---- Reading --------------------------------------------------------------------------------------------------------

Row = dict[str, str]


def read_cases(path: Path, root: Path | None = None, split: str = "") -> list[Case]:
    """The cases of a file, in its order. ReaderError where it is none of the known kinds.

    `root`: the folder that its paths start from; None: the file's own. `split`: of M3D-Cap, the part, such as "train".
    """
    below = root or path.parent
    try:
        if path.suffix.lower() == ".json":
            return list(_captions(json.loads(path.read_text(encoding="utf-8")), path, below, split))
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            make = _maker(rows.fieldnames or (), path)
            return [make(row, below, f"{path.name}, row {n}") for n, row in enumerate(rows, 2)]
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}).") from error
    except (ValueError, csv.Error) as error:
        raise ReaderError(f"'{path}' is no table of cases ({error}). Save it as CSV or JSON in UTF-8.") from error


def _captions(content: Any, path: Path, root: Path, split: str) -> Iterator[Case]:
    """M3D-Cap: {"train": [{"image": path, "text": path or words}, ...], ...}."""
    if not isinstance(content, dict) or not all(isinstance(part, list) for part in content.values()):
        raise ReaderError(f"'{path}' should hold lists of images with texts, one a split, as M3D_Cap.json does.")
    if split and split not in content:
        raise ReaderError(f"'{path}' has no split '{split}'. It has: {', '.join(content)}.")
    for name, part in content.items():
        for n, entry in enumerate(part if split in ("", name) else ()):
            if not isinstance(entry, dict) or not {"image", "text"} <= set(entry):
                raise ReaderError(f"'{path}', {name} {n}: an entry has 'image' and 'text', not {entry!r:.60}.")
            text, volume = str(entry["text"]), _found(root, str(entry["image"]))
            yield Case(volume, findings_of(_contents(root, text)), place=f"{path.name}, {name} {n}")


def _contents(root: Path, text: str) -> str:
    """The text itself, or that of the file which it names."""
    named = root / text
    is_name = len(text) < 300 and text.endswith(".txt")
    return named.read_text(encoding="utf-8", errors="replace") if is_name and named.is_file() else text


def findings_of(text: str) -> str:
    """What M3D's authors keep of a report: the words after "study_findings:", else after "discussion:", else all."""
    for mark in _FINDINGS:
        if mark in text:
            return text.partition(mark)[2].strip()
    return text.strip()


@dataclass(frozen=True)
class Labels:
    """Volumes with a number for each label: 0 or 1 where it is known, a score from 0 to 1 where a model says it."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    """Of each volume its path, and the numbers in the order of `names`."""

    @property
    def by_volume(self) -> dict[str, tuple[float, ...]]:
        return dict(self.rows)


def read_labels(path: Path, root: Path | None = None, *, known: bool = True) -> Labels:
    """A CSV of a column `volume` (or CT-RATE's `VolumeName`) and a column a label.

    ReaderError, with the rows, where a number is not 0 or 1 (`known`), or not from 0 to 1.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns, rows = list(table.fieldnames or ()), list(table)
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}).") from error
    except (ValueError, csv.Error) as error:
        raise ReaderError(f"'{path}' is no table of labels ({error}). Save it as CSV in UTF-8.") from error
    first = next((name for name in ("volume", "VolumeName") if name in columns), None)
    names = tuple(name for name in columns if name != first)
    if first is None or not names or not rows:
        raise ReaderError(f"'{path}' should have a column 'volume', a column for each label, and a row a volume.")
    wrong = [f"row {n}" for n, row in enumerate(rows, 2) if not all(_is_label(row[name], known) for name in names)]
    if wrong:
        allowed = "0 or 1" if known else "from 0 to 1"
        raise ReaderError(f"'{path}' has labels that are not {allowed}: {', '.join(wrong[:10])}. Mend them.")
    below = root or path.parent
    found = [(_found(below, row[first]), tuple(float(row[name]) for name in names)) for row in rows]
    if len(dict(found)) < len(found):
        raise ReaderError(f"'{path}' names a volume twice. Keep one row of each.")
    return Labels(names, tuple(found))


def _is_label(text: str | None, known: bool) -> bool:
    try:
        number = float(text or "")
    except ValueError:
        return False
    return number in (0.0, 1.0) if known else 0 <= number <= 1


def _maker(columns: Sequence[str], path: Path) -> Callable[[Row, Path, str], Case]:
    """What turns a row into a case, by the columns of its table."""
    for needed, make in _TABLES:
        if set(needed) <= set(columns):
            return make
    known = "; ".join(", ".join(needed) for needed, _ in _TABLES)
    raise ReaderError(f"'{path}' has the columns {', '.join(columns) or '(none)'}. Known tables have: {known}.")


def _m3d_question(row: Row, root: Path, place: str) -> Case:
    """M3D-VQA; rows without choices are open questions."""
    choices = tuple(row.get(f"Choice {letter}") or "" for letter in "ABCD")
    kept = choices if all(choices) else ()
    number = (row["Question Type"] or "").strip()
    kind = TYPES[int(number) - 1] if number in "12345" and number else number.lower()
    return Case(_found(root, row["Image Path"]), question=_text(row, "Question"), answer=_text(row, "Answer"),
                choices=kept, type=kind, place=place)  # fmt: skip


def _ct_rate(row: Row, root: Path, place: str) -> Case:
    """CT-RATE: findings, then impression."""
    parts = [_text(row, name) for name in ("Findings_EN", "Impressions_EN") if _text(row, name)]
    return Case(_found(root, row["VolumeName"]), "\n".join(parts), place=place)


def _plain_question(row: Row, root: Path, place: str) -> Case:
    question, answer = _text(row, "question"), _text(row, "answer")
    stem, *told = _CHOICES.split(question, 1)
    listed = row.get("choices") or ""
    choices = tuple(one.strip() for one in listed.split("|")) if listed else tuple(
        words.strip() for _, words in _PART.findall(told[0] if told else "")
    )  # fmt: skip
    if choices and (lettered := re.fullmatch(r"([A-E])(?:\.\s*(.*))?", answer, re.DOTALL)):
        n = LETTERS.index(lettered[1])
        answer = choices[n] if n < len(choices) and lettered[2] in (None, "", choices[n]) else answer
    kind = (row.get("type") or "").strip().lower()
    return Case(_found(root, row["volume"]), question=stem.strip(), answer=answer, choices=choices, type=kind,
                place=place)  # fmt: skip


def _plain_report(row: Row, root: Path, place: str) -> Case:
    return Case(_found(root, row["volume"]), _text(row, "report"), place=place)


_TABLES: tuple[tuple[tuple[str, ...], Callable[[Row, Path, str], Case]], ...] = (
    (("Image Path", "Question Type", "Question", "Answer"), _m3d_question),
    (("VolumeName", "Findings_EN"), _ct_rate),
    (("volume", "question", "answer"), _plain_question),
    (("volume", "report"), _plain_report),
)


def _text(row: Row, name: str) -> str:
    return (row.get(name) or "").strip()


def _found(root: Path, name: str) -> str:
    """The scan of a name: where it says, in CT-RATE's folders, or as NIfTI where .npy is named, as Med3DVLM has it."""
    if name.startswith(MADE):
        return name
    inner = name.removesuffix(".nii.gz").split("_")
    tries = [root / name, root.joinpath(inner[0], "_".join(inner[:2]), "_".join(inner[:3]), name)]
    if name.endswith(".npy"):
        tries.insert(0, root / f"{name.removesuffix('.npy')}.nii.gz")
    return str(next((path for path in tries if path.exists()), root / name))


def made_cases(seeds: Iterable[int], *, questions: bool = False, mirrored_every: int = 0) -> list[Case]:
    """Made studies with their reports, or with all of their questions. Every so many are mirrored."""
    from MedVLMReaderLib import phantom, phantom_report

    cases: list[Case] = []
    for seed in seeds:
        mirrored = bool(mirrored_every) and seed % mirrored_every == 0
        truth, name = phantom.made_truth(seed, mirrored=mirrored), f"{MADE}{seed}{'-mirrored' if mirrored else ''}"
        if not questions:
            cases.append(Case(name, phantom_report.report(truth), place=name))
            continue
        for n, one in enumerate(phantom_report.questions(truth, random.Random(seed)), 1):
            row = {"volume": name, "question": one.question, "answer": one.answer, "type": one.type}
            cases.append(replace(_plain_question(row, Path(), f"{name}, question {n}"), type=one.type))
    return cases


# ---- Faults ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong with a case."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def faults(cases: Iterable[Case], known_types: Sequence[str] = (*TYPES, "")) -> list[Fault]:
    """Everything wrong that can be told without reading a scan, in the order of the cases."""
    found: list[Fault] = []
    first: dict[tuple[object, ...], str] = {}
    for case in cases:
        found += [Fault(case.place, what) for what in _wrong(case, known_types)]
        same = case.volume, case.report, case.question, case.choices
        if same in first:
            found.append(Fault(case.place, f"the same as {first[same]}"))
        first.setdefault(same, case.place)
    return found


def _wrong(case: Case, known_types: Sequence[str]) -> Iterator[str]:
    if not case.volume.startswith(MADE) and not Path(case.volume).exists():
        yield f"there is no '{case.volume}'"
    if not case.question and not case.report:
        yield "the report is empty"
    if not case.question:
        return
    if not case.answer:
        yield "the answer is empty"
    if case.type not in known_types:
        yield f"the question type is '{case.type}'; known: {', '.join(name for name in known_types if name)}"
    if case.choices and case.answer and not case.letter:
        yield f"the answer '{case.answer}' is none of its choices: {', '.join(case.choices)}"


def checked(cases: Sequence[Case], *, skip: bool = False, known_types: Sequence[str] = (*TYPES, "")) -> list[Case]:
    """The cases without a fault. ReaderError, with the first faults, where there are some and `skip` is not chosen,
    and where no case is left."""
    wrong = faults(cases, known_types)
    named = "\n".join(f"  {fault}" for fault in wrong[:20])
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    if wrong and not skip:
        raise ReaderError(
            f"The data set has {len(wrong)} fault{'s' if len(wrong) > 1 else ''}:\n{named}{more}\n"
            "Mend them, or leave those cases out with --skip-faulty."
        )
    places = {fault.place for fault in wrong}
    kept = [case for case in cases if case.place not in places]
    if not kept:
        raise ReaderError(f"The data set has no case that can be used.\n{named}{more}".rstrip())
    return kept


# ---- The same study in two parts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """A study of one part that is in the other, too."""

    one: str
    other: str
    why: str

    def __str__(self) -> str:
        return f"{self.one} and {self.other}: {self.why}"


def shared(train: Iterable[Case], test: Iterable[Case]) -> list[Shared]:
    """Studies of the training part that are in the test part: by path, by content of the file, by words of the report.

    Each volume of the test part is named once.
    """
    learned = list({case.volume: case for case in train}.values())
    by_path = {case.volume: case for case in learned}
    asked = list({case.volume: case for case in test}.values())
    sizes = {_size(case.volume) for case in asked} - {0}  # most files need not be read to be told apart
    by_content = {_content(case.volume): case for case in learned if _size(case.volume) in sizes}
    by_report = {_words(case.report): case for case in learned if case.report}
    found = []
    for case in asked:
        if twin := by_path.get(case.volume):
            found.append(Shared(twin.volume, case.volume, "the same volume"))
        elif _size(case.volume) in sizes and (twin := by_content.get(_content(case.volume))):
            found.append(Shared(twin.volume, case.volume, "the same content"))
        elif case.report and (twin := by_report.get(_words(case.report))):
            found.append(Shared(twin.volume, case.volume, "the same report"))
    return found


def _size(volume: str) -> int:
    path = Path(volume)
    return path.stat().st_size if path.is_file() else 0


def _content(volume: str) -> str:
    with Path(volume).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _words(report: str) -> str:
    return " ".join(report.lower().split())
