"""A reading's folder: the text, the reading itself, heatmap and pictures; and where they go when the disk refuses."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import bar, reason

if TYPE_CHECKING:
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.volume import Volume

REPORT, HEATMAP, PAGE = "report.txt", "heatmap.nii.gz", "report.html"
_DRAWN = re.compile(r"sentence-\d{2,}\.png|heatmap(-[\w-]+)?\.(nii\.gz|png)")


@dataclass
class Kept:
    """What became of a reading."""

    folder: Path | None = None
    files: list[Path] = field(default_factory=list)
    sentences: list[dict[str, Any]] = field(default_factory=list)
    """Of each sentence its text and, where it has a heatmap, peak, effective cells and picture."""
    skipped: list[str] = field(default_factory=list)
    """What there is no picture of, and why."""
    trouble: str = ""
    """Why `folder` is not the one asked for."""


def kept(reading: Reading, volume: Volume, out: Path, stopped: Callable[[], bool], question: str = "") -> Kept:
    """Write all of a reading into `out`; where not even its text can be kept there, into a temporary folder."""
    done = Kept(out)
    try:
        _write(reading, volume, stopped, question, done)
    except OSError as error:
        done.trouble = f"'{out}' could not be written ({reason(error)})."
        if not done.files:
            return _rescued(reading, volume, stopped, question, done.trouble)
        done.trouble += " The reading is there; `medvlmreader heatmap` draws the missing pictures once there is room."
    return done


def _rescued(reading: Reading, volume: Volume, stopped: Callable[[], bool], question: str, trouble: str) -> Kept:
    """The same into a temporary folder; where that fails too, the text has at least been printed."""
    done = Kept()
    try:
        done.folder = Path(tempfile.mkdtemp(prefix="medvlmreader-"))
        _write(reading, volume, stopped, question, done)
    except OSError as error:
        trouble += f" Nor could a temporary folder ({reason(error)})."
    if done.files:
        done.trouble = f"{trouble} The reading is kept in '{done.folder}'; move it from there."
        return done
    sentences: list[dict[str, Any]] = [{"text": reading.text[slice(*span)]} for span in reading.sentences]
    return Kept(None, sentences=sentences, trouble=f"{trouble} The text was printed; copy it from there.")


def _write(reading: Reading, volume: Volume, stopped: Callable[[], bool], question: str, done: Kept) -> None:
    """The reading and its text first: they are what cannot be made again."""
    from MedVLMReaderLib.reading import write_whole

    assert done.folder is not None
    folder = done.folder
    older = (folder / "reading.json").exists()
    reading.save(folder)
    write_whole({folder / REPORT: text_of(reading, question).encode()})
    done.files += [folder / REPORT, folder / "reading.json", folder / "arrays.npz"]
    if older:
        _clear(folder)
    if reading.traces and not stopped():
        _add_heatmap(reading, folder, done)
    for number in bar(range(len(reading.sentences)), "Pictures"):
        entry: dict[str, Any] = {"text": reading.text[slice(*reading.sentences[number])]}
        done.sentences.append(entry)
        if reading.traces and not stopped():
            entry |= _pictured(reading, number, volume, folder, done)
    _add_page(reading, question, folder, done)


def _clear(folder: Path) -> None:
    """Remove the pictures and heatmaps of an older reading, whose sentences are others."""
    for path in folder.iterdir():
        if _DRAWN.fullmatch(path.name):
            path.unlink()


def _add_page(reading: Reading, question: str, folder: Path, done: Kept) -> None:
    """The report as a page on which a sentence shows its planes."""
    from MedVLMReaderLib.reading import write_whole
    from MedVLMReaderLib.report_page import page

    pictures = {n: folder / one["picture"] for n, one in enumerate(done.sentences) if "picture" in one}
    text = page(reading, {n: path.read_bytes() for n, path in pictures.items()}, question, provenance(reading))
    write_whole({folder / PAGE: text.encode()})
    done.files.append(folder / PAGE)


def _add_heatmap(reading: Reading, folder: Path, done: Kept) -> None:
    try:
        heat = reading.heatmap()
    except ReaderError as error:
        done.skipped.append(f"No heatmap of the whole text: {error}")
        return
    save_whole(heat, folder / HEATMAP)
    done.files.append(folder / HEATMAP)


def _pictured(reading: Reading, number: int, volume: Volume, folder: Path, done: Kept) -> dict[str, Any]:
    """Draw a sentence's heatmap; what there is to say of it, nothing where it has none."""
    from MedVLMReaderLib.pictures import overlay

    try:
        heats = reading.heatmaps(number)
    except ReaderError as error:
        done.skipped.append(f"No picture of sentence {number + 1}: {error}")
        return {}
    path = folder / f"sentence-{number + 1:02d}.png"
    overlay(volume, heats, title=reading.text[slice(*reading.sentences[number])], path=path)
    done.files.append(path)
    return {**figures(heats, reading.heatmap(number)), "picture": path.name}


def figures(heats: Any, whole: Volume) -> dict[str, Any]:
    """Peak in mm and how many cells share the attention, of a reading's `heatmaps` and its `heatmap`."""
    from MedVLMReaderLib.heatmap import effective_cells

    return {
        "peak_ras_mm": [round(float(x), 2) for x in whole.peak()],
        "effective_cells": round(effective_cells(heats), 1),
        "cells": sum(heat.values.size for heat in heats),
    }


def save_whole(volume: Volume, path: Path) -> None:
    """`Volume.save` that leaves a whole file or none. Raises OSError.

    ITK says RuntimeError for what the disk refuses, and nothing of a file that was cut short: it is read again.
    """
    import numpy as np
    import SimpleITK as sitk

    ending = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    part = path.with_name(f".{uuid.uuid4().hex}{ending}")
    sitk.ProcessObject.GlobalWarningDisplayOff()  # scanners round directions; ITK warns of every thousandth of a degree
    try:
        volume.save(part)
        if not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(part))), volume.values):
            raise OSError("the file was cut short")
        os.replace(part, path)
    except RuntimeError as error:
        raise OSError(str(error).strip().rsplit("\n", 1)[-1]) from error
    finally:
        sitk.ProcessObject.GlobalWarningDisplayOn()
        part.unlink(missing_ok=True)


def text_of(reading: Reading, question: str = "") -> str:
    """report.txt: what must be known first, the question if there was one, the text, and where it comes from."""
    notes = "\n".join(f"Note: {note}" for note in reading.notes)
    asked = f"Question: {question.strip()}" if question else ""
    text = reading.text.strip() or "(The model wrote nothing.)"
    return "\n\n".join(part for part in (notes, asked, text, provenance(reading)) if part) + "\n"


def provenance(reading: Reading) -> str:
    """Which model wrote it and when, and that it is not for clinical use."""
    incomplete = "" if reading.complete else "Incomplete: stopped, or cut off at its longest length.\n"
    model = ", ".join(part for part in (reading.model, f"revision {reading.revision}", reading.created) if part)
    return f"{incomplete}Written by {model}. Not for clinical use."
