"""A trained mask head as a folder: what lies where in a scan, by sliding window (MONAI), on the scan's own voxels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe, block
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.models.pyramid import EncoderSizes, Segmenter
from MedVLMReaderLib.volume import Volume, resampled
from MedVLMReaderLib.weights import read_config

SYSTEM = "segmenter"
FIELDS = "format", "system", "encoder", "classes", "recipe"
LARGEST = 1 << 28
"""Voxels after resampling; more would not fit into memory."""


@dataclass(frozen=True)
class MaskRecipe:
    """How a scan comes to a segmenter."""

    spacing_mm: tuple[float, float, float] = (10.0, 4.0, 4.0)
    """Of slices, rows and columns, pictures being axial."""
    window_ct: tuple[float, float] = (-1000.0, 600.0)
    """(black, white) in HU."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of the voxels that are black and white, for what is not in HU."""


@dataclass(frozen=True)
class Found:
    """One class in one scan."""

    name: str
    millilitres: float
    centre: tuple[float, float, float]
    """(r, a, s) in mm of its voxels' mean."""


def shown(volume: Volume, recipe: MaskRecipe | BlockRecipe) -> Volume:
    """The scan as axial pictures of the recipe's spacing, or as one block; float32 of 0 to 1."""
    if isinstance(recipe, BlockRecipe):
        return block(volume, recipe)
    pictures = volume.as_seen("axial")
    sides = np.array(pictures.grid.shape) * pictures.grid.spacing
    shape = np.maximum(1, np.rint(sides / recipe.spacing_mm)).astype(int)
    if shape.prod() > LARGEST:
        raise ReaderError(f"The scan would have {shape.prod():,} voxels for the segmenter. Crop it first.")
    low, high = recipe.window_ct if volume.modality == "CT" else np.percentile(volume.values, recipe.percentiles)
    fine = resampled(pictures, pictures.grid.resize(shape.tolist()), float(low))
    grey = (fine.values.astype(np.float32) - np.float32(low)) / np.float32(max(float(high - low), 1e-6))
    return replace(fine, values=np.clip(grey, 0, 1))


def at_voxels(labels: Array, grid: Grid, other: Grid) -> Array:
    """(k, j, i) of `other`: the label of the cell of `grid` in which each voxel's centre lies, 0 outside."""
    out = np.zeros(other.shape, labels.dtype)
    rows, columns = np.meshgrid(np.arange(other.shape[1]), np.arange(other.shape[2]), indexing="ij")
    for k in range(other.shape[0]):
        places = other.to_world(np.stack([np.full_like(rows, k), rows, columns], -1))
        index = np.floor(grid.to_index(places) + 0.5 + 1e-6).astype(int)
        inside = np.all((index >= 0) & (index < grid.shape), axis=-1)
        out[k][inside] = labels[tuple(index[inside].T)]
    return out


class MaskModel:
    """A segmenter with its classes, the first of which is the background."""

    def __init__(
        self, network: Segmenter, sizes: EncoderSizes, classes: Sequence[str], recipe: MaskRecipe | BlockRecipe
    ) -> None:
        self.network, self.sizes, self.classes, self.recipe = network, sizes, tuple(classes), recipe

    @torch.no_grad()
    def labels(self, volume: Volume) -> Volume:
        """The scan's voxels, each the number of its class."""
        from monai.inferers.utils import sliding_window_inference

        pictures = shown(volume, self.recipe)
        self.network.eval()
        inputs = torch.from_numpy(np.ascontiguousarray(pictures.values))[None, None]
        scores = sliding_window_inference(inputs, self.sizes.shape, 1, self.network, overlap=0.25, mode="gaussian")
        found = torch.as_tensor(scores)[0].argmax(0).to(torch.uint8).numpy()
        return replace(volume, values=at_voxels(found, pictures.grid, volume.grid))

    def found(self, labels: Volume) -> list[Found]:
        """Each class that is there, with its volume and centre."""
        millilitres = abs(float(np.linalg.det(labels.grid.affine[:3, :3]))) / 1000
        shown_classes = []
        for n, name in enumerate(self.classes[1:], 1):
            voxels = np.argwhere(labels.values == n)
            if len(voxels):
                r, a, s = (float(x) for x in labels.grid.to_world(voxels.mean(0)))
                shown_classes.append(Found(name, len(voxels) * millilitres, (r, a, s)))
        return shown_classes

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        kind = "block" if isinstance(self.recipe, BlockRecipe) else "spaced"
        config = {
            "format": 1, "system": SYSTEM, "encoder": self.sizes.to_json(), "classes": list(self.classes),
            "recipe": {kind: asdict(self.recipe)},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(folder: Path) -> MaskModel:
    """The segmenter of a folder; ReaderError where the folder holds another system, or anything is missing or off."""
    config = read_config(folder, FIELDS)
    if config["system"] != SYSTEM:
        raise ReaderError(f"'{folder}' holds a '{config['system']}', which gives no masks. Choose a trained segmenter.")
    sizes, classes = EncoderSizes.from_json(config["encoder"]), config["classes"]
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ReaderError(f"config.json of '{folder}' has no list of at least two classes. Get the model again.")
    tensors = _tensors(folder)
    last = tensors.get("head.voxels.1.weight", torch.empty(len(classes), 16))
    network = Segmenter(sizes, len(classes), 2 * last.shape[1])
    own = network.state_dict()
    if wrong := sorted(
        n for n in {*own, *tensors} if n not in own or n not in tensors or own[n].shape != tensors[n].shape
    ):
        raise ReaderError(f"The weights of '{folder}' do not fit its config.json: '{wrong[0]}'. Get the model again.")
    network.load_state_dict(tensors)
    return MaskModel(network, sizes, classes, _recipe(config["recipe"], folder))


def _recipe(plain: Any, folder: Path) -> MaskRecipe | BlockRecipe:
    """What config.json says of how a scan comes to the network."""
    try:
        ((kind, numbers),) = plain.items()
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()}
        return {"block": BlockRecipe, "spaced": MaskRecipe}[kind](**lists)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReaderError(f"config.json of '{folder}' has a recipe that cannot be used ({error}). Get the model again."
                          ) from None  # fmt: skip


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "model.safetensors")
    except Exception as error:  # safetensors raises its own kind for a damaged file
        raise ReaderError(f"'{folder / 'model.safetensors'}' cannot be read ({error}). Get the model again.") from None
