"""What a pre-trained encoder is good for: masks and labels from a few studies, measured on others.

Masks and labels are those of made studies; a data set of masks comes in by `labelled` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib.block import BlockRecipe, block
from MedVLMReaderLib.evaluation import papers
from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.models.pyramid import Classifier, EncoderSizes, Segmenter
from MedVLMReaderLib.models.segmenter import at_voxels
from MedVLMReaderLib.phantom import LABELS, made_study
from MedVLMReaderLib.training.engine import Settings, fit
from MedVLMReaderLib.training.med3d_insight import Arrays, LabelLoss, MaskLoss, together
from MedVLMReaderLib.truth import STRUCTURES

ORGANS = ("background", "lung right", "lung left", "heart", "liver", "spleen", "kidney right", "kidney left", "spine")
"""Classes of the made masks: what else a made study has belongs to the background."""
SEEN: tuple[tuple[str, str], ...] = tuple(one for one in STRUCTURES if one[0] != "pleura")
LABEL_NAMES = (*(f"{organ} {side}".strip() for organ, side in SEEN), "MR", "with contrast")
"""What a made study is labelled with: the organs in view, how it was made."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A study as the heads learn it, in the block's own cells."""

    name: str
    grey: Array
    """(depth, rows, columns) uint8."""
    mask: Array
    """(depth, rows, columns) uint8 index into ORGANS."""
    labels: Array
    """(labels,) uint8, 0 or 1, in the order of LABEL_NAMES."""
    spacing: tuple[float, float, float]


def labelled(seed: int, recipe: BlockRecipe, folder: Path) -> Labelled:
    """A made study with its masks and labels, kept in a folder."""
    path = folder / f"{seed}.{recipe.key}.npz"
    if not path.exists():
        study = made_study(seed)
        shown = block(study.volume, recipe)
        seen = [one in study.truth.in_view for one in SEEN]
        labels = np.array([*seen, study.truth.modality == "MR", study.truth.phase == "contrast"], np.uint8)
        mask = organs_at(study.labels, study.volume.grid, shown.grid)
        grey = np.rint(shown.values * 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez_compressed(file, grey=grey, mask=mask, labels=labels, spacing=shown.grid.spacing)
        path.with_suffix(".part").replace(path)
    with np.load(path, allow_pickle=False) as kept:
        a, b, c = (float(mm) for mm in kept["spacing"])
        return Labelled(f"made:{seed}", kept["grey"], kept["mask"], kept["labels"], (a, b, c))


def organs_at(labels: Array, grid: Grid, other: Grid) -> Array:
    """(k, j, i) of `other`, uint8 index into ORGANS, from a made study's labels."""
    numbers = np.array([ORGANS.index(name) if name in ORGANS else 0 for name in LABELS], np.uint8)
    return at_voxels(numbers[labels], grid, other)


def grey(studies: Sequence[Labelled]) -> Tensor:
    """(studies, 1, depth, rows, columns) of 0 to 1."""
    return torch.from_numpy(np.stack([one.grey for one in studies]))[:, None].float() / 255


# ---- Masks ----------------------------------------------------------------------------------------------------------


def segmenter(
    sizes: EncoderSizes, studies: Sequence[Labelled], settings: Settings, folder: Path, *,
    start: Mapping[str, Tensor] | None = None, head: int = 8,
) -> Segmenter | None:  # fmt: skip
    """A segmenter, its encoder from `start` or untrained, trained on these studies; None where it is not finished."""
    torch.manual_seed(settings.seed)
    network = Segmenter(sizes, len(ORGANS), head)
    if start is not None:
        network.encoder.load_state_dict(dict(start))
    masks = torch.from_numpy(np.stack([one.mask for one in studies]))[:, None].long()
    rows = Arrays({"volumes": grey(studies), "masks": masks}, [one.name for one in studies])
    return network if fit(MaskLoss(network, balance(masks)), rows, together, settings, folder) else None


def balance(masks: Tensor) -> Tensor:
    """(classes,) weights with a mean of 1: small organs count for more, by the root of how rare their voxels are."""
    count = torch.bincount(masks.flatten(), minlength=len(ORGANS)).float()
    weights = (count + count.sum() / 1000).rsqrt()
    return weights / weights.mean()


@torch.no_grad()
def dice(network: Segmenter, studies: Sequence[Labelled]) -> dict[str, Any]:
    """Dice of each organ, and of all, of studies it has not learned from."""
    network.eval()
    found = (network(grey([one]))[0].argmax(0).numpy() for one in studies)
    pairs = ((ours, one.mask, one.spacing) for ours, one in zip(found, studies, strict=True))
    return dict(papers.masks(pairs, ORGANS, distances=False))


# ---- Labels ---------------------------------------------------------------------------------------------------------


def classifier(
    sizes: EncoderSizes, studies: Sequence[Labelled], settings: Settings, folder: Path, *,
    start: Mapping[str, Tensor] | None = None,
) -> Classifier | None:  # fmt: skip
    """A classifier, its encoder from `start` or untrained, trained on these studies; None where it is not finished."""
    torch.manual_seed(settings.seed)
    network = Classifier(sizes, len(LABEL_NAMES))
    if start is not None:
        network.encoder.load_state_dict(dict(start))
    labels = torch.from_numpy(np.stack([one.labels for one in studies]))
    rows = Arrays({"volumes": grey(studies), "labels": labels}, [one.name for one in studies])
    return network if fit(LabelLoss(network), rows, together, settings, folder) else None


@torch.no_grad()
def accuracy(network: Classifier, studies: Sequence[Labelled]) -> dict[str, Any]:
    """Accuracy and area under the curve of each label, and of all, of studies it has not learned from."""
    network.eval()
    scores = torch.cat([network(grey([one])).sigmoid() for one in studies]).numpy()
    return dict(papers.labels(scores, np.stack([one.labels for one in studies]), LABEL_NAMES))
