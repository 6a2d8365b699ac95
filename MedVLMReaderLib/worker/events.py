"""What a client is told of a request: any number of `Started`, `Progress` and `Word`, then exactly one of `FINAL`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.verdict import Verdict
from MedVLMReaderLib.volume import Volume

Stage = Literal["program", "download", "model", "study", "answer", "heatmap", "verification", "preparation", "export"]
"""What is being done: the program starts, a model comes over the net, a model is loaded, a study is encoded, ..."""
Trouble = Literal["mend", "memory", "crash", "protocol", "bug"]


@dataclass(frozen=True)
class Started:
    """A stage has begun. A question may have several: program, model and study come by themselves where missing."""

    stage: Stage


@dataclass(frozen=True)
class Progress:
    """How far a stage is, at most ten times a second."""

    stage: Stage
    done: int
    total: int
    """Bytes of a download, regions of a verification; 0 where the end is not known (`done` then only grows)."""


@dataclass(frozen=True)
class Word:
    """The next letters of the answer, to be added to those before. Plain text: never to be taken for HTML."""

    text: str


@dataclass(frozen=True)
class Loaded:
    """A model is ready."""

    name: str
    revision: str
    precision: str
    device: str
    context: int
    """Tokens that it reads at a time, image and answer among them."""
    request: str
    """The question that asks it for a report."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Saw:
    """A study is encoded."""

    study: int
    volume_keys: tuple[str, ...]
    """`Volume.key` of each series, worked out where it freezes nothing; what `ChatSession.volumes` holds."""
    key: str
    notes: tuple[str, ...]
    """What the user must know first: assumptions, limits, out of domain."""
    preparation: Mapping[str, Any]
    grids: tuple[Grid, ...]
    boxes: tuple[Grid, ...]

    @property
    def token_map(self) -> TokenMap:
        """The cells that heatmaps have."""
        return TokenMap(self.grids)


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer; whole, or stopped (`reading.complete` is False then)."""

    study: int
    reading: Reading
    number: int = 0
    """Which turn of the chat it now is, from 0."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Where the model looked."""

    volume: Volume
    """One volume in patient space, values sum to 1."""
    reading: Reading
    """The reading with the traces that it now has; another text, where one was given."""
    span: Span
    """Of `reading.text`."""
    method: str


@dataclass(frozen=True, eq=False)
class Verified:
    """Whether the image supports some words."""

    verdict: Verdict
    span: Span


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the model is shown: stacks of pictures in patient space, grey levels 0 to 1."""

    volumes: tuple[Volume, ...]


@dataclass(frozen=True)
class Exported:
    """A report is written."""

    files: tuple[Path, ...]


@dataclass(frozen=True)
class Needs:
    """Memory, before anything is loaded."""

    model: str
    device: str
    free: int
    """Bytes."""
    sizes: Mapping[str, int]
    """Bytes that the model needs in each precision that the device computes in, fullest first."""
    chosen: str
    """The precision that `auto` takes; "" where none fits."""


@dataclass(frozen=True)
class Cancelled:
    """The request was stopped before there was anything to show."""


@dataclass(frozen=True, eq=False)
class Failed:
    """It could not be done. The next request works: what is missing is started again by itself."""

    message: str
    """What happened. Shown as it is; plain text."""
    to_do: str = ""
    """What to do next; "" where `message` says it."""
    trouble: Trouble = "mend"
    words: str = ""
    """What was written of the answer before."""
    reading: Reading | None = None
    """The same as an incomplete reading without heatmaps, where there are words; then a turn of the session, too."""
    details: str = ""
    """For a report of the error: the end of what the worker printed, or a traceback. May name files of this machine."""

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.message} {self.to_do}".strip()


@dataclass(frozen=True)
class Exited:
    """The worker has ended: told to `Client.on_exit`, beside the `Failed` of the request that it ended."""

    code: int | None
    """None where it never started, negative for a signal."""
    wanted: bool
    """Whether the client ended it."""


Event: TypeAlias = (
    Started | Progress | Word | Loaded | Saw | Answered | Heatmap | Verified | Prepared | Exported | Needs
    | Cancelled | Failed
)  # fmt: skip
FINAL = (Loaded, Saw, Answered, Heatmap, Verified, Prepared, Exported, Needs, Cancelled, Failed)
"""The last event of a request; which one goes with which request stands at the client's methods."""
OnEvent = Callable[[Event], None]


def ignored(_: Event) -> None:
    """For who does not want to know."""
