"""What training does to blocks by chance, as Med3DVLM's: turns, flips and grey levels. It happens where the network is,
with torch's own random numbers, so that a training that was killed goes on with the same ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError

REACH = 0.1
"""Grey levels are multiplied by 1 - REACH to 1 + REACH, and moved by as much."""
FURTHEST = 1 / 16
"""A block is moved by at most this share of each side."""


@dataclass(frozen=True)
class Augment:
    """How often each happens to a block. Published: rotate .5, flip .1, scale .5, shift .5.

    Turned and flipped scans have their sides exchanged while the report stays: right where a data set has no fixed
    orientation, as M3D's pictures, and wrong where left and right are to be learned.
    """

    rotate: float = 0.0
    """A quarter turn or more of every picture; of pictures that are not square, half a turn."""
    flip: float = 0.0
    """Along each axis by itself."""
    scale: float = 0.0
    shift: float = 0.0
    move: float = 0.0
    """By up to FURTHEST of each side, what comes in being black; not among the published ones."""

    def __post_init__(self) -> None:
        if not all(0 <= getattr(self, one.name) <= 1 for one in fields(self)):
            raise ReaderError(f"[augment] has shares of blocks, from 0 to 1: {self}.")

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Augment:
        """From a table of a configuration, of known keys; ReaderError where a value is no number."""
        for name, value in table.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ReaderError(f"[augment] has {name} = {value!r}; it should be a number from 0 to 1.")
        return cls(**table)


NOTHING = Augment()


def changed(blocks: Tensor, how: Augment) -> Tensor:
    """(batch, 1, depth, rows, columns) blocks, each changed by chance."""
    if how == NOTHING:
        return blocks
    return torch.stack([_changed(block, how) for block in blocks])


def _changed(block: Tensor, how: Augment) -> Tensor:
    chances = torch.rand(6).tolist()
    turns = int(torch.randint(1, 4, (1,)))
    factor, offset = ((torch.rand(2) * 2 - 1) * REACH).tolist()
    if chances[0] < how.rotate:
        block = block.rot90(turns if block.shape[-1] == block.shape[-2] else 2, (-2, -1))
    if axes := [axis for axis, chance in zip((-3, -2, -1), chances[1:4], strict=True) if chance < how.flip]:
        block = block.flip(axes)
    if chances[4] < how.scale:
        block = block * (1 + factor)
    block = block + offset if chances[5] < how.shift else block
    return _moved(block) if how.move and float(torch.rand(1)) < how.move else block


def _moved(block: Tensor) -> Tensor:
    """A (1, depth, rows, columns) block moved by chance; black comes in."""
    most = [int(side * FURTHEST) for side in block.shape[1:]]
    steps = [int(torch.randint(-one, one + 1, (1,))) for one in most]
    moved = block.roll(steps, (1, 2, 3))
    for axis, step in enumerate(steps, 1):
        if step:
            moved.narrow(axis, 0 if step > 0 else block.shape[axis] + step, abs(step)).zero_()
    return moved
