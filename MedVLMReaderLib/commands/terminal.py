"""What the commands share: lines on the terminal, progress, Ctrl-C, loading a model and making sure of a folder."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from MedVLMReaderLib import ReaderError

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader
    from MedVLMReaderLib.volume import Volume

T = TypeVar("T")
MODEL_PACKAGES = ("torch", "tokenizers", "safetensors", "transformers")


class Unprinted:
    """Why stdout or stderr took no more, where that is no closed pipe."""

    reason = ""


def say(text: str = "", *, end: str = "\n", to: TextIO | None = None) -> None:
    """Print at once; a closed pipe or a full disk behind it must not cost the reading, so that printing just ends."""
    stream = to or sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):  # `medvlmreader models | head -1` has read all that it wanted
            Unprinted.reason = reason(error)


def say_json(content: dict[str, Any]) -> None:
    """Print one object, the only thing on stdout."""
    say(json.dumps(content, indent=1, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    """Paths and numpy's numbers and arrays for JSON."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}.")


def warn(text: str) -> None:
    """A line on stderr that is no error."""
    say(text, to=sys.stderr)


def step(text: str) -> None:
    """What is going on, on stderr, where a person looks at it."""
    if sys.stderr.isatty():
        say(text, to=sys.stderr)


def bar(steps: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The steps with a progress bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    bars: Iterable[T] = tqdm(steps, desc=what, total=total, disable=None, leave=False)
    return bars


class Stop:
    """While it is entered, Ctrl-C sets a flag instead of ending the program; a second Ctrl-C ends it.

    The flag is what calling it returns, and stays after leaving.
    """

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self) -> bool:
        return self.wanted

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        # not print: the interrupted line may be one, and its stream cannot be entered twice
        os.write(2, b"\nStopping; what was written is kept. Ctrl-C again ends at once.\n")


def loaded(model: str, how: Namespace | None = None) -> Reader:
    """The reader with a model, loaded as the options say.

    Raises ReaderError where a package is missing, or the model cannot be had or is not what it should be.
    """
    step(f"Loading the model '{model}' ...")
    loaded_packages()
    from MedVLMReaderLib.reader import load

    if how is None:
        return load(model)
    with arriving(model) as progress:
        return load(
            model, precision=how.precision, device=how.device, revision=how.revision, offline=how.offline,
            progress=progress,
        )  # fmt: skip


@contextmanager
def arriving(model: str) -> Iterator[Callable[[str, int, int], None]]:
    """Says on stderr what is about to be fetched, and shows how far it is where that is a terminal."""
    from tqdm import tqdm

    begun = False
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as shown:

        def told(name: str, done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                begun = True
                say(fetching(model), to=sys.stderr)
            shown.set_description(name, refresh=False)
            shown.total = total
            shown.update(done - shown.n)

        yield told


def fetching(model: str) -> str:
    """Which model is fetched from where, its size and licence as far as the table knows them."""
    from MedVLMReaderLib.memory import gigabytes
    from MedVLMReaderLib.models import CARDS

    card = CARDS.get(model)
    source = card.source if card else model
    licence = "" if card is None or card.licence == "unknown" else card.licence
    doubt = "?" if card and licence and "licence" in card.unsure else ""
    size = f"about {gigabytes(2 * card.parameters)}, " if card else ""
    return (
        f"Fetching '{model}' from https://huggingface.co/{source}: {size}licence "
        f"{licence or 'as its page says'}{doubt}. Ctrl-C stops it; what has arrived is kept."
    )


def loaded_packages() -> None:
    """Load what models need, transformers' own advice silenced. Raises ReaderError where a package is missing."""
    try:
        for name in MODEL_PACKAGES:
            importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] not in MODEL_PACKAGES:
            raise
        raise ReaderError(
            f"Models need the package '{missing.name}', which is not installed. Run: pip install 'medvlmreader[models]'"
        ) from missing
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def scan(study: Path, series: str | None) -> Volume:
    """The volume that STUDY and --series name."""
    from MedVLMReaderLib.files import read

    step("Reading the scan ...")
    return read(study, series)


def check_writable(folder: Path) -> None:
    """Raises ReaderError where files could not be written into `folder`; makes what is missing, and leaves nothing.

    Asked before long work, so that it is not done in vain.
    """
    made: list[Path] = []
    probe = folder / f".{os.getpid()}.part"
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
    except OSError as error:
        raise ReaderError(
            f"'{folder}' cannot be written ({reason(error)}). Choose another place with --out."
        ) from error
    finally:
        try:
            probe.unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        except OSError:
            pass  # not made after all, or somebody else has put something there


def reason(error: OSError) -> str:
    """What went wrong, without the path: that is said where it helps."""
    return error.strerror or str(error)


def unwritable(place: Path, error: OSError) -> ReaderError:
    """The message for what the disk refused."""
    return ReaderError(f"'{place}' cannot be written ({reason(error)}). Choose another place with --out.")
