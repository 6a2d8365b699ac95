"""Volumes of a data set as training reads them: prepared once, kept in a folder, mapped from the disk afterwards."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MedVLMReaderLib import ReaderError, files
from MedVLMReaderLib.block import BlockRecipe, block, stretched
from MedVLMReaderLib.cases import MADE, Case, Fault
from MedVLMReaderLib.geometry import Array, Grid, Shape
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.volume import Volume

PICTURES = ".png", ".jpg", ".jpeg"


def volume_of(name: str) -> Volume:
    """The volume of a case: a scan, a made study ("made:7"), M3D's .npy or its folders of pictures. ReaderError where
    it cannot be read."""
    if name.startswith(MADE):
        seed, _, mirrored = name.removeprefix(MADE).partition("-")
        return made_study(int(seed), mirrored=mirrored == "mirrored").volume
    path = Path(name)
    if path.suffix == ".npy":
        return _without_place(_kept_array(path))
    if path.is_dir() and (pictures := [one for one in path.iterdir() if one.suffix.lower() in PICTURES]):
        return _without_place(_stacked(pictures))
    return files.read(path)


def _kept_array(path: Path) -> Array:
    """(depth, rows, columns) of an .npy; M3D's have a channel before."""
    try:
        values: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}).") from None
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    if values.ndim != 3:
        raise ReaderError(f"'{path}' has the shape {values.shape}; a volume has depth, rows and columns.")
    return values


def _stacked(pictures: Iterable[Path]) -> Array:
    """(depth, rows, columns) uint8 of numbered pictures; those that have not the commonest size are left out, as in
    M3D's own preparation."""
    from PIL import Image, UnidentifiedImageError

    ordered = sorted(pictures, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)] or [0])
    slices = []
    for path in ordered:
        try:
            with Image.open(path) as picture:
                plain = picture.convert("RGBA") if picture.mode == "P" else picture
                slices.append(np.asarray(plain.convert("L")))
        except (OSError, UnidentifiedImageError) as error:
            raise ReaderError(f"'{path}' cannot be read ({error}).") from None
    shape, _ = Counter(one.shape for one in slices).most_common(1)[0]
    return np.stack([one for one in slices if one.shape == shape])


def _without_place(values: Array) -> Volume:
    """A volume of which nothing says where it lies: pictures from feet to head, as a radiologist looks at them."""
    return Volume(values, Grid((values.shape[0], *values.shape[1:]), np.array(
        [[0.0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])), "", "pictures")  # fmt: skip


def is_pictures(volume: Volume) -> bool:
    """Whether the grey levels are those of a screen already."""
    return volume.source == "pictures"


def published_block(volume: Volume, shape: Shape) -> Array:
    """(depth, rows, columns) float32 of 0 to 1: the published conversion of M3D's pictures for Med3DVLM.

    Smallest to largest value, cut to what is brighter than nothing, stretched without smoothing.
    """
    values = volume.values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    grey = replace(volume, values=(values - low) / max(high - low, 1e-8))
    bright = np.argwhere(grey.values > 0)
    if len(bright):
        grey = grey.crop(bright.min(0).tolist(), (bright.max(0) + 1).tolist())
    return np.asarray(stretched(grey, shape).values, np.float32)


@dataclass
class Prepared:
    """Blocks of volumes, kept in a folder: a file each, named by the volume and the recipe."""

    folder: Path
    recipe: BlockRecipe

    def of(self, name: str) -> Array:
        """(depth, rows, columns) of 0 to 255, mapped from the disk; made where it is not there yet."""
        path = self.folder / f"{key_of(name, self.recipe.key)}.npy"
        if not path.exists():
            self._make(name, path)
        kept: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return kept

    def _make(self, name: str, path: Path) -> None:
        volume = volume_of(name)
        grey = published_block(volume, self.recipe.shape) if is_pictures(volume) else block(volume, self.recipe).values
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, np.rint(grey * 255).astype(np.uint8))
        part.replace(path)


def key_of(name: str, recipe_key: str) -> str:
    """Of a volume, made or a file, as prepared by a recipe: changes with either; tells nothing of the path."""
    state: Sequence[object] = ()
    if not name.startswith(MADE):
        try:
            found = Path(name).stat()
        except OSError as error:
            raise ReaderError(f"'{name}' cannot be read ({error.strerror}).") from None
        state = found.st_size, found.st_mtime_ns
    return hashlib.sha256(repr((name, state, recipe_key)).encode()).hexdigest()[:24]


def prepare(
    cases: Sequence[Case], prepared: Prepared, *, skip: bool = False, progress: Callable[[int], None] = lambda _: None
) -> tuple[list[Case], list[Fault]]:
    """All volumes of the cases, made or found; the cases whose volume can be read, and the faults of the others.

    ReaderError at the first that cannot be read, unless `skip` is chosen; what was prepared stays.
    """
    trouble: dict[str, str] = {}
    for n, name in enumerate(dict.fromkeys(case.volume for case in cases), 1):
        try:
            prepared.of(name)
        except ReaderError as error:
            if not skip:
                raise ReaderError(f"{error} Mend the data set, or leave such volumes out with --skip-faulty.") from None
            trouble[name] = str(error)
        progress(n)
    kept = [case for case in cases if case.volume not in trouble]
    if not kept:
        raise ReaderError(f"None of the {len(trouble)} volumes can be read; the first: {next(iter(trouble.values()))}")
    return kept, [Fault(case.place, trouble[case.volume]) for case in cases if case.volume in trouble]
