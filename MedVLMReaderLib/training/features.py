"""Features of every prepared study, computed once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.models.ms_vlm import PlaneFeatures, kept_patches
from MedVLMReaderLib.models.slice_encoder import SliceEncoder
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training.encoder import channels
from MedVLMReaderLib.training.made_data import PreparedStudy
from MedVLMReaderLib.truth import Truth


@dataclass(frozen=True, eq=False)
class StudyFeatures:
    """A made study after the slice encoder."""

    truth: Truth
    planes: tuple[PlaneFeatures, ...]


def encode(study: PreparedStudy, encoder: SliceEncoder, recipe: Recipe) -> dict[str, Tensor]:
    """Tensors of a study's features, for `save_file`."""
    tensors: dict[str, Tensor] = {}
    for n, plane in enumerate(study.planes):
        pictures = channels(plane.values, study.truth, recipe)
        tensors |= encoded_plane(n, plane, pictures, study.truth.modality, encoder)
    return tensors


class Stacked(Protocol):
    """A stack of slices with its place."""

    @property
    def values(self) -> Array: ...
    @property
    def affine(self) -> Array: ...
    @property
    def acquired_mm(self) -> float: ...


def encoded_plane(
    n: int, plane: Stacked, pictures: Array, modality: str, encoder: SliceEncoder, *, patches: bool = True
) -> dict[str, Tensor]:
    """Tensors of plane n's features: its slices, and with `patches` those around the body."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.encode_stack(torch.from_numpy(pictures).to(memory_format=torch.channels_last))
    scale = 1.0 if modality == "CT" else 1000.0
    kept = kept_patches(plane.values / np.float32(scale), modality, encoder.patch)[: None if patches else 0]
    tensors = {
        "slices": tokens[:, 0].half(), "patches": tokens[:, 1:].flatten(0, 1)[kept].half(), "kept": kept.int(),
        "affine": torch.from_numpy(np.array(plane.affine)), "shape": torch.tensor([*plane.values.shape]),
        "acquired": torch.tensor(plane.acquired_mm),
    }  # fmt: skip
    return {f"{name}_{n}": value.contiguous() for name, value in tensors.items()}


def planes_of(tensors: dict[str, Tensor], patch: int) -> tuple[PlaneFeatures, ...]:
    """The planes of a study from the tensors of `encode`."""
    planes = []
    centre: Array | None = None
    for n in range(3):
        slices, rows, columns = (int(x) for x in tensors[f"shape_{n}"])
        grid = Grid((slices, rows, columns), tensors[f"affine_{n}"].cpu().numpy())
        centre = grid.centre if centre is None else centre
        cells = grid.resize((slices, rows // patch, columns // patch))
        kept, acquired = tensors[f"kept_{n}"].long(), float(tensors[f"acquired_{n}"])
        features = tensors[f"slices_{n}"].float(), tensors[f"patches_{n}"].float()
        planes.append(PlaneFeatures(*features, kept, cells, n, acquired, centre))
    return tuple(planes)


def encode_all(data: Path, folder: Path, encoder: SliceEncoder, recipe: Recipe) -> None:
    """Features of every prepared study, those that are there skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for path in sorted(data.glob("*.npz")):
        out = folder / f"{path.stem}.safetensors"
        if not out.exists():
            study = PreparedStudy.load(path)
            save_file(encode(study, encoder, recipe), folder / "part", {"truth": json.dumps(study.truth.to_json())})
            (folder / "part").replace(out)


def load_features(path: Path, patch: int) -> StudyFeatures:
    """The features of one study."""
    with safe_open(path, "pt") as file:
        truth = Truth.from_json(json.loads(file.metadata()["truth"]))
    return StudyFeatures(truth, planes_of(load_file(path), patch))
