"""How much faster DCFormer reads than its layers written down one by one: `python Testing/benchmarks/dcformer.py`.

Prints one JSON object: seconds of each, the least of several turns taken in alternation, how many times faster ours is
in 32 and in 16 bits, and the largest error of ours in 32 bits, relative to the largest number of each grid.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.dcformer import KERNELS, SIZES, DCFormer, Sizes

SHAPE = 128, 256, 256


# ---- The layers, one by one, with the published names ---------------------------------------------------------------


class Decomposed(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        for axis in range(3):
            size, padding = [1, 1, 1], [0, 0, 0]
            size[axis], padding[axis] = kernel, kernel // 2
            conv = nn.Conv3d(before, after, tuple(size), stride, tuple(padding), groups=groups)  # type: ignore[arg-type]
            self.add_module(f"c{axis + 1}", nn.Sequential(conv, nn.BatchNorm3d(after)))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.children()
        return first(x) + second(x) + third(x)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        wide = nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0)
        self.mlp = nn.Sequential(*wide, nn.Linear(4 * width, width), nn.Dropout(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    def __init__(self, before: int, width: int, kernel: int, halve: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        if halve:
            self.proj = nn.Conv3d(before, width, 1, bias=False)
        self.dwconv, self.mlp = Decomposed(width, width, kernel, groups=width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "proj"):
            x = self.proj(F.max_pool3d(x, 3, 2, 1))
        mixed = self.scale * self.mlp(self.dwconv(x).permute(0, 2, 3, 4, 1))
        return x + mixed.permute(0, 4, 1, 2, 3)


class Plain(nn.Module):
    """The encoder in 32 bits, channels first, as anybody would write it down."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        widths = sizes.widths
        stem = [Decomposed(1, widths[0], 7, 4), *(Decomposed(widths[0], widths[0], 3) for _ in range(3))]
        self.s0 = nn.Sequential(nn.Sequential(*stem))
        for n, (count, kernel) in enumerate(zip(sizes.blocks, KERNELS, strict=True), 1):
            before = [widths[n - 1], *[widths[n]] * count]
            self.add_module(
                f"s{n}", nn.Sequential(*(Block(before[j], widths[n], kernel, j == 0) for j in range(count)))
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, grids = x.permute(0, 1, 3, 4, 2), []  # (batch, channels, rows, columns, depth)
        for stage in self.children():
            x = stage(x)
            grids.append(x.permute(0, 4, 2, 3, 1))
        return tuple(grids)


def as_trained(network: nn.Module) -> nn.Module:
    """Norms and scales of some training, so that an error in any of them shows."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.7, 1.4)
        elif name.endswith(("running_mean", ".bias")):
            tensor.normal_(std=0.05)
        elif name.endswith(".scale"):
            tensor.uniform_(0.1, 0.3)
    return network.eval().requires_grad_(False)


# ---- Timing ---------------------------------------------------------------------------------------------------------


def least_seconds(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The shortest turn of each; the ways take turns, so that another load on the machine meets all alike."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(turns + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if turn:  # the first warms up
                least[name] = min(least[name], time.perf_counter() - began)
    return least


@torch.no_grad()
def measured(size: str, turns: int) -> dict[str, object]:
    """What the program prints."""
    torch.manual_seed(0)
    plain, ours, rounded = as_trained(Plain(SIZES[size])), DCFormer(SIZES[size]), DCFormer(SIZES[size])
    for network in (ours, rounded):
        network.load_state_dict(plain.state_dict())
        network.eval().requires_grad_(False)
    rounded.bfloat16()
    x = torch.rand(1, 1, *SHAPE)
    theirs = plain(x)
    errors, rounding = ([_error(a, b) for a, b in zip(theirs, found, strict=True)] for found in (
        ours(x), rounded(x.bfloat16())))  # fmt: skip
    ways = {"plain": lambda: plain(x), "fp32": lambda: ours(x), "bf16": lambda: rounded(x.bfloat16())}
    seconds = least_seconds(ways, turns)
    return {
        "size": size, "shape": SHAPE, "threads": torch.get_num_threads(), "turns": turns,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "encoder_speedup_fp32": round(seconds["plain"] / seconds["fp32"], 2),
        "encoder_speedup_bf16": round(seconds["plain"] / seconds["bf16"], 2),
        "max_relative_error_fp32": max(errors), "max_relative_error_bf16": max(rounding),
    }  # fmt: skip


def _error(theirs: Tensor, ours: Tensor) -> float:
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="small")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--turns", type=int, default=7)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    print(json.dumps(measured(chosen.size, chosen.turns)))


if __name__ == "__main__":
    main()
