"""What a client keeps of each request and of each study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.worker.events import Event, Failed, OnEvent
from MedVLMReaderLib.worker.protocol import view_plain, volume_plain, writing

Needed = Literal["program", "voxels", "model", "study"]
"""What must be there first, each with what stands before it but for the voxels: those are written, and no model is
loaded for them."""


@dataclass(frozen=True)
class Choice:
    """Which model, and how it is loaded; see `reader.load`."""

    model: str = "built-in"
    precision: str = "auto"
    device: str | None = None
    revision: str | None = None
    offline: bool = False

    def plain(self) -> dict[str, Any]:
        """As a message has it."""
        return dict(vars(self))


@dataclass(eq=False)
class Study:
    """Volumes that are to be asked about. Their files exist while the worker may have to read them."""

    number: int
    volumes: tuple[Volume, ...]
    view: View | None
    files: list[Path] = field(default_factory=list)
    written: bool = False

    @property
    def there(self) -> bool:
        """Whether its files are written, and nobody has cleared them away since."""
        return self.written and all(path.exists() for path in self.files)

    def request(self) -> dict[str, Any]:
        """The message that has the worker see it, once all is written."""
        volumes = [volume_plain(v, path.name) for v, path in zip(self.volumes, self.files, strict=True)]
        return {"request": "see", "study": self.number, "volumes": volumes, "view": view_plain(self.view)}

    def write(self, folder: Path) -> Iterator[None]:
        """Write the voxels, a piece at a step. Raises OSError, and ReaderError for voxels that are no numbers."""
        self.remove()
        self.files = [folder / f"study-{self.number}-{n}.npy" for n in range(len(self.volumes))]
        for volume, path in zip(self.volumes, self.files, strict=True):
            yield from writing(path, volume.values)
        self.written = True

    def remove(self) -> None:
        """Remove the files."""
        for path in self.files:
            path.unlink(missing_ok=True)
        self.files, self.written = [], False


@dataclass(eq=False)
class Job:
    """One request: what is sent, what it needs, and who is told."""

    number: int
    tell: OnEvent
    needs: Needed
    content: Callable[[], dict[str, Any]]
    """The message, made when it is sent: earlier answers of a chat may still be on their way before."""
    done: Callable[[dict[str, Any]], Event]
    """The last event, of the worker's last message."""
    study: Study | None = None
    choice: Choice | None = None
    """The model to use from now on."""
    failed: Callable[[Failed], Failed] = lambda failed: failed
    """What a failure leaves behind."""
    words: list[str] = field(default_factory=list)
    stopping: float | None = None
    """When it was told to stop."""

    def said(self) -> str:
        """What was written so far."""
        return "".join(self.words)


@dataclass(eq=False)
class Step:
    """What the worker is doing for a job: the job itself, or what it needs first."""

    number: int
    job: Job
    what: Literal["load", "see", "job"]


def as_tuple(volumes: Volume | Sequence[Volume]) -> tuple[Volume, ...]:
    """One volume or several, as several."""
    return (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
