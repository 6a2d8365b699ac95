"""What goes between client and worker: one JSON object a line, arrays as .npy files in a private folder; no pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.volume import View, Volume

VERSION = 1
LONGEST = 1 << 20
"""Bytes of a line, its end included."""
PIECE = 4 << 20
"""Bytes of an array that are written at a time, so that a view can do so between two pictures."""
REQUESTS = frozenset({"load", "needs", "see", "ask", "look", "verify", "prepared", "export", "forget"})
"""What a worker is asked for, beside "hello" and "stop"."""
_FILE = re.compile(r"[a-z0-9_-]+\.(npy|json)")


class Broken(Exception):
    """What came is not of this protocol."""


def line(content: Mapping[str, Any]) -> bytes:
    """A message as it is sent. ReaderError where it is too long."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=_plain).encode() + b"\n"
    if len(text) > LONGEST:
        raise ReaderError(f"The text makes {len(text)} bytes; {LONGEST} can be passed on at once. Shorten it.")
    return text


def message(line: bytes) -> dict[str, Any]:
    """The message that `line` wrote. `Broken` where there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as wrong:
        raise Broken(f"no JSON: {line[:80]!r}") from wrong
    if not isinstance(content, dict):
        raise Broken(f"no message: {line[:80]!r}")
    return content


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"Messages are of plain data only, not {type(value).__name__}.")


class Lines:
    """Cuts what arrives in chunks into lines."""

    def __init__(self) -> None:
        self.rest = b""

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that are now whole, without their ends. `Broken` where one is longer than allowed."""
        *whole, self.rest = (self.rest + chunk).split(b"\n")
        for one in whole:
            if len(one) >= LONGEST:
                raise Broken(f"a line of {len(one)} bytes")
            yield one
        if len(self.rest) >= LONGEST:
            raise Broken(f"a line of more than {LONGEST} bytes")


# ---- Arrays ---------------------------------------------------------------------------------------------------------


def named(folder: Path, name: object) -> Path:
    """A file of the private folder. `Broken` where the name leads elsewhere."""
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise Broken(f"no file name: {name!r}")
    return folder / name


def writing(path: Path, values: Array) -> Iterator[None]:
    """Write an array of numbers, (k, ...), as .npy, a piece at a step. Raises OSError."""
    if values.dtype.kind not in "biuf":
        raise ReaderError(f"Voxels of type {values.dtype} cannot be read. Convert the volume to numbers.")
    with path.open("xb") as file:
        header = np.lib.format.header_data_from_array_1_0(values)
        np.lib.format.write_array_header_1_0(file, {**header, "fortran_order": False})
        step = max(1, PIECE // max(1, values[:1].nbytes))
        for start in range(0, len(values), step):
            file.write(np.ascontiguousarray(values[start : start + step]).data)
            yield


def write_array(path: Path, values: Array) -> None:
    """The same at once."""
    for _ in writing(path, values):
        pass


def read_array(path: Path) -> Array:
    """The array of a .npy file. `Broken` where it is none."""
    try:
        values: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as wrong:
        raise Broken(f"array {path.name}: {wrong}") from wrong
    return values


def volume_plain(volume: Volume, name: str) -> dict[str, Any]:
    """A volume as a message has it; its voxels are in the file `name`."""
    return {
        "file": name, "affine": volume.grid.affine, "modality": volume.modality, "source": volume.source,
        "notes": list(volume.notes),
    }  # fmt: skip


def volume_from(folder: Path, content: Mapping[str, Any]) -> Volume:
    """The volume that a message speaks of."""
    try:
        values = read_array(named(folder, content["file"]))
        grid = Grid(values.shape, np.array(content["affine"], np.float64))
        return Volume(values, grid, content["modality"], str(content["source"]), tuple(content["notes"]))
    except (KeyError, TypeError, ValueError) as wrong:
        raise Broken(f"no volume: {wrong}") from wrong


def write_reading(folder: Path, name: str, reading: Reading) -> str:
    """Write a reading, its arrays uncompressed, into the private folder; the name of its first file."""
    content, arrays = reading.plain()
    for key, values in arrays.items():
        write_array(folder / f"{name}-{key}.npy", values)
    file = f"{name}.json"
    content["arrays"] = {key: f"{name}-{key}.npy" for key in arrays}
    (folder / file).write_text(json.dumps(content, allow_nan=False, default=_plain))
    return file


def read_reading(folder: Path, name: object) -> Reading:
    """The reading that `write_reading` wrote; its files are gone then. `Broken` where they are no reading."""
    path = named(folder, name)
    try:
        content = json.loads(path.read_bytes())
        files = {str(key): named(folder, file) for key, file in content.pop("arrays").items()}
        reading = Reading.from_plain(content, {key: read_array(file) for key, file in files.items()})
    except (OSError, KeyError, AttributeError, ValueError, ReaderError) as wrong:
        raise Broken(f"reading {path.name}: {wrong}") from wrong
    for used in (path, *files.values()):
        used.unlink(missing_ok=True)
    return reading


def view_plain(view: View | None) -> dict[str, Any] | None:
    """JSON-ready."""
    return None if view is None else asdict(view)


def view_from(content: Mapping[str, Any] | None) -> View | None:
    """What `view_plain` wrote."""
    if content is None:
        return None
    try:
        r, a, s = (float(x) for x in content["cursor_ras"])
        return View(float(content["window"]), float(content["level"]), (r, a, s))
    except (KeyError, TypeError, ValueError) as wrong:
        raise Broken(f"no view: {wrong}") from wrong


def grids_plain(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [{"shape": list(grid.shape), "affine": grid.affine.tolist()} for grid in grids]


def grids_from(content: Sequence[Mapping[str, Any]]) -> tuple[Grid, ...]:
    """What `grids_plain` wrote."""
    return tuple(Grid(tuple(one["shape"]), np.array(one["affine"])) for one in content)
