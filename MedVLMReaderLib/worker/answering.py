"""What the worker does for each request: the reader, its studies, and what goes back. Imports torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.chat import Chat
from MedVLMReaderLib.choice import needs_of
from MedVLMReaderLib.memory import free_memory
from MedVLMReaderLib.options import Options
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.prefix import Prefix
from MedVLMReaderLib.reader import Reader, load, prepared
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import ChatSession, Turn
from MedVLMReaderLib.stopping import stoppable
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.worker.protocol import (
    Broken,
    grids_plain,
    read_reading,
    view_from,
    volume_from,
    volume_plain,
    write_array,
    write_reading,
)
from MedVLMReaderLib.worker.serving import Answers, Talk

Asked = dict[str, Any]
Answer = Mapping[str, Any]


class Answering:
    """One model and the studies that it has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader: Reader | None = None
        self.chats: dict[int, Chat] = {}
        self.requests: Answers = {
            "load": self.load, "needs": self.needs, "see": self.see, "ask": self.ask, "look": self.look,
            "verify": self.verify, "prepared": self.prepared, "export": self.export, "forget": self.forget,
        }  # fmt: skip

    def load(self, asked: Asked, talk: Talk) -> Answer:
        """Another model; the one before is dropped first."""
        talk.say("started", stage="model")
        self.reader = None
        self.chats.clear()
        self.give_back()

        def progress(_: str, done: int, total: int) -> None:
            talk.progress("download", done, total)

        reader = load(
            asked["model"], precision=asked["precision"], device=asked["device"], revision=asked["revision"],
            offline=asked["offline"], progress=progress,
        )  # fmt: skip
        self.reader, checkpoint = reader, reader.checkpoint
        assert checkpoint is not None
        return {
            "name": reader.model.name, "revision": reader.model.revision, "precision": checkpoint.precision,
            "device": checkpoint.device, "context": reader.context, "request": reader.model.report_request(),
            "notes": list(checkpoint.notes),
        }  # fmt: skip

    def needs(self, asked: Asked, _: Talk) -> Answer:
        """Memory in each precision, before loading."""
        found, _build, checkpoint = prepared(asked["model"], asked["device"], asked["revision"], True, lambda *_: None)
        sizes, chosen = needs_of(checkpoint)
        free = free_memory(checkpoint.device)
        return {"model": found.name, "device": checkpoint.device, "free": free, "sizes": sizes, "chosen": chosen}

    def see(self, asked: Asked, talk: Talk) -> Answer:
        """Encode a study."""
        talk.say("started", stage="study")
        volumes = [volume_from(self.folder, one) for one in asked["volumes"]]
        chat = Chat(self._reader(), volumes, view=view_from(asked["view"]))
        seen = chat.see(talk.counting("study"))
        self.chats[int(asked["study"])] = chat
        return {
            "volume_keys": list(chat.session.volumes), "key": seen.key, "notes": list(seen.notes),
            "preparation": seen.preparation, "grids": grids_plain(seen.token_map.grids),
            "boxes": grids_plain(seen.boxes),
        }  # fmt: skip

    def ask(self, asked: Asked, talk: Talk) -> Answer:
        """Answer a question, a word a message."""
        talk.say("started", stage="answer")
        chat, options = self._chat(asked), Options(**asked["options"])
        place = None if asked["place"] is None else Place.from_plain(asked["place"])
        last: str | Reading = ""

        def looking() -> None:
            talk.say("started", stage="heatmap")

        if asked["fresh"]:
            self._reader().prefix = Prefix()
        if "history" in asked:
            question = asked["question"] if place is None else chat.about(place) + asked["question"]
            parts = self._reader().ask(
                chat.see(), question, history=messages(asked), options=options, stopped=talk.stopped, looking=looking
            )
        else:
            turns = [turn(one) for one in asked["turns"]]
            chat.session = ChatSession(chat.session.volumes, turns, chat.session.view, int(asked["first_told"]))
            parts = chat.ask(asked["question"], place, options=options, stopped=talk.stopped, looking=looking)
        for last in parts:
            if isinstance(last, str):
                talk.say("word", text=last)
        assert isinstance(last, Reading)
        return {"reading": self._written(talk, last), "first_told": chat.session.first_told}

    def look(self, asked: Asked, talk: Talk) -> Answer:
        """Where the model looked by another method, or for another text."""
        talk.say("started", stage="heatmap")
        reading, chat = read_reading(self.folder, asked["reading"]), self._chat(asked)
        with self._stoppable(talk, "heatmap") as reader:
            looked = reader.look(
                chat.see(), reading, method=asked["method"], text=asked["text"], history=messages(asked)
            )
        return {"reading": self._written(talk, looked)}

    def verify(self, asked: Asked, talk: Talk) -> Answer:
        """Whether the image supports some words."""
        talk.say("started", stage="verification")
        reading, chat = read_reading(self.folder, asked["reading"]), self._chat(asked)
        start, stop = asked["span"]
        with self._stoppable(talk) as reader:
            verdict = reader.verify(
                chat.volumes, chat.see(), reading, (int(start), int(stop)), method=asked["method"] or None,
                view=chat.session.view, history=messages(asked), regions=int(asked["regions"]), seed=int(asked["seed"]),
                progress=lambda done, total: talk.progress("verification", done, total),
            )  # fmt: skip
        return {"verdict": asdict(verdict)}

    def prepared(self, asked: Asked, talk: Talk) -> Answer:
        """What the model is shown."""
        talk.say("started", stage="preparation")
        chat = self._chat(asked)
        shown = self._reader().model.prepared(chat.volumes, chat.session.view)
        names = [f"shown-{talk.number}-{n}.npy" for n in range(len(shown))]
        for name, volume in zip(names, shown, strict=True):
            write_array(self.folder / name, volume.values)
        return {"volumes": [volume_plain(v, name) for v, name in zip(shown, names, strict=True)]}

    def export(self, asked: Asked, talk: Talk) -> Answer:
        """A report as files."""
        from MedVLMReaderLib.worker.exporting import exported

        talk.say("started", stage="export")
        return {"files": [str(path) for path in exported(self.folder, asked)]}

    def forget(self, asked: Asked, _: Talk) -> Answer:
        """A study goes."""
        self.chats.pop(int(asked["study"]), None)
        return {}

    def give_back(self) -> None:
        """Free what is not used any more, and what was kept to be quicker."""
        if self.reader is not None:
            self.reader.prefix = Prefix()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _reader(self) -> Reader:
        if self.reader is None:
            raise ReaderError("No model is loaded. Load one.")
        return self.reader

    def _chat(self, asked: Asked) -> Chat:
        if (chat := self.chats.get(int(asked["study"]))) is None:
            raise Broken(f"an unknown study {asked['study']}")
        return chat

    def _written(self, talk: Talk, reading: Reading) -> str:
        return write_reading(self.folder, f"reading-{talk.number}", reading)

    @contextmanager
    def _stoppable(self, talk: Talk, stage: str = "") -> Iterator[Reader]:
        reader = self._reader()
        with stoppable(reader.model, talk.counting(stage) if stage else talk.stopped):
            yield reader


def messages(asked: Asked) -> tuple[Message, ...]:
    """The turns before a question."""
    return tuple(Message(one["role"], str(one["text"])) for one in asked["history"])


def turn(content: Mapping[str, Any]) -> Turn:
    """An earlier turn, as much of it as the model is told."""
    reading = Reading(
        str(content["question"]), str(content["text"]), bool(content["complete"]), (), (), str(content["model"]),
        str(content["revision"]),
    )  # fmt: skip
    return Turn(reading.question, reading)
