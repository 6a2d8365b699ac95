"""Second stage: over convolutions that stay as they are, the transformer of the slice encoder learns what lies where.

Each patch token must say, through a linear head that is thrown away afterwards, what every 6.4 mm place of its patch
is, which kinds of finding touch the patch, whose centre lies in it and how large they are. Without dense supervision
a 6 mm lesion is never found (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.phantom import LABELS
from MedVLMReaderLib.planting import KINDS
from MedVLMReaderLib.preparation import Recipe, windows
from MedVLMReaderLib.training.made_data import CLASSES, FINE, PreparedPlane, PreparedStudy
from MedVLMReaderLib.truth import Truth, other_side
from MedVLMReaderLib.volume import PLANES

PLANE_SHARE = (0.6, 0.2, 0.2)
LESION_SHARE = 0.7
"""Of the slices taken, how many are chosen for a finding they show, where there is one."""
EFFUSION_SHARE = 0.3
"""How often that is an effusion, against any other finding: it is large and learnt soon."""
RELIST = 100
"""Steps after which the folder is looked at again."""
ORGAN_WEIGHTS = np.array([0.3, 0.7, 1.5, 1.5, 3.0, 2.0, 4.0, 5.0, 5.0, 3.0, 5.0, 1.0, 1.0], np.float32)
"""Of each organ in the order of LABELS, about one over the root of how often it comes."""
FINDING_COUNTS, LEAST_COUNTS, MOST_COUNTS = 150.0, 3.0, 40.0
"""Of all places of a finding on a slice together; of one of them at least, and at most."""
WINDOWS = 3
RARE = -4.6
"""Log-odds with which the head starts to expect a finding: one patch in a hundred."""
SIZE_SCALE_MM = 20.0


@dataclass(frozen=True, eq=False)
class Slices:
    """A batch of slices with their neighbours and what is true of them."""

    pictures: Tensor
    """(slices, channels * (1 + 2 context), size, size)."""
    places: Tensor
    """(slices, size / FINE, size / FINE) int64 index into CLASSES."""
    weights: Tensor
    """(slices, size / FINE, size / FINE) how much each place counts."""
    touched: Tensor
    """(slices, kinds, patches, patches) 1 where a finding of the kind covers part of the patch."""
    centred: Tensor
    """The same shape: 1 where a finding's centre lies in the patch and within one slice."""
    sizes: Tensor
    """The same shape: size of the largest such finding over SIZE_SCALE_MM; 0 where there is none."""


class DenseHead(nn.Module):
    """What patch tokens say of places and findings; only ever used in training."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.side = patch // FINE
        self.places = nn.Linear(width, self.side**2 * len(CLASSES))
        self.findings = nn.Linear(width, 3 * len(KINDS))
        self.summary = nn.Linear(width, len(CLASSES))
        nn.init.constant_(self.findings.bias, RARE)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores from (slices, 1 + patches, width) tokens.

        (slices, classes, fine, fine) for places; (slices, 3, kinds, rows, columns) for findings; (slices, classes) for
        what the class token says the slice shows at all.
        """
        summary, patches = self.summary(tokens[:, 0]), tokens[:, 1:]
        rows = int(patches.shape[1] ** 0.5)
        fine = self.places(patches).unflatten(1, (rows, rows)).unflatten(-1, (self.side, self.side, len(CLASSES)))
        places = fine.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        findings = self.findings(patches).transpose(1, 2).unflatten(1, (3, len(KINDS))).unflatten(-1, (rows, rows))
        return places, findings, summary


def loss(head: DenseHead, tokens: Tensor, batch: Slices) -> dict[str, Tensor]:
    """The parts of the dense loss, by name."""
    places, findings, summary = head(tokens)
    shown = F.one_hot(batch.places.flatten(1), len(CLASSES)).amax(1).float()
    touched, centred, sizes = findings.unbind(1)
    here = batch.touched > 0
    return {
        "places": weighted(places, batch.places, batch.weights),
        "touched": 0.1 * balanced(touched, batch.touched),
        "centred": 0.1 * balanced(centred, batch.centred),
        "summary": 0.3 * F.binary_cross_entropy_with_logits(summary, shown),
        "sizes": 0.3 * F.smooth_l1_loss(sizes[here], batch.sizes[here], beta=0.2) if here.any() else sizes.sum() * 0,
    }


def weighted(scores: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of places, each with its weight."""
    return (F.cross_entropy(scores, right, reduction="none") * weights).sum() / weights.sum()


def balanced(scores: Tensor, truth: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002): patches with a finding are one in hundreds."""
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    miss = (truth - scores.sigmoid()).abs()
    return (entropy * miss**2 * (1 + 4 * truth)).sum() / truth.sum().clamp(min=1.0)


class Pictures:
    """Prepared studies, of which each step draws its own slices; studies may still be arriving."""

    def __init__(self, folder: Path, recipe: Recipe, sizes: Sizes, seed: int) -> None:
        self.folder, self.recipe, self.sizes, self.seed = folder, recipe, sizes, seed
        self.paths: list[Path] = []

    def at(self, step: int, studies: int = 8, each: int = 2) -> Slices:
        """`each` slices of so many `studies`; the same for the same step, once all studies are there."""
        if step % RELIST == 0 or not self.paths:
            self.paths = sorted(self.folder.glob("*.npz"))
        rng = np.random.default_rng([self.seed, step])
        chosen = [PreparedStudy.load(self.paths[n]) for n in rng.integers(0, len(self.paths), studies)]
        parts = [part for study in chosen for part in _slices_of(study, self.recipe, self.sizes, rng, each)]
        return Slices(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*parts, strict=True)))


def _slices_of(
    study: PreparedStudy, recipe: Recipe, sizes: Sizes, rng: np.random.Generator, count: int
) -> Iterator[tuple[Array, ...]]:
    mirrored = bool(rng.random() < 0.33)
    gain, shift = rng.uniform(0.96, 1.04), rng.uniform(-8, 8)
    for _ in range(count):
        plane = study.planes[rng.choice(3, p=PLANE_SHARE)]
        at = int(rng.choice(_pool(study.truth, plane, rng)))
        yield _slice(study.truth, plane, at, recipe, sizes, (gain, shift), mirrored)


def _pool(truth: Truth, plane: PreparedPlane, rng: np.random.Generator) -> Array:
    """The slices to draw from: all, or those that show one finding, large and small ones alike often."""
    if truth.findings and rng.random() < LESION_SHARE:
        showing = np.flatnonzero((plane.lesions == one_of(truth, rng) + 1).any((1, 2)))
        if len(showing):
            return showing
    return np.arange(len(plane.values))


def one_of(truth: Truth, rng: np.random.Generator) -> int:
    """Number of one of the findings, drawn."""
    shares = np.array([EFFUSION_SHARE if f.kind == "effusion" else 1.0 for f in truth.findings])
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def with_neighbours(plane: PreparedPlane, at: int, context: int) -> Array:
    """(1 + 2 context, rows, columns) values of a slice and its neighbours; the outermost also for what is beyond."""
    return plane.values[np.clip(np.arange(at - context, at + context + 1), 0, len(plane.values) - 1)]


def classes(truth: Truth, lesions: Array, organs: Array) -> Array:
    """What each place is, as an index into CLASSES."""
    kinds = np.array([0] + [len(LABELS) + KINDS.index(f.kind) for f in truth.findings])
    return np.where(lesions > 0, kinds[lesions], organs).astype(np.int64)


def counted_alike(lesions: Array, organ_weights: Array, finding: float, least: float, most: float) -> Array:
    """float32 weights of places: all places of a finding on a slice together weigh `finding`, each within bounds."""
    counts = np.bincount(lesions.ravel())
    share = np.clip(finding / np.maximum(counts, 1), least, most)
    return np.where(lesions > 0, share[lesions], organ_weights).astype(np.float32)


def _slice(
    truth: Truth, plane: PreparedPlane, at: int, recipe: Recipe, sizes: Sizes, grey: tuple[float, float], mirrored: bool
) -> tuple[Array, ...]:
    """Arrays of one slice in the order of `Slices`, by chance mirrored."""
    values = with_neighbours(plane, at, sizes.context)
    pictures = channels(values, truth, recipe, grey).reshape(-1, *plane.values.shape[1:])
    lesions, organs = plane.lesions[at], plane.organs[at]
    places = classes(truth, lesions, organs)
    weights = counted_alike(lesions, ORGAN_WEIGHTS[organs], FINDING_COUNTS, LEAST_COUNTS, MOST_COUNTS)
    arrays = (pictures, places, weights, *finding_maps(truth, plane, at, sizes.patch // FINE))
    return mirror(arrays, plane.plane) if mirrored else arrays


OTHER_SIDE = np.array([CLASSES.index(other_side(name)) for name in CLASSES])
"""Each class -> the same on the other side."""


def mirror(arrays: tuple[Array, ...], plane: int) -> tuple[Array, ...]:
    """The slice of a mirrored body: pictures of two planes flip left to right, in the third the neighbours swap."""
    pictures, places, *maps = arrays
    places = OTHER_SIDE[places]
    if PLANES[plane] == "sagittal":
        order = pictures.reshape(-1, WINDOWS, *pictures.shape[1:])[::-1]
        return np.ascontiguousarray(order).reshape(pictures.shape), places, *maps
    return tuple(np.ascontiguousarray(a[..., ::-1]) for a in (pictures, places, *maps))


def channels(values: Array, truth: Truth, recipe: Recipe, grey: tuple[float, float] = (1.0, 0.0)) -> Array:
    """(slices, windows, size, size) float32 in 0 to 1 of prepared int16 slices; `grey`: gain and shift in HU."""
    gain, shift = grey
    scale = (1.0, shift) if truth.modality == "CT" else (1000.0, shift)
    return windows((values.astype(np.float32) * gain + scale[1]) / scale[0], truth.modality, recipe)


def finding_maps(truth: Truth, plane: PreparedPlane, at: int, side: int) -> tuple[Array, Array, Array]:
    """(touched, centred, sizes) of one slice, each (kinds, patches, patches) float32."""
    rows = plane.lesions.shape[1] // side
    touched, centred, sizes = np.zeros((3, len(KINDS), rows, rows), np.float32)
    for n, finding in enumerate(truth.findings):
        kind = KINDS.index(finding.kind)
        here = (plane.lesions[at] == n + 1).reshape(rows, side, rows, side).any((1, 3))
        touched[kind][here] = 1
        sizes[kind][here] = np.maximum(sizes[kind][here], finding.size_mm / SIZE_SCALE_MM)
        k, j, i = plane.grid.to_index(finding.ras)
        row, column = int((j + 0.5) // (side * FINE)), int((i + 0.5) // (side * FINE))
        if abs(k - at) <= 0.75 and 0 <= row < rows and 0 <= column < rows:
            centred[kind, row, column] = 1
    return touched, centred, sizes


def encoder_parts(sizes: Sizes, seed: int) -> tuple[SliceEncoder, DenseHead]:
    """A new slice encoder and its head."""
    torch.manual_seed(seed)
    encoder = SliceEncoder(sizes)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.2)
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)
    return encoder, DenseHead(sizes.slice_width, sizes.patch)
