"""`chat`: questions about a study, one a line from the terminal or a pipe, each knowing those before it."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands import FINE, INTERRUPTED, WRONG
from MedVLMReaderLib.commands.keeping import provenance
from MedVLMReaderLib.commands.terminal import (
    Stop,
    check_writable,
    loaded,
    say,
    say_json,
    scan,
    step,
    unwritable,
    warn,
)

if TYPE_CHECKING:
    from MedVLMReaderLib.chat import Chat
    from MedVLMReaderLib.place import Place
    from MedVLMReaderLib.reader import Options
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.session import ChatSession

END = "/end"
_AGAIN, _EDIT, _AT = (
    re.compile(form) for form in (r"/again(?:\s+(\d+))?", r"/edit\s+(\d+)\s+(.*)", r"/at\s+(\S+)\s+(.*)")
)
_HOW = "Lines that begin with '/': /again [SEED], /edit N QUESTION, /at R,A,S[,SIZE,SIZE,SIZE] QUESTION, /end."


def chat(arguments: Namespace) -> int:
    """Answer questions until there are no more."""
    from MedVLMReaderLib.session import ChatSession

    volume = scan(arguments.study, arguments.series)
    session = ChatSession.load(arguments.session) if arguments.session else None
    folder = arguments.save or arguments.session
    if folder:
        check_writable(folder)
    talk = _Talk(_begun(loaded(arguments.model, arguments), volume, session), folder, arguments)
    if not talk.look():
        return INTERRUPTED
    failed = sum(not talk.answered(line) for line in _lines())
    if arguments.json:
        say_json({"turns": list(talk.turns()), "folder": folder})
    return WRONG if failed else FINE


def _begun(reader: Any, volume: Any, session: ChatSession | None) -> Chat:
    from MedVLMReaderLib.chat import Chat

    return Chat(reader, volume, session)


def _lines() -> Iterator[str]:
    """What is typed, up to the end or /end."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        if sys.stdin.isatty():
            say("> ", end="", to=sys.stderr)
        line = sys.stdin.readline()
        if not line or line.strip() == END:
            return
        if line.strip():
            yield line.strip()


@dataclass
class _Talk:
    chat: Chat
    folder: Path | None
    arguments: Namespace

    def look(self) -> bool:
        """Encode the study and say what must be known first; False where that was stopped."""
        from MedVLMReaderLib.study import Stopped

        step("Looking at the scan ...")
        try:
            with Stop() as stopped:
                seen = self.chat.see(stopped)
        except Stopped:
            return False
        for note in seen.notes:
            say(f"Note: {note}", to=sys.stderr if self.arguments.json else sys.stdout)
        step(_HOW)
        return True

    def answered(self, line: str) -> bool:
        """Answer one line and keep the chat; False where that could not be done, which has been said."""
        try:
            self._answer(line)
            if self.folder:
                self.chat.session.save(self.folder)
        except ReaderError as error:
            warn(f"medvlmreader: {error}")
            return False
        except OSError as error:
            if not self.folder:
                raise
            warn(f"medvlmreader: {unwritable(self.folder, error)}")
            return False
        return True

    def _answer(self, line: str) -> None:
        from MedVLMReaderLib.reading import Reading

        quiet = self.arguments.json
        if not (quiet or sys.stdin.isatty()):
            say(f"\n> {line}")
        with Stop() as stopped:
            for part in self._asked(line, self._options(), stopped):
                if isinstance(part, Reading):
                    self._tell(part)
                elif not quiet:
                    say(part, end="")

    def _tell(self, reading: Reading) -> None:
        """What is said after an answer: only what was not said of the study already."""
        quiet, known = self.arguments.json, self.chat.see().notes
        if not quiet:
            say()
        for note in reading.notes:
            if note not in known:
                say(f"Note: {note}", to=sys.stderr if quiet else sys.stdout)
        if not quiet:
            say(f"({provenance(reading)})")

    def _options(self) -> Options:
        from MedVLMReaderLib.reader import Options

        return Options(longest=self.arguments.longest, heatmaps=not self.arguments.no_heatmaps)

    def _asked(self, line: str, options: Options, stopped: Callable[[], bool]) -> Iterator[str | Reading]:
        if match := _AGAIN.fullmatch(line):
            seed = int(match[1]) if match[1] else self._next_seed()
            return self.chat.regenerate(seed, options=options, stopped=stopped)
        if match := _EDIT.fullmatch(line):
            return self.chat.edit(int(match[1]) - 1, match[2], options=options, stopped=stopped)
        if match := _AT.fullmatch(line):
            return self.chat.ask(match[2], _place(match[1]), options=options, stopped=stopped)
        if line.startswith("/"):
            raise ReaderError(f"'{line.split()[0]}' is not known here. {_HOW}")
        return self.chat.ask(line, options=options, stopped=stopped)

    def _next_seed(self) -> int:
        """One more than the last answer's, so that each time another one is drawn."""
        turns = self.chat.session.turns
        return int(turns[-1].reading.options.get("seed", 0)) + 1 if turns else 0

    def turns(self) -> Iterator[dict[str, Any]]:
        """The chat, for JSON."""
        for turn in self.chat.session.turns:
            reading = turn.reading
            yield {
                "question": turn.question, "place": turn.place and turn.place.plain(), "text": reading.text,
                "complete": reading.complete, "model": reading.model, "revision": reading.revision,
                "options": reading.options, "notes": list(reading.notes),
            }  # fmt: skip


def _place(text: str) -> Place:
    from MedVLMReaderLib.place import Place

    try:
        numbers = [float(number) for number in text.split(",")]
        r, a, s, *size = numbers
        if len(size) == 3:
            return Place((r, a, s), None, (size[0], size[1], size[2]))
        if size:
            raise ValueError
        return Place((r, a, s))
    except ValueError:
        raise ReaderError(f"'{text}' is no place: three numbers in mm, R,A,S, or six for a region.") from None
