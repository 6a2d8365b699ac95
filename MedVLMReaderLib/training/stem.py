"""First stage: the convolutions of the slice encoder learn what small places look like, from crops around findings.

A crop is cheap: in the time of one whole slice four findings are seen. It shows too little to tell sides apart, so it
is not asked for them. The other half of the U-Net (arXiv 1505.04597) that the convolutions learn in, and the heads, are
thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.slice_encoder import PatchEmbedding, Sizes
from MedVLMReaderLib.planting import KINDS
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training.encoder import (
    PLANE_SHARE,
    RARE,
    RELIST,
    balanced,
    channels,
    classes,
    counted_alike,
    finding_maps,
    one_of,
    weighted,
    with_neighbours,
)
from MedVLMReaderLib.training.made_data import CLASSES, FINE, PreparedPlane, PreparedStudy
from MedVLMReaderLib.truth import Truth

SIDE = 64
"""Pixels of a crop."""
AIMED = 0.75
"""Share of the crops that are laid around a finding, where there is one."""
AIR_COUNTS = 0.3
"""How much a place outside the body counts, against one within it."""
FINDING_COUNTS, LEAST_COUNTS, MOST_COUNTS = 80.0, 3.0, 30.0
"""How much all places of a finding on a slice count together; one of them at least, and at most."""
TISSUES = sorted({name.replace(" right", "").replace(" left", "") for name in CLASSES})
TISSUE_OF = np.array([TISSUES.index(name.replace(" right", "").replace(" left", "")) for name in CLASSES])


class Local(nn.Module):
    """The convolutions of a slice encoder and the heads that they learn by."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(sizes)
        width, self.side = sizes.slice_width, sizes.patch // FINE
        self.joins = nn.ModuleList()
        below = width
        for here in reversed(sizes.stem):
            self.joins.append(Join(below, here))
            below = here
        self.fine = nn.Conv2d(below, len(TISSUES), 1)
        self.places = nn.Conv2d(width, self.side**2 * len(TISSUES), 1)
        self.findings = nn.Conv2d(width, 3 * len(KINDS), 1)
        nn.init.constant_(self.findings.bias, RARE)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (crops, channels, side, side): tissues by the U-Net, tissues by patches alone, and findings.

        Twice (crops, tissues, fine, fine), then (crops, 3, kinds, rows, columns): touched, centred, sizes.
        """
        levels = self.patch_embed.stem.at_each_width(pictures)
        patches = x = self.patch_embed.local(self.patch_embed.proj(levels[-1]))
        for join, level in zip(self.joins, reversed(levels), strict=True):
            x = join(x, level)
        places = F.pixel_shuffle(self.places(patches), self.side)
        return self.fine(x), places, self.findings(patches).unflatten(1, (3, len(KINDS)))


class Join(nn.Module):
    """Coarse features, spread over finer ones."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(coarse, fine, 1)
        self.conv = nn.Conv2d(2 * fine, fine, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(fine)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = F.interpolate(self.lift(x), size=level.shape[-2:], mode="nearest")
        return F.gelu(self.norm(self.conv(torch.cat([x, level], 1))))


class Crops:
    """Crops of prepared studies, drawn anew for each step; studies may still be arriving."""

    def __init__(self, folder: Path, recipe: Recipe, sizes: Sizes, seed: int) -> None:
        self.folder, self.recipe, self.sizes, self.seed = folder, recipe, sizes, seed
        self.paths: list[Path] = []

    def at(self, step: int, studies: int = 12, each: int = 4) -> list[Tensor]:
        """`each` crops of so many studies: pictures, tissues, weights; maps of findings: touched, centred, sizes."""
        if step % RELIST == 0 or not self.paths:
            self.paths = sorted(self.folder.glob("*.npz"))
        rng = np.random.default_rng([self.seed, step, 1])
        crops = []
        for n in rng.integers(0, len(self.paths), studies):
            study = PreparedStudy.load(self.paths[n])
            grey = rng.uniform(0.96, 1.04), rng.uniform(-8, 8)
            crops += [self._crop(study, grey, rng) for _ in range(each)]
        return [torch.from_numpy(np.stack(one)) for one in zip(*crops, strict=True)]

    def _crop(self, study: PreparedStudy, grey: tuple[float, float], rng: np.random.Generator) -> list[Array]:
        plane, patch = study.planes[rng.choice(3, p=PLANE_SHARE)], self.sizes.patch
        at, row, column = _aim(study.truth, plane, patch, rng)
        pixels, places, cells = (
            (slice(row // n, (row + SIDE) // n), slice(column // n, (column + SIDE) // n)) for n in (1, FINE, patch)
        )
        values = with_neighbours(plane, at, self.sizes.context)[:, *pixels]
        pictures = channels(values, study.truth, self.recipe, grey).reshape(-1, SIDE, SIDE)
        maps = (one[:, *cells] for one in finding_maps(study.truth, plane, at, patch // FINE))
        arrays = pictures, *_tissues(study.truth, plane.lesions[at][places], plane.organs[at][places]), *maps
        across, upside = rng.random() < 0.5, rng.random() < 0.3
        return [np.ascontiguousarray(_turned(array, across, upside)) for array in arrays]


def _tissues(truth: Truth, lesions: Array, organs: Array) -> tuple[Array, Array]:
    """What each place is, and how much it counts."""
    organ_weights = np.where(organs == 0, AIR_COUNTS, 1)
    weights = counted_alike(lesions, organ_weights, FINDING_COUNTS, LEAST_COUNTS, MOST_COUNTS)
    return TISSUE_OF[classes(truth, lesions, organs)], weights


def _turned(array: Array, across: bool, upside: bool) -> Array:
    array = array[..., ::-1] if across else array
    return array[..., ::-1, :] if upside else array


def _aim(truth: Truth, plane: PreparedPlane, patch: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Slice, first row and first column of a crop, at the corner of a patch."""
    size = plane.values.shape[1]
    if truth.findings and rng.random() < AIMED:
        n = one_of(truth, rng)
        places = np.argwhere(plane.lesions == n + 1)
        if len(places):
            at, row, column = places[rng.integers(len(places))]
            start = np.array([row, column]) * FINE - rng.integers(12, SIDE - 12, 2)
            row, column = np.clip(start, 0, size - SIDE) // patch * patch
            return int(at), int(row), int(column)
    at = int(rng.integers(len(plane.values)))
    body = np.argwhere(plane.organs[at] > 0)
    if not len(body):
        return at, (size - SIDE) // 2, (size - SIDE) // 2
    row, column = np.clip(body[rng.integers(len(body))] * FINE - SIDE // 2, 0, size - SIDE) // patch * patch
    return at, int(row), int(column)


def loss(network: Local, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The parts of the loss, by name."""
    pictures, tissues, weights, touched, centred, sizes = batch
    with torch.autocast("cpu", torch.bfloat16):
        fine, places, findings = network(pictures.to(memory_format=torch.channels_last))
    said_touched, said_centred, said_sizes = findings.float().unbind(1)
    here = touched > 0
    return {
        "fine": weighted(fine.float(), tissues, weights),
        "places": 0.5 * weighted(places.float(), tissues, weights),
        "touched": 0.1 * balanced(said_touched, touched),
        "centred": 0.1 * balanced(said_centred, centred),
        "sizes": 0.3 * F.smooth_l1_loss(said_sizes[here], sizes[here], beta=0.2) if here.any() else findings.sum() * 0,
    }
