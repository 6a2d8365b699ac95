"""DCFormer (arXiv 2502.05091): a volume encoder whose 3-D convolutions are sums of three 1-D ones.

The image encoder of Med3DVLM. Blocks of ConvNeXt's form in four stages behind a stem; every stage halves the grid.
Arrays are (batch, depth, rows, columns, channels) here; the published weights count rows, columns, depth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32, 64)
"""Voxels of the block along each side of a cell after the stem and after each stage."""
KERNELS = (13, 11, 9, 7)


@dataclass(frozen=True)
class Sizes:
    """Blocks of each of the four stages; channels of the stem and of each stage."""

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int, int]

    @classmethod
    def found(cls, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
        """Sizes of an encoder with tensors of these names and shapes; ValueError where it is no DCFormer."""
        scales = [re.fullmatch(r"s([1-4])\.\d+\.scale", name) for name in shapes]
        count = Counter(int(one[1]) for one in scales if one)
        try:
            first, *rest = shapes["s0.0.0.c1.0.weight"][0], *(shapes[f"s{n}.0.scale"][0] for n in (1, 2, 3, 4))
        except (KeyError, IndexError):
            raise ValueError("the weights hold no DCFormer") from None
        return cls((count[1], count[2], count[3], count[4]), (first, rest[0], rest[1], rest[2], rest[3]))


SIZES = {
    "nano": Sizes((1, 1, 1, 1), (32, 32, 64, 128, 256)),
    "naive": Sizes((2, 2, 2, 2), (32, 64, 128, 256, 512)),
    "tiny": Sizes((2, 3, 3, 2), (64, 96, 192, 384, 768)),
    "small": Sizes((2, 3, 6, 2), (64, 96, 192, 384, 768)),
    "base": Sizes((2, 6, 6, 2), (64, 128, 256, 512, 1024)),
    "large": Sizes((2, 6, 12, 2), (64, 256, 512, 1024, 2048)),
}
"""The published sizes. Med3DVLM has the small one."""


class Decomposed(nn.Module):
    """Three convolutions, along rows, columns and depth, each with its norm; their sum."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        half = kernel // 2
        for name, size, padding in (
            ("c1", (kernel, 1, 1), (half, 0, 0)),
            ("c2", (1, kernel, 1), (0, half, 0)),
            ("c3", (1, 1, kernel), (0, 0, half)),
        ):
            conv = nn.Conv3d(before, after, size, stride, padding, groups=groups)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm3d(after)))

    def forward(self, x: Tensor) -> Tensor:
        rows_columns_depth = x.permute(0, 4, 2, 3, 1)  # (batch, channels, rows, columns, depth)
        total = sum(branch(rows_columns_depth) for branch in self.children())
        return cast(Tensor, total).permute(0, 4, 2, 3, 1)

    def folded(self) -> tuple[list[Tensor], Tensor]:
        """(after, before, kernel) weights along rows, columns and depth, and the bias (after,): norms multiplied in."""
        weights, biases = zip(*(_folded(*cast(Any, branch)) for branch in self.children()), strict=True)
        return list(weights), torch.stack(biases).sum(0)


def _folded(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight (after, before, kernel) and bias of a convolution and its norm in one; worked out in 32 bits."""
    mean, variance = cast(Tensor, norm.running_mean).float(), cast(Tensor, norm.running_var).float()
    gain = norm.weight.float() * (variance + norm.eps).rsqrt()
    bias = (cast(Tensor, conv.bias).float() - mean) * gain + norm.bias.float()
    return (conv.weight.float().flatten(2) * gain[:, None, None]).to(conv.weight), bias.to(conv.weight)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        # the published model's dropouts of 0 hold the places 2 and 4
        self.mlp = nn.Sequential(
            nn.Linear(width, wide), nn.GELU(), nn.Identity(), nn.Linear(wide, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """Each channel over its surroundings, then channels with each other; the first of a stage halves the grid."""

    def __init__(self, before: int, width: int, kernel: int, halve: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        if halve:
            self.proj = nn.Conv3d(before, width, 1, bias=False)
        self.dwconv = Decomposed(width, width, kernel, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "proj"):
            halved = F.max_pool3d(x.permute(0, 4, 1, 2, 3), 3, 2, 1)
            x = self.proj(halved).permute(0, 2, 3, 4, 1)
        return x + self.scale * self.mlp(self.dwconv(x))

    def read(self, x: Tensor) -> Tensor:
        """What `forward` computes, faster and without gradients."""
        if hasattr(self, "proj"):
            x = F.linear(_halved(x), self.proj.weight.flatten(1))
        return torch.addcmul(x, self.scale, self.mlp(_each_channel(x, *self.dwconv.folded())))


class DCFormer(nn.Module):
    """The encoder: (batch, 1, depth, rows, columns) grey levels 0 to 1 to the grids of the stem and the four stages."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.s0 = nn.Sequential(_stem(sizes.widths[0]))
        for n, (count, kernel) in enumerate(zip(sizes.blocks, KERNELS, strict=True), 1):
            widths = [sizes.widths[n - 1], *[sizes.widths[n]] * count]
            blocks = (Block(widths[j], sizes.widths[n], kernel, halve=j == 0) for j in range(count))
            self.add_module(f"s{n}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Five grids (batch, depth, rows, columns, channels), each coarser than the one before.

        Without gradients, out of training, the same numbers come by a faster way.
        """
        fast = not (self.training or torch.is_grad_enabled())
        return tuple(self._read(x) if fast else self._stages(x))

    def _stages(self, x: Tensor) -> Iterator[Tensor]:
        x = x.movedim(1, 4)
        for stage in self.children():
            x = stage(x)
            yield x

    def _read(self, x: Tensor) -> Iterator[Tensor]:
        first, *stages = self.children()
        x = _read_stem([part.folded() for part in cast(Any, first)[0]], x[:, 0])
        yield x
        for stage in stages:
            for block in cast(Any, stage):
                x = block.read(x)
            yield x


def tokens(grid: Tensor) -> Tensor:
    """(batch, cells, channels) of a grid; cells are counted by columns, then rows, then depth."""
    return grid.flatten(1, 3)


def _stem(width: int) -> nn.Sequential:
    """Four convolutions with nothing between them but norms.

    Published as it is: the GELU that was meant to follow the first landed in the argument for the norm, so the weights
    were trained without any activation, and only without any do they give the features that the rest was trained on.
    """
    rest = (Decomposed(width, width, 3) for _ in range(3))
    return nn.Sequential(Decomposed(1, width, 7, stride=4), *rest)


# ---- Reading fast: norms folded in, channels last, no permuted copies -----------------------------------------------

Folded = tuple[list[Tensor], Tensor]


def _read_stem(layers: list[Folded], x: Tensor) -> Tensor:
    """The stem of (batch, depth, rows, columns). Its first two convolutions are one, as nothing stands between them."""
    x = _framed(_neighbours(x))
    matrix = torch.cat([_neighbour_weights(layers[0][0]), layers[0][1][None]])  # (22, width), the last row for the ones
    (second, bias), *rest = layers[1:]
    x = _crossed(x, [torch.einsum("im,omk->oik", matrix, weight) for weight in second], bias)
    for weights, bias in rest:
        x = _crossed(x, weights, bias)
    return x[:, 1:-1, 1:-1, 1:-1]


def _neighbours(x: Tensor) -> Tensor:
    """(batch, cells of 4 x 4 x 4, 22): the 7 voxels along rows, columns and depth that a cell is made of; a one."""
    along_rows = F.pad(x[:, ::4, :, ::4], (0, 0, 3, 3)).unfold(2, 7, 4)
    along_columns = F.pad(x[:, ::4, ::4], (3, 3)).unfold(3, 7, 4)
    along_depth = F.pad(x[:, :, ::4, ::4], (0, 0, 0, 0, 3, 3)).unfold(1, 7, 4)
    return torch.cat([along_rows, along_columns, along_depth, torch.ones_like(along_rows[..., :1])], -1)


def _neighbour_weights(weights: list[Tensor]) -> Tensor:
    """(21, width) for the voxels of `_neighbours`."""
    return torch.cat([weight[:, 0].T for weight in weights])


def _framed(x: Tensor) -> Tensor:
    """A grid in a frame of zeros, one cell wide."""
    return F.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))


def _crossed(x: Tensor, weights: list[Tensor], bias: Tensor) -> Tensor:
    """Convolutions of 3 along rows, columns and depth of a framed grid, summed; framed again.

    One neighbour of all cells is the same array, some cells further on: a matrix product each, and no copies. The cell
    itself counts once for all three convolutions.
    """
    _, _, rows, columns, _ = x.shape
    out = x.new_empty(*x.shape[:-1], len(bias))
    steps = columns, 1, rows * columns
    given, found = x.flatten(0, 3), out.flatten(0, 3)
    start, stop = sum(steps), len(given) - sum(steps)  # from the first cell within the frame to the last
    centre = torch.stack([weight[:, :, 1] for weight in weights]).sum(0)
    cells = torch.addmm(bias, given[start:stop], centre.T, out=found[start:stop])
    for weight, step in zip(weights, steps, strict=True):
        cells.addmm_(given[start - step : stop - step], weight[:, :, 0].T)
        cells.addmm_(given[start + step : stop + step], weight[:, :, 2].T)
    for axis in (1, 2, 3):  # the frame within was run over
        out.select(axis, 0).zero_()
        out.select(axis, -1).zero_()
    return out


def _each_channel(x: Tensor, weights: list[Tensor], bias: Tensor) -> Tensor:
    """Convolutions along rows, columns and depth of each channel by itself, summed: as pictures, channels last."""
    batch, depth, rows, columns, width = x.shape
    along_rows, along_columns, along_depth = weights
    slices = x.reshape(batch * depth, rows, columns, width).permute(0, 3, 1, 2)
    pages = x.reshape(batch, depth, rows * columns, width).permute(0, 3, 1, 2)
    half = along_rows.shape[-1] // 2
    out = F.conv2d(slices, along_rows[..., None], bias, padding=(half, 0), groups=width)
    out += F.conv2d(slices, along_columns[:, :, None], padding=(0, half), groups=width)
    through = F.conv2d(pages, along_depth[..., None], padding=(half, 0), groups=width)
    total = through.permute(0, 2, 3, 1).view(x.shape)
    total += out.permute(0, 2, 3, 1).view(x.shape)
    return total


def _halved(x: Tensor) -> Tensor:
    """The largest of each 3 x 3 x 3 cells, two cells apart: axis by axis."""
    for axis in (1, 2, 3):
        even, odd = (x.movedim(axis, 0)[first::2] for first in (0, 1))
        x = even.movedim(0, axis).clone(memory_format=torch.contiguous_format)
        largest = x.movedim(axis, 0)
        torch.maximum(largest[: len(odd)], odd, out=largest[: len(odd)])
        torch.maximum(largest[1:], odd[: len(even) - 1], out=largest[1:])
    return x
