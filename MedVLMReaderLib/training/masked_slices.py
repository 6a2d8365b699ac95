"""MS-VLM's Z-former without labels: slices of a stack are hidden, and it learns to say what they were.

Measured against the simplest guess: linear interpolation between the nearest slices that are not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation.phantom import figure
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.ms_vlm import ZFormer
from MedVLMReaderLib.models.slice_encoder import SliceEncoder
from MedVLMReaderLib.training.objectives import masked_slices
from MedVLMReaderLib.training.slice_stacks import Stacks

SLOWEST = 64.0
"""Slices that the slowest of the sines needs for a radian."""
LEAST = 4
"""Slices of a stack that is learned from."""


@dataclass(frozen=True)
class Hiding:
    """How slices are hidden, and what of them the network has to say."""

    share: float = 0.3
    """Of the slices that are hidden, as published."""
    from_line: bool = False
    """Hidden places hold the line between the nearest slices that are not hidden, not zeros as published, and only how
    a slice differs from it is told, through a layer that begins at nothing: it starts as good as the line. The loss
    is as published."""
    sines: float = 0.0
    """Height of the sines that the Z-former's table of places begins with. 0: small random numbers, as published, from
    which it takes long to learn which slices are neighbours."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ReaderError(f"[masked] hides a share of {self.share} of the slices; it should lie between 0 and 1.")
        if not isinstance(self.from_line, bool):
            raise ReaderError(f"[masked] has from_line = {self.from_line!r}; it should be true or false.")


class Masked(nn.Module):
    """A Z-former that rebuilds hidden slices."""

    def __init__(self, zformer: ZFormer, hiding: Hiding = Hiding()) -> None:
        super().__init__()
        self.zformer, self.share = zformer, hiding.share
        self.difference: nn.Linear | None = None
        if hiding.from_line:
            width = zformer.bigbird.config.hidden_size
            self.difference = nn.Linear(width, width)
            nn.init.zeros_(self.difference.weight)
            nn.init.zeros_(self.difference.bias)
        if hiding.sines:
            begin_with_sines(zformer, hiding.sines)

    def forward(self, slices: Tensor, present: Tensor) -> dict[str, Tensor]:
        """The loss of (stacks, slices, width) tokens, of which `present` (stacks, slices) are there."""
        hidden = (torch.rand(present.shape, device=slices.device) < self.share) & present
        return {"masked": masked_slices(self.rebuilt(slices, present, hidden), slices, hidden)}

    def rebuilt(self, slices: Tensor, present: Tensor, hidden: Tensor) -> Tensor:
        """(stacks, slices, width) what it says. What hidden slices hold is nothing to it, as published."""
        if self.difference is None:
            said: Tensor = self.zformer(slices * ~hidden[..., None], present)
            return said
        line = interpolated(slices, present & ~hidden)
        return line + self.difference(self.zformer(line * present[..., None], present))


@torch.no_grad()
def begin_with_sines(zformer: ZFormer, height: float) -> None:
    """Fill the table of places with sines and cosines of 1 to 1/64 radian a slice."""
    table = zformer.bigbird.embeddings.position_embeddings.weight
    places, width = table.shape
    turns = torch.arange(places)[:, None] / SLOWEST ** (torch.arange(width // 2) / (width // 2))
    table.copy_(height * torch.cat([turns.sin(), turns.cos()], 1))


class Tokens:
    """Rows of a training: the class tokens of the slices of one stack each."""

    def __init__(self, stacks: Sequence[Tensor], names: Sequence[str]) -> None:
        kept = [(one, name) for one, name in zip(stacks, names, strict=True) if len(one) >= LEAST]
        self.stacks, self.names = [one for one, _ in kept], [name for _, name in kept]

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"name": self.names[n], "slices": self.stacks[n]}


def stacks_together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of stacks, filled up to the longest."""
    longest = max(len(row["slices"]) for row in rows)
    present = torch.stack([torch.arange(longest) < len(row["slices"]) for row in rows])
    slices = torch.stack([nn.functional.pad(row["slices"], (0, 0, 0, longest - len(row["slices"]))) for row in rows])
    return {"name": [row["name"] for row in rows], "slices": slices, "present": present}


@torch.no_grad()
def class_tokens(encoder: SliceEncoder, kept: Stacks, names: Sequence[str], planes: Sequence[int], path: Path
                 ) -> Tokens:  # fmt: skip
    """The class tokens of every stack of these planes, worked out once and kept in a file."""
    if not path.exists():
        encoder.eval()
        tensors = {}
        for n, name in enumerate(names):
            for stack in kept.of(name):
                if stack.plane in planes:
                    pictures = torch.from_numpy(stack.channels(kept.recipe))
                    tensors[f"{n:06}.{stack.plane}"] = encoder.encode_stack(pictures)[:, 0].contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    stored = load_file(path)
    return Tokens([stored[key] for key in sorted(stored)], sorted(stored))


# ---- Against interpolation ------------------------------------------------------------------------------------------


def interpolated(slices: Tensor, known: Tensor) -> Tensor:
    """(stacks, slices, width) with those that are not `known` (stacks, slices) on the line between the nearest that
    are; beyond the ends, the last. Nothing where none is known."""
    count = slices.shape[1]
    places = torch.arange(count, device=slices.device).expand_as(known)
    before = places.where(known, torch.full_like(places, -1)).cummax(1).values
    after = places.where(known, torch.full_like(places, count)).flip(1).cummin(1).values.flip(1)
    left, right = torch.where(before < 0, after, before), torch.where(after == count, before, after)
    share = (places - left) / (right - left).clamp(min=1)
    first, last = (_at(slices, one.clamp(0, count - 1)) for one in (left, right))
    return (first + (last - first) * share[..., None]) * known.any(1)[:, None, None]


def _at(slices: Tensor, places: Tensor) -> Tensor:
    return slices.gather(1, places[..., None].expand_as(slices))


@torch.no_grad()
def against_interpolation(network: Masked, rows: Tokens, seed: int = 0, *, times: int = 4) -> dict[str, Any]:
    """Mean |difference| of hidden slices, rebuilt and interpolated, and their ratio, over stacks nobody learned from.

    "inside" counts only slices that have one that is not hidden on either side; others are not interpolated but copied.
    """
    network.eval()
    rng = np.random.default_rng(seed)
    all_, inside = np.zeros((2, len(rows.stacks), 3))  # of each stack: both errors, and the slices they are of
    for n, slices in enumerate(rows.stacks):
        for _ in range(times):
            hidden = rng.random(len(slices)) < network.share
            if not hidden.any() or hidden.all():
                continue
            errors, between = _errors(network, slices, hidden)
            all_[n] += *errors.sum(0), len(errors)
            inside[n] += *errors[between].sum(0), between.sum()
    return {"stacks": len(rows), "slice_width": rows.stacks[0].shape[1], "all": _told(all_), "inside": _told(inside)}


def _errors(network: Masked, slices: Tensor, hidden: Array) -> tuple[Array, Array]:
    """(hidden slices, 2) how far off they are, rebuilt and interpolated; and which have known ones on both sides."""
    present, mask = torch.ones(1, len(slices), dtype=torch.bool), torch.from_numpy(hidden)[None]
    both = network.rebuilt(slices[None], present, mask), interpolated(slices[None], ~mask)
    errors = np.stack([(one[0] - slices).abs().sum(1).numpy()[hidden] for one in both], 1)
    known, places = np.flatnonzero(~hidden), np.flatnonzero(hidden)
    return errors, (places > known[0]) & (places < known[-1])


def _told(sums: Array) -> dict[str, Any]:
    """Both errors, a mean over slices, and their ratio with its interval over stacks."""
    count = int(sums[:, 2].sum())
    rebuilt, line = (round(float(sums[:, n].sum() / max(count, 1)), 4) for n in (0, 1))
    ratio = figure([(float(row[0]), float(row[1])) for row in sums], count)
    return {"rebuilt": rebuilt, "interpolated": line, "ratio": ratio}
