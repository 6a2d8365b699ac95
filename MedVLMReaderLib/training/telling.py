"""What the visual tokens are to tell of a made study: a token for each part of the scan, each structure, and the whole.

A token of a part of the scan tells which findings have their centre there, and how large they are: as smooth bumps over
size, shared between neighbours near a border, so that a finding that moves by a millimetre changes them little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.planting import KINDS, SIZES_MM
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Finding, Truth
from MedVLMReaderLib.volume import PLANES

ZONES = (8, 3, 4)
"""Parts of the scan along S, A and R, each with a token of its own."""
ZONE_MM = (48.0, 90.0, 96.0)
PARTS = int(np.prod(ZONES))
TOKENS = PARTS + len(STRUCTURES) + 1
"""Parts of the scan, then structures, then the scan as a whole."""
BORDER_MM = 8.0
"""A finding this near to a border is told on both sides of it, by halves upon it."""
BINS_MM = np.arange(4.0, 49.0, 3.0)
SIDED = tuple((kind, side) for kind in KINDS for o, side in STRUCTURES if o == ORGAN_OF[kind])
"""(kind, side) of every finding that there can be."""


@dataclass(frozen=True, eq=False)
class Told:
    """What is to be told of one study."""

    parts: Tensor
    """(PARTS, len(SIDED) * len(BINS_MM)): bumps over size, of each kind on each side."""
    structures: Tensor
    """(len(STRUCTURES), 1 + kinds + 3): in view; which kinds; at least one, two, three findings."""
    scan: Tensor
    """(1, 7): plane, phase, modality."""


def told(truth: Truth, centre: Array, weights: Sequence[float] | None = None) -> Told:
    """What is to be told of a study whose scan has its middle at `centre`; `weights`: how surely, one a finding."""
    parts = np.zeros((PARTS, len(SIDED), len(BINS_MM)), np.float32)
    structures = np.zeros((len(STRUCTURES), 1 + len(KINDS) + 3), np.float32)
    structures[:, 0] = [structure in truth.in_view for structure in STRUCTURES]
    counts = np.zeros(len(STRUCTURES))
    for finding, weight in zip(truth.findings, weights or [1.0] * len(truth.findings), strict=True):
        share = weight * shares(np.array(finding.ras) - centre)
        parts[:, SIDED.index((finding.kind, finding.side))] += share[:, None] * bump(finding.size_mm)
        at, kind = STRUCTURES.index((finding.organ, finding.side)), 1 + KINDS.index(finding.kind)
        structures[at, kind] = max(structures[at, kind], weight)
        counts[at] += weight
    structures[:, -3:] = np.clip(counts[:, None] - np.arange(3), 0, 1)
    scan = [*(plane == truth.plane for plane in PLANES), truth.phase == "contrast", truth.phase == "plain",
            truth.modality == "CT", truth.modality == "MR"]  # fmt: skip
    whole = torch.tensor(scan, dtype=torch.float32)[None]
    return Told(torch.from_numpy(parts.reshape(PARTS, -1)), torch.from_numpy(structures), whole)


def bump(size_mm: float) -> Array:
    """(bins,) float32: 1 at the size, less for those around it."""
    return np.exp(-(((BINS_MM - size_mm) / 3.0) ** 2) / 2).astype(np.float32)


def shares(place: Array) -> Array:
    """(PARTS,) how much of a finding belongs to each part of the scan; `place` (r, a, s) mm from the scan's middle."""
    r, a, s = place
    along = []
    for x, mm, n in zip((s, a, r), ZONE_MM, ZONES, strict=True):
        edges = np.arange(1, n) * mm - n * mm / 2
        beyond = np.clip((x - edges) / (2 * BORDER_MM) + 0.5, 0, 1)
        along.append(-np.diff([1.0, *beyond, 0.0]))
    return np.einsum("i,j,k->ijk", *along).reshape(-1).astype(np.float32)


def centres() -> Array:
    """(PARTS, 3) r, a, s of the middle of each part, from the scan's middle."""
    axes = [(np.arange(n) + 0.5 - n / 2) * mm for n, mm in zip(ZONES, ZONE_MM, strict=True)]
    s, a, r = np.meshgrid(*axes, indexing="ij")
    return np.stack([r, a, s], -1).reshape(-1, 3)


def unsure(truth: Truth, centre: Array, rng: random.Random) -> Told:
    """What an unsure eye might tell: true findings weakened, and now and then one that is not there, weaker still."""
    weights = [rng.uniform(0.6, 1.0) for _ in truth.findings]
    ghosts = [_ghost(centre, rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
    faint = [rng.uniform(0.0, 0.4) for _ in ghosts]
    return told(replace(truth, findings=(*truth.findings, *ghosts)), centre, [*weights, *faint])


def _ghost(centre: Array, rng: random.Random) -> Finding:
    kind, side = rng.choice(SIDED)
    r, a, s = (float(c + rng.uniform(-1, 1) * mm) for c, mm in zip(centre, (130, 70, 140), strict=True))
    return Finding(kind, ORGAN_OF[kind], side, rng.uniform(*SIZES_MM[kind]), (r, a, s), 0.0)


class Teller(nn.Module):
    """What is to be told -> (TOKENS, decoder width), on top of what each token says anyhow; only used in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.Linear(len(SIDED) * len(BINS_MM), width, bias=False)
        self.structures = nn.Linear(1 + len(KINDS) + 3, width, bias=False)
        self.scan = nn.Linear(7, width, bias=False)
        for layer, spread in ((self.parts, 0.4), (self.structures, 0.4), (self.scan, 0.4)):
            nn.init.normal_(layer.weight, std=spread)

    def forward(self, said: Told) -> Tensor:
        return torch.cat([self.parts(said.parts), self.structures(said.structures), self.scan(said.scan)])

    def loudness(self) -> float:
        """Mean square of what a token adds for one finding."""
        bumps = torch.from_numpy(np.stack([bump(mm) for mm in range(6, 46)]))
        by_kind = self.parts.weight.detach().unflatten(1, (len(SIDED), -1))
        return float(torch.einsum("wkb,nb->nkw", by_kind, bumps).square().mean())
