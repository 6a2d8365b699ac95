"""Does this installation read as it should? The shipped sample's reading, compared with the one that was shipped."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.files import read
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.reading import Reading, write_whole
from MedVLMReaderLib.resources import resource, resources_folder
from MedVLMReaderLib.volume import Volume

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

MODEL = "built-in"
SAMPLE, REFERENCE = "sample/sample.nii.gz", "sample/reference.json"
TOKENS = 16
"""Numbers of the visual tokens that are compared, evenly chosen."""
TOLERANCE = 0.01
"""Of the visual tokens, as a part of their standard deviation: another processor rounds otherwise."""

Figures = dict[str, Any]


def sample() -> Volume:
    """The shipped sample study."""
    return read(resource(SAMPLE))


def reference() -> Figures:
    """What the sample's reading should be. Raises ReaderError where the file is missing or damaged."""
    path = resource(REFERENCE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReaderError(f"'{path}' is damaged ({error}). Install MedVLM Reader again.") from error
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise ReaderError(f"'{path}' should hold {', '.join(sorted(_FIELDS))}. Install MedVLM Reader again.")
    return content


_FIELDS = {"model", "revision", "question", "text", "tokens", "grids", "sentences"}


def measured(reader: Reader, volume: Volume) -> Figures:
    """The reading of a study in the figures that are compared, as plain data."""
    seen = reader.see(volume)
    reading = reader.report(seen)
    tokens = np.asarray(seen.tokens.detach().cpu().numpy(), np.float64)
    return {
        "model": reading.model,
        "revision": reading.revision,
        "question": reading.question,
        "text": reading.text,
        "tokens": _token_figures(tokens),
        "grids": [{"shape": list(grid.shape), "affine": np.round(grid.affine, 4).tolist()} for grid in reading.grids],
        "sentences": [
            {"text": reading.text[slice(*span)], "peak_ras_mm": _peak(reading, n)}
            for n, span in enumerate(reading.sentences)
        ],
    }


def _peak(reading: Reading, sentence: int) -> list[float] | None:
    """(r, a, s) of a sentence's heatmap; None where it has none."""
    try:
        return [round(float(x), 3) for x in reading.heatmap(sentence).peak()]
    except ReaderError:
        return None


def _token_figures(tokens: Array) -> Figures:
    chosen = np.linspace(0, tokens.size - 1, TOKENS).round().astype(int)
    return {
        "shape": list(tokens.shape),
        "mean": round(float(tokens.mean()), 6),
        "deviation": round(float(tokens.std()), 6),
        "some": np.round(tokens.ravel()[chosen], 6).tolist(),
    }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines that say what differs; none where all is right."""
    wrong = [f"{name}: '{found[name]}' instead of '{expected[name]}'"
             for name in ("model", "revision", "question") if found[name] != expected[name]]  # fmt: skip
    wrong += _token_differences(expected["tokens"], found["tokens"])
    if found["text"] != expected["text"]:
        wrong += changed(expected["text"], found["text"], "text")
        return wrong  # other sentences have other peaks
    grids = [Grid((k, j, i), np.array(grid["affine"])) for grid in found["grids"] for k, j, i in [grid["shape"]]]
    for n, (old, new) in enumerate(zip(expected["sentences"], found["sentences"], strict=True), start=1):
        if not _within_a_cell(old["peak_ras_mm"], new["peak_ras_mm"], grids):
            wrong.append(f"sentence {n}: attention peaks at {new['peak_ras_mm']} mm instead of {old['peak_ras_mm']} mm")
    return wrong


def _token_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    if found["shape"] != expected["shape"]:
        return [f"visual tokens: shape {found['shape']} instead of {expected['shape']}"]
    old, new = (np.array([one["mean"], one["deviation"], *one["some"]]) for one in (expected, found))
    largest = float(np.abs(new - old).max()) / max(float(expected["deviation"]), 1e-9)
    if largest <= TOLERANCE:
        return []
    return [f"visual tokens: off by {largest:.3g} of their standard deviation; up to {TOLERANCE:g} is rounding"]


def _within_a_cell(old: Any, new: Any, grids: list[Grid]) -> bool:
    """Whether two places are at most a cell apart, in the cells of any of the grids that the model looked through."""
    if old is None or new is None:
        return old is new
    steps = [np.abs(grid.to_index(np.array(old)) - grid.to_index(np.array(new))).max() for grid in grids]
    return bool(min(steps) <= 1 + 1e-3)


def regenerate(found: Figures) -> tuple[Path, list[str]]:
    """Make `found` the reference; its path, and how it differs from the one before. Raises ReaderError."""
    path = resources_folder() / REFERENCE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole({path: after.encode()})
    except OSError as error:
        raise ReaderError(f"'{path}' could not be written ({error.strerror}). Regenerate in a checkout.") from error
    return path, changed(before, after, path.name)


def changed(before: str, after: str, name: str) -> list[str]:
    """The lines of a unified diff."""
    lines = before.splitlines(), after.splitlines()
    return list(difflib.unified_diff(*lines, f"{name}, expected", f"{name}, found", lineterm="", n=1))
