"""Tensors in files: known by name and shape at once, read one at a time, never more in memory than the one wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from MedVLMReaderLib import ReaderError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
BLOCK = 1 << 24
"""Bytes that are converted at a time: a large tensor in another precision never lies in memory twice."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLE_NOTE = (
    "The weights of this model come as a Python pickle (.bin). They were opened in the mode that accepts tensors and "
    "nothing that runs; a copy as safetensors is safer."
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, not read yet."""

    name: str
    """In the file."""
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor in its own memory. ReaderError where the file ends too early or cannot be read."""
        out = torch.empty(self.shape, dtype=dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                if dtype == self.dtype:
                    self._take(file, out.view(-1))
                else:
                    for block in out.view(-1).split(BLOCK // self.dtype.itemsize):
                        part = torch.empty(block.shape, dtype=self.dtype)
                        self._take(file, part)
                        block.copy_(part)
        except OSError as error:
            raise damaged(self.path, error.strerror or error) from error
        return out

    def _take(self, file: Any, flat: Tensor) -> None:
        wanted = memoryview(flat.view(torch.uint8).numpy().data)
        while len(wanted):
            if not (got := file.readinto(wanted)):
                raise damaged(self.path, "it ends too early")
            wanted = wanted[got:]


@dataclass(frozen=True, eq=False)
class Unpickled:
    """A tensor of a .bin file, mapped from the disk."""

    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor in its own memory."""
        return self.tensor.to(dtype, copy=True)


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder by name, read when asked for."""

    def __init__(self, places: Mapping[str, Stored | Unpickled], notes: tuple[str, ...] = ()) -> None:
        self._places = dict(places)
        self.notes = notes
        """What the user should know of the files."""

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """The weights of a folder: one safetensors file, or several with an index; .bin files only where there is
        nothing else. ReaderError where a file is missing, damaged, or not what the index says."""
        if (folder / INDEX).is_file():
            return cls(_indexed(folder / INDEX, _header))
        if (folder / SINGLE).is_file():
            return cls(_header(folder / SINGLE))
        if (folder / PICKLED[1]).is_file():
            return cls(_indexed(folder / PICKLED[1], _unpickled), (PICKLE_NOTE,))
        if (folder / PICKLED[0]).is_file():
            return cls(_unpickled(folder / PICKLED[0]), (PICKLE_NOTE,))
        raise ReaderError(f"'{folder}' has no {SINGLE}. Get the model again.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name; nothing is read for them."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """How each is stored."""
        return {name: place.dtype for name, place in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._places[name].read(self._places[name].dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in another precision, converted block by block."""
        return self._places[name].read(dtype)

    def origin(self, name: str) -> str:
        """The name of a tensor in the files."""
        return self._places[name].name

    def renamed(self, names: Mapping[str, str], unused: Iterable[str] = ()) -> Shards:
        """With the beginnings of names translated; what begins with one of `unused` is knowingly left out.

        The longest beginning that fits counts; a name that none fits stays.
        """
        dropped = tuple(unused)
        kept = {name: place for name, place in self._places.items() if not name.startswith(dropped)}
        return Shards({translated(name, names): place for name, place in kept.items()}, self.notes)

    def below(self, beginning: str) -> Shards:
        """Those whose name begins so, without that beginning."""
        found = {n.removeprefix(beginning): p for n, p in self._places.items() if n.startswith(beginning)}
        return Shards(found, self.notes)

    def beside(self, *beginnings: str) -> Shards:
        """Those whose name begins with none of these."""
        return Shards({n: p for n, p in self._places.items() if not n.startswith(beginnings)}, self.notes)


def translated(name: str, names: Mapping[str, str]) -> str:
    """A name with its beginning looked up in a table; the longest that fits."""
    old = max((old for old in names if name.startswith(old)), key=len, default="")
    return names.get(old, "") + name.removeprefix(old)


def damaged(path: Path, why: object) -> ReaderError:
    """The error for a file that is not what it should be."""
    return ReaderError(f"'{path}' is damaged ({why}). Get the model again.")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder, in order; ReaderError where an index is broken."""
    for index, single in ((INDEX, SINGLE), PICKLED[::-1]):
        if (folder / index).is_file():
            return sorted({folder / file for file in index_of(folder / index).values()})
        if (folder / single).is_file():
            return [folder / single]
    return []


def index_of(path: Path) -> dict[str, str]:
    """Tensor -> file of an index; ReaderError where it is broken or names a file elsewhere."""
    try:
        table = json.loads(path.read_text())["weight_map"]
        if not (isinstance(table, dict) and table):
            raise ValueError("no weight_map")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    for file in table.values():
        if not (isinstance(file, str) and re.fullmatch(r"[\w][\w.-]*\.(safetensors|bin)", file)):
            raise damaged(path, f"it names the file {file!r:.60}")
    return dict(table)


Places = Mapping[str, Stored | Unpickled]


def _indexed(index: Path, opened: Callable[[Path], Places]) -> dict[str, Stored | Unpickled]:
    table = index_of(index)
    places: dict[str, Stored | Unpickled] = {}
    for file in sorted(set(table.values())):
        if not (index.parent / file).is_file():
            raise ReaderError(f"'{index.parent}' lacks {file}, which {index.name} lists. Get the model again.")
        found = opened(index.parent / file)
        listed = {name for name, place in table.items() if place == file}
        if odd := sorted(listed ^ found.keys()):
            raise damaged(index.parent / file, f"it and {index.name} disagree on the tensor '{odd[0]}'")
        places |= found
    return places


def _header(path: Path) -> dict[str, Stored | Unpickled]:
    try:
        with safe_open(path, "numpy"):
            pass  # checks that sizes, places and the file's length agree
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, error) from None
    header.pop("__metadata__", None)
    if odd := sorted({one["dtype"] for one in header.values()} - DTYPES.keys()):
        raise ReaderError(f"'{path}' holds numbers of the kind {odd[0]}, which are not read here.")
    return {
        name: Stored(name, path, DTYPES[one["dtype"]], tuple(one["shape"]), 8 + length + one["data_offsets"][0])
        for name, one in header.items()
    }


def _unpickled(path: Path) -> dict[str, Stored | Unpickled]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises its own, pickle's, and plain RuntimeError
        raise ReaderError(
            f"'{path}' holds more than tensors, or is damaged; it was not opened, because a pickle can run code. "
            "Use a model whose weights are safetensors."
        ) from error
    if not (isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())):
        raise ReaderError(f"'{path}' holds more than tensors by name. Use a model whose weights are safetensors.")
    return {str(name): Unpickled(str(name), tensor) for name, tensor in tensors.items()}
