"""Finding studies by a text and scoring findings of a study, with a pair of encoders that share one space.

A pair turns a scan and a text into unit vectors; the likeness of two is their product, from -1 to 1. Vectors of scans
are kept on disk, so that looking through the same studies again encodes nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError, dicom, files, hub
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.choice import chosen_device
from MedVLMReaderLib.dicom import is_dicom
from MedVLMReaderLib.files import BESIDE, SCANS
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models import CARDS, PAIRS
from MedVLMReaderLib.reading import write_whole
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint, fingerprint, system_of


class Pair(Protocol):
    """What models/siglip.py and models/m3d_clip.py offer."""

    name: str
    revision: str
    recipe: BlockRecipe
    score_is: str
    """What `scores` gives, in words for the user."""
    notes: tuple[str, ...]
    """What the user must know of the model's files."""

    def of_volume(self, volume: Volume, view: View | None = None) -> Tensor:
        """(width,) unit vector of a scan."""

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(texts, width) unit vectors."""

    def scores(self, image: Tensor, findings: Sequence[str]) -> Tensor:
        """(findings,) from 0 to 1 for the vector of a scan."""


def load(
    name: str | Path,
    *,
    device: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: hub.Progress = lambda *_: None,
) -> Pair:
    """A pair of the table, of the hub or in a folder. ReaderError where it cannot be had, or is no pair."""
    found = hub.find(name, revision=revision, offline_only=offline, progress=progress)
    system = found.card.system if found.card else system_of(found.folder)
    if system not in PAIRS:
        pairs = sorted(card.name for card in CARDS.values() if card.system in PAIRS)
        raise ReaderError(f"'{found.name}' writes, it cannot search or score. Choose {' or '.join(pairs)}.")
    checkpoint = Checkpoint(
        found.folder, found.name, found.revision or fingerprint(found.folder), device=chosen_device(device),
        notes=found.notes,
    )  # fmt: skip
    pair: Pair = importlib.import_module(f"MedVLMReaderLib.models.{system}").load(checkpoint)
    return pair


# ---- Vectors on disk ------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where vectors are kept: $MEDVLMREADER_CACHE, else the user's cache."""
    if chosen := os.environ.get("MEDVLMREADER_CACHE"):
        return Path(chosen) / "embeddings"
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(home) / "medvlmreader" / "embeddings"


@dataclass
class Embeddings:
    """Vectors of scans, kept in a folder: a file each, named by voxels, model and preparation. No patient, no path."""

    folder: Path
    encoded: int = 0
    """How many had to be made."""
    trouble: str = ""
    """Why some could not be kept."""

    def of(self, pair: Pair, volume: Volume) -> Array:
        """(width,) float32 unit vector of a scan, from the disk where it is there."""
        path = self.folder / f"{_key(pair, volume)}.npz"
        if (kept := _kept(path)) is not None:
            return kept
        vector = pair.of_volume(volume).float().cpu().numpy()
        self.encoded += 1
        content = io.BytesIO()
        np.savez(content, vector=vector)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole({path: content.getvalue()})
        except OSError as error:
            self.trouble = f"'{self.folder}' cannot be written ({error.strerror}); the next search encodes again."
        return vector


def _key(pair: Pair, volume: Volume) -> str:
    """Changes with the voxels, the model's revision or the preparation."""
    parts = (volume.key, volume.modality, pair.revision, pair.recipe.key)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _kept(path: Path) -> Array | None:
    """The vector in a file; None where there is none, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as content:
            vector: Array = content["vector"]
    except Exception:  # a damaged zip raises whatever its first wrong byte leads to; the vector is made anew
        return None
    right = vector.ndim == 1 and vector.dtype == np.float32 and abs(float(np.linalg.norm(vector)) - 1) < 1e-2
    return vector if right else None


# ---- Studies of a folder --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A scan under a folder: a file, or a series of a DICOM folder."""

    path: Path
    series: str | None = None
    about: str = ""
    """What the DICOM header says of the series; no patient identity."""


@dataclass(frozen=True)
class Skipped:
    """What could not be looked through, and why."""

    path: Path
    why: str


def studies(folder: Path) -> Iterator[Study | Skipped]:
    """Everything under a folder, in order of names: scans, and what is none."""
    seen: set[str] = set()
    refused: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=refused.append):
        folders.sort()
        paths = [Path(root) / name for name in sorted(names)]
        pictures = {path for path in paths if is_dicom(path)}
        if pictures:
            yield from _series(Path(root), seen)
        for path in paths:
            ending = path.name.lower()
            if path in pictures or ending == "dicomdir" or ending.endswith(BESIDE):
                continue
            yield Study(path) if ending.endswith(SCANS) else Skipped(path, "It is not a scan that can be read.")
    yield from (Skipped(Path(error.filename), "It may not be read by this user.") for error in refused)


def _series(folder: Path, seen: set[str]) -> Iterator[Study | Skipped]:
    """The series of a DICOM folder that no folder above it has shown."""
    try:
        found = dicom.list_series(folder)
    except ReaderError as error:
        yield Skipped(folder, str(error))
        return
    for series in found:
        if series.name not in seen:
            seen.add(series.name)
            yield Study(folder, series.name, str(series))


# ---- Searching and scoring ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """A study, and how well it fits the text."""

    study: Study
    likeness: float
    """Product of the two unit vectors, from -1 to 1."""


@dataclass(frozen=True)
class Ranking:
    """The studies of a folder, the likest first."""

    hits: tuple[Hit, ...]
    skipped: tuple[Skipped, ...]
    encoded: int
    """Studies whose vector was not there yet."""
    trouble: str = ""


Progress = Callable[[Study], None]


def search(
    pair: Pair, text: str, folder: Path, embeddings: Embeddings | None = None, progress: Progress = lambda _: None
) -> Ranking:
    """The studies under a folder, ranked by how well they fit a text. ReaderError where there is none to rank."""
    if not text.strip():
        raise ReaderError('The text is empty. Say what to look for, for example: "nodule in the right lung".')
    dicom.check_readable(folder)
    if not folder.is_dir():
        raise ReaderError(f"'{folder}' is a file; a search looks through a folder of studies.")
    kept = embeddings or Embeddings(cache_folder())
    wanted = pair.of_texts([text.strip()])[0].float().cpu().numpy()
    hits: list[Hit] = []
    skipped: list[Skipped] = []
    for found in studies(folder):
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        progress(found)
        ranked = _ranked(pair, found, wanted, kept)
        hits += [ranked] if isinstance(ranked, Hit) else []
        skipped += [ranked] if isinstance(ranked, Skipped) else []
    if not hits:
        raise ReaderError(_nothing(folder, skipped))
    return Ranking(tuple(sorted(hits, key=lambda hit: -hit.likeness)), tuple(skipped), kept.encoded, kept.trouble)


def _ranked(pair: Pair, study: Study, wanted: Array, kept: Embeddings) -> Hit | Skipped:
    try:
        vector = kept.of(pair, files.read(study.path, study.series))
    except ReaderError as error:
        return Skipped(study.path, str(error))
    return Hit(study, float(vector @ wanted))


def _nothing(folder: Path, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"'{folder}' is empty. Choose a folder with DICOM, NIfTI, NRRD or MHA scans."
    first = f"{skipped[0].path.name}: {skipped[0].why}"
    return f"'{folder}' holds no scan that can be read ({len(skipped)} skipped; {first}). Choose another folder."


@dataclass(frozen=True)
class Score:
    """A finding and what the pair makes of it."""

    finding: str
    score: float
    """From 0 to 1; `Pair.score_is` says what it is."""


def classify(
    pair: Pair, volume: Volume, findings: Sequence[str], embeddings: Embeddings | None = None
) -> tuple[Score, ...]:
    """Scores of findings in the order given. ReaderError where there is none, or one is named twice."""
    names = [finding.strip() for finding in findings if finding.strip()]
    if not names:
        raise ReaderError('No finding was named. Separate them by commas, for example: "nodule, effusion".')
    if twice := [name for n, name in enumerate(names) if name.lower() in {other.lower() for other in names[:n]}]:
        raise ReaderError(f"The finding '{twice[0]}' is named twice. Name each once.")
    kept = embeddings or Embeddings(cache_folder())
    found = pair.scores(torch.from_numpy(kept.of(pair, volume)), names)
    return tuple(Score(name, float(score)) for name, score in zip(names, found, strict=True))
