"""`ChatSession`: questions about a study and their answers, as plain data; kept in a folder and read back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading, write_whole
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.volume import View

FORMAT, FILE = 1, "chat.json"
CUT_OFF = "[cut off]"
"""Stands after the text of an answer that was stopped or ran into its longest length."""
_TURN = re.compile(r"turn-\d{3,}-[0-9a-f]{8}")


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer."""

    question: str
    """As it was typed; `reading.question` is as it was asked, the words for its place before it."""
    reading: Reading
    place: Place | None = None

    @property
    def shown(self) -> str:
        """The answer for the screen, marked where it was cut off."""
        return self.reading.text if self.reading.complete else f"{self.reading.text} {CUT_OFF}".strip()


@dataclass
class ChatSession:
    """A chat about a study. Carries no patient identity and no path."""

    volumes: tuple[str, ...]
    """`Volume.key` of each series."""
    turns: list[Turn] = field(default_factory=list)
    view: View | None = None
    """What the screen showed when the study was encoded."""
    first_told: int = 0
    """The first turn that the model is still told; those before it no longer fit into its context."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is told of the chat so far."""
        return told(self.turns[self.first_told :])

    def save(self, folder: Path) -> None:
        """Write chat.json and a folder for each reading into `folder`; an older chat there is replaced.

        The readings come first: whenever this is interrupted, the older chat or this one is whole. Raises OSError.
        """
        folder = Path(folder)
        names = [_name(number, turn) for number, turn in enumerate(self.turns, 1)]
        for name, turn in zip(names, self.turns, strict=True):
            if not (folder / name / "reading.json").exists():
                turn.reading.save(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._plain(names), indent=1, allow_nan=False)
        write_whole({folder / FILE: text.encode()})
        for path in folder.iterdir():
            if path.is_dir() and _TURN.fullmatch(path.name) and path.name not in names:
                shutil.rmtree(path)

    def _plain(self, names: Sequence[str]) -> dict[str, Any]:
        turns = [
            {"question": turn.question, "place": turn.place and turn.place.plain(), "reading": name}
            for name, turn in zip(names, self.turns, strict=True)
        ]
        return {
            "format": FORMAT, "volumes": list(self.volumes), "view": self.view and asdict(self.view),
            "first_told": self.first_told, "turns": turns,
        }  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> ChatSession:
        """The chat in `folder`. Raises ReaderError where it is missing, damaged, or saved by a newer version."""
        folder = Path(folder)
        content = _content(folder)
        try:
            turns = [_turn(turn, folder) for turn in content["turns"]]
            view, first = content["view"], int(content["first_told"])
            if not 0 <= first <= len(turns):
                raise ValueError(f"first_told is {first} of {len(turns)} turns")
            volumes = tuple(str(key) for key in content["volumes"])
            return cls(volumes, turns, None if view is None else _view(view), first)
        except (KeyError, TypeError, ValueError) as wrong:
            raise ReaderError(f"{FILE} is damaged ({wrong!r}). Restore it from a copy, or begin a new chat.") from wrong


def told(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Questions and answers as the model is told them; one that was stopped before its first word is left out."""
    return tuple(
        message
        for turn in turns
        if turn.reading.text.strip()
        for message in (Message("user", turn.reading.question), Message("assistant", turn.reading.text))
    )


def _name(number: int, turn: Turn) -> str:
    """Another reading has another name, so that what is being replaced is never overwritten."""
    reading = turn.reading
    mark = json.dumps(reading.plain()[0], sort_keys=True, default=str) + str(
        [t.weights.tobytes() for t in reading.traces]
    )
    return f"turn-{number:03}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / FILE).read_bytes())
        number = int(content["format"])
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise ReaderError(f"The folder holds no {FILE}. Choose the folder of a saved chat.") from missing
    except (KeyError, TypeError, ValueError) as damage:
        raise ReaderError(f"{FILE} is damaged ({damage!r}). Restore it from a copy, or begin a new chat.") from damage
    if number > FORMAT:
        raise ReaderError(
            f"This chat was saved by a newer version (format {number}; this version reads up to {FORMAT}). "
            "Update MedVLM Reader."
        )
    return dict(content)


def _turn(content: dict[str, Any], folder: Path) -> Turn:
    name, place = str(content["reading"]), content["place"]
    if not _TURN.fullmatch(name):
        raise ValueError(f"'{name}' is no folder of a reading")
    try:
        reading = Reading.load(folder / name)
    except ReaderError as error:
        raise ReaderError(f"The answer to '{content['question']}', in {name}, cannot be read: {error}") from error
    return Turn(str(content["question"]), reading, None if place is None else Place.from_plain(place))


def _view(content: dict[str, Any]) -> View:
    r, a, s = (float(x) for x in content["cursor_ras"])
    return View(float(content["window"]), float(content["level"]), (r, a, s))
