"""MS-VLM's slice encoder without labels: DINO (arXiv 2104.14294). A student that sees parts of a slice learns to say
what its own running mean says of nearly all of it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.training.objectives import processes


@dataclass(frozen=True)
class Views:
    """How a slice is cut and changed. The defaults are MS-VLM's: no mirroring, since sides matter."""

    large: tuple[float, float] = (0.8, 1.0)
    """Share of the slice's area that a view of the teacher shows, as of DINO's own views."""
    small: tuple[float, float] = (0.1, 0.3)
    few: int = 6
    """Small views of a slice, beside the two large ones."""
    size: int = 0
    """Rows and columns of a small view; 0: a bit under half of the slice's."""
    turn: float = 15.0
    """Degrees by which a view is turned at most."""
    grey: float = 0.2
    """Share by which contrast and brightness change at most."""


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of what compares two views; it is thrown away afterwards."""

    answers: int = 65536
    hidden: int = 2048
    narrow: int = 256


class Head(nn.Module):
    """What is said of a view: scores of so many answers, none of which has a name."""

    def __init__(self, width: int, sizes: HeadSizes) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, sizes.hidden), nn.GELU(), nn.Linear(sizes.hidden, sizes.hidden), nn.GELU(),
            nn.Linear(sizes.hidden, sizes.narrow),
        )  # fmt: skip
        self.answers = nn.Parameter(torch.randn(sizes.answers, sizes.narrow) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(views, answers); the answers' vectors count by their direction alone."""
        return F.normalize(self.layers(x), dim=-1) @ F.normalize(self.answers, dim=-1).T


class Dino(nn.Module):
    """Student, teacher, and the mean of what the teacher says: taken off, so that it does not always say the same."""

    centre: Tensor

    def __init__(self, encoder: SliceEncoder, sizes: HeadSizes, views: Views, *, momentum: float = 0.996,
                 warm: float = 0.1, cold: float = 0.04) -> None:  # fmt: skip
        super().__init__()
        width, self.patch = encoder.pos_embed.shape[-1], encoder.patch
        self.student = nn.ModuleDict({"encoder": encoder, "head": Head(width, sizes)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.views, self.momentum, self.warm, self.cold = views, momentum, warm, cold
        self.register_buffer("centre", torch.zeros(sizes.answers))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """The loss of a batch of slices (slices, channels, size, size)."""
        if self.training:
            self._follow()
        views, patch = self.views, self.patch
        small = views.size or max(patch, int(pictures.shape[-1] * 0.43) // patch * patch)
        large = [view(pictures, views.large, pictures.shape[-1], views) for _ in range(2)]
        parts = [view(pictures, views.small, small, views) for _ in range(views.few)]
        with torch.no_grad():
            said = said_of(self.teacher, torch.cat(large))
            told = ((said - self.centre) / self.cold).softmax(-1).chunk(2)
            if self.training:
                self._recentre(said.mean(0))
        scores = [*said_of(self.student, torch.cat(large)).chunk(2)]
        if parts:
            scores += said_of(self.student, torch.cat(parts)).chunk(len(parts))
        words = [(score / self.warm).log_softmax(-1) for score in scores]
        pairs = [
            (wanted * own).sum(-1).mean() for t, wanted in enumerate(told) for s, own in enumerate(words) if s != t
        ]
        return {"dino": -torch.stack(pairs).mean()}

    @torch.no_grad()
    def _follow(self) -> None:
        """The teacher moves a little towards the student, as it is after the step before."""
        for own, leader in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.lerp_(leader, 1 - self.momentum)
        for kept, newest in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            kept.copy_(newest)

    def _recentre(self, mean: Tensor) -> None:
        if processes() > 1:
            dist.all_reduce(mean)
            mean = mean / processes()
        self.centre.lerp_(mean.to(self.centre), 0.1)


def said_of(pair: nn.ModuleDict, pictures: Tensor) -> Tensor:
    """(views, answers) of encoder and head: by the class token."""
    return pair["head"](pair["encoder"](pictures)[:, 0])


def view(pictures: Tensor, share: tuple[float, float], size: int, views: Views) -> Tensor:
    """(slices, channels, size, size): of each slice another square part, a little turned and of other greys."""
    count = len(pictures)
    like: dict[str, Any] = {"device": pictures.device, "dtype": pictures.dtype}
    side = torch.empty(count, **like).uniform_(*share).sqrt()
    angle = torch.empty(count, **like).uniform_(-views.turn, views.turn) * (math.pi / 180)
    middle = (2 * torch.rand(2, count, **like) - 1) * (1 - side)  # the part lies within the slice
    cos, sin = side * angle.cos(), side * angle.sin()
    places = torch.stack([torch.stack([cos, -sin, middle[0]], -1), torch.stack([sin, cos, middle[1]], -1)], 1)
    grid = F.affine_grid(places, [count, pictures.shape[1], size, size], align_corners=False)
    shown = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    gain, shift = (torch.empty(count, 1, 1, 1, **like).uniform_(-views.grey, views.grey) for _ in range(2))
    return ((shown - 0.5) * (1 + gain) + 0.5 + shift / 2).clamp(0, 1)


def new_encoder(sizes: Sizes, seed: int) -> SliceEncoder:
    """An untrained slice encoder, started as DINO starts it."""
    torch.manual_seed(seed)
    encoder = SliceEncoder(sizes)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)
    return encoder
