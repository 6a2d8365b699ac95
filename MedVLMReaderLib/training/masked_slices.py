"""MS-VLM's Z-former without labels: slices of a stack are hidden, and it learns to say what they were.

Measured against the simplest guess: linear interpolation between the nearest slices that are not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from MedVLMReaderLib.evaluation.phantom import figure
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.ms_vlm import ZFormer
from MedVLMReaderLib.models.slice_encoder import SliceEncoder
from MedVLMReaderLib.training.objectives import masked_slices
from MedVLMReaderLib.training.slice_stacks import Stacks

SHARE = 0.3
"""Of the slices that are hidden, as published."""
LEAST = 4
"""Slices of a stack that is learned from."""


class Masked(nn.Module):
    """A Z-former that rebuilds hidden slices."""

    def __init__(self, zformer: ZFormer, share: float = SHARE) -> None:
        super().__init__()
        self.zformer, self.share = zformer, share

    def forward(self, slices: Tensor, present: Tensor) -> dict[str, Tensor]:
        """The loss of (stacks, slices, width) tokens, of which `present` (stacks, slices) are there."""
        hidden = (torch.rand(present.shape, device=slices.device) < self.share) & present
        return {"masked": masked_slices(self.rebuilt(slices, present, hidden), slices, hidden)}

    def rebuilt(self, slices: Tensor, present: Tensor, hidden: Tensor) -> Tensor:
        """(stacks, slices, width) what it says, the hidden ones being nothing to it, as published."""
        return self.zformer(slices * ~hidden[..., None], present)


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


def interpolated(slices: Array, hidden: Array) -> Array:
    """(slices, width) with the hidden ones on the line between the nearest that are not; beyond the ends, the last."""
    places, known = np.arange(len(slices)), np.flatnonzero(~hidden)
    out = slices.copy()
    after = np.searchsorted(known, places[hidden])
    left, right = known[np.maximum(after - 1, 0)], known[np.minimum(after, len(known) - 1)]
    share = np.where(right > left, (places[hidden] - left) / np.maximum(right - left, 1), 0.0)[:, None]
    out[hidden] = slices[left] * (1 - share) + slices[right] * share
    return out


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
    present, mask = torch.ones(1, len(slices), dtype=torch.bool), torch.from_numpy(hidden)
    ours, true = network.rebuilt(slices[None], present, mask[None])[0].numpy(), slices.numpy()
    errors = np.stack([np.abs(one - true).sum(1)[hidden] for one in (ours, interpolated(true, hidden))], 1)
    known, places = np.flatnonzero(~hidden), np.flatnonzero(hidden)
    return errors, (places > known[0]) & (places < known[-1])


def _told(sums: Array) -> dict[str, Any]:
    """Both errors, a mean over slices, and their ratio with its interval over stacks."""
    count = int(sums[:, 2].sum())
    rebuilt, line = (round(float(sums[:, n].sum() / max(count, 1)), 4) for n in (0, 1))
    ratio = figure([(float(row[0]), float(row[1])) for row in sums], count)
    return {"rebuilt": rebuilt, "interpolated": line, "ratio": ratio}
