"""`Chat`: a reader and a session together. The study is encoded once; each question pays for its own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reader import Options, Reader, never, nothing
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import ChatSession, Turn, told
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.volume import View, Volume

ALWAYS_THE_SAME = Options()


class Chat:
    """Asks about one study, and keeps what was asked and answered in `session`."""

    def __init__(
        self,
        reader: Reader,
        volumes: Volume | Sequence[Volume],
        session: ChatSession | None = None,
        *,
        view: View | None = None,
    ) -> None:
        """A new chat, or one that goes on. ReaderError where the session is about another scan."""
        self.reader = reader
        self.volumes = (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
        keys = tuple(volume.key for volume in self.volumes)
        self.session = session or ChatSession(keys)
        if self.session.volumes != keys:
            raise ReaderError("This chat is about another scan. Choose the scan that it was begun with, or a new chat.")
        self.session.view = view or self.session.view
        self.seen: Seen | None = None

    def see(self, stopped: Callable[[], bool] = never) -> Seen:
        """The study after the encoder, which it passes once. Raises `Stopped` where that was stopped."""
        if self.seen is None:
            self.seen = self.reader.see(self.volumes, self.session.view, stopped)
        return self.seen

    def look(self, view: View) -> None:
        """Show the model what the screen shows now: the next question has the study encoded again."""
        self.session.view, self.seen = view, None

    def ask(
        self,
        question: str,
        place: Place | None = None,
        *,
        options: Options = ALWAYS_THE_SAME,
        stopped: Callable[[], bool] = never,
        looking: Callable[[], None] = nothing,
    ) -> Iterator[str | Reading]:
        """The words of the answer, and last its `Reading`, which then is the session's last turn; see `Reader.ask`.

        ReaderError where the question is empty, too long, or about a place outside the scan; `Stopped` where encoding
        was stopped. Then, and where the words are not taken to their end, the session stays as it was.
        """
        return self._asked(len(self.session.turns), question, place, options, stopped, looking)

    def edit(
        self, number: int, question: str, *, options: Options = ALWAYS_THE_SAME, stopped: Callable[[], bool] = never
    ) -> Iterator[str | Reading]:
        """Ask another question in the place of turn `number`, from 0; the turns after it go. As `ask` otherwise."""
        return self._asked(number, question, self._turn(number).place, options, stopped)

    def regenerate(
        self, seed: int, *, options: Options = ALWAYS_THE_SAME, stopped: Callable[[], bool] = never
    ) -> Iterator[str | Reading]:
        """Another answer to the last question, drawn with a seed; it takes the last one's place. As `ask` otherwise."""
        number = len(self.session.turns) - 1
        turn = self._turn(number)
        return self._asked(number, turn.question, turn.place, replace(options, sample=True, seed=seed), stopped)

    def _turn(self, number: int) -> Turn:
        if not 0 <= number < len(self.session.turns):
            raise ReaderError(f"The chat has no question {number + 1}: it has {len(self.session.turns)}.")
        return self.session.turns[number]

    def _asked(
        self, number: int, question: str, place: Place | None, options: Options, stopped: Callable[[], bool],
        looking: Callable[[], None] = nothing,
    ) -> Iterator[str | Reading]:  # fmt: skip
        before, question = self.session.turns[:number], question.strip()
        asked = self.about(place) + question if question else ""
        seen = self.see(stopped)
        first = self._first_told(seen, before, asked, options)
        history = told(before[first:])
        for part in self.reader.ask(seen, asked, history=history, options=options, stopped=stopped, looking=looking):
            if isinstance(part, Reading):
                of = {"study": self.session.volumes[0], "sources": [volume.source for volume in self.volumes]}
                part = replace(
                    part,
                    notes=(*part.notes, *self._notes(part, before, first)),
                    preparation={**part.preparation, **of},
                )
                self.session.turns[number:] = [Turn(question, part, place)]
                self.session.first_told = first
            yield part

    def about(self, place: Place | None) -> str:
        """The words for a place: of the first series in which it lies. ReaderError where it lies in none."""
        if place is None:
            return ""
        for volume in self.volumes[:-1]:
            try:
                return place.about(volume)
            except ReaderError:
                continue
        return place.about(self.volumes[-1])

    def _first_told(self, seen: Seen, before: Sequence[Turn], asked: str, options: Options) -> int:
        """The first turn that still fits beside the image, the question and an answer of fair length."""
        first = min(self.session.first_told, len(before))
        fair = min(options.longest, self.reader.context // 4)
        question = Message("user", asked)
        while first < len(before) and self.reader.left(seen, (*told(before[first:]), question)) < fair:
            first += 1
        return first

    def _notes(self, reading: Reading, before: Sequence[Turn], first: int) -> Iterator[str]:
        if first:
            turns = "question was" if first == 1 else f"{first} questions were"
            yield (
                f"The chat has outgrown what {reading.model} reads at once ({self.reader.context} tokens): the first "
                f"{turns} not told to it again. The image was."
            )
        now = (reading.model, reading.revision)
        others = dict.fromkeys((t.reading.model, t.reading.revision) for t in before[first:])
        for model, revision in others:
            if (model, revision) != now:
                yield f"Earlier answers of this chat were written by {model}, revision {revision}."
