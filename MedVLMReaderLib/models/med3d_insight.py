"""Med3DInsight (arXiv 2403.05141, 2509.09064): a volume encoder learns from what a 2-D model makes of its slices.

A transformer that is told a slice's plane and number (PSAT) finds in the volume's features what the slice shows; its
answer is brought near the 2-D model's embeddings of that slice and of the slice's caption. Only the encoder is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.pyramid import EncoderSizes, new_encoder, tokens
from MedVLMReaderLib.volume import PLANES, PlaneName

PER_PLACE = 2
"""Slices that share a place in the table of places, as published for 256 slices."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of what learns. The defaults are the published ones, but for the encoder: that was nnFormer."""

    encoder: EncoderSizes = field(default_factory=EncoderSizes)
    width: int = 768
    """Of the transformer; the encoder's coarsest grid is projected to it where it has another."""
    depth: int = 6
    heads: int = 8
    inner: int = 8
    """Of the feed-forward layers. As published: the number of heads landed in their place."""
    queries: int = 300
    places: int = 128
    """Of a plane; slice n has place n // 2."""
    embedding: int = 512
    """Of the 2-D model."""


class Layer(nn.Module):
    """Queries to each other, then to the volume, then by themselves; norms after each sum."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(queries + self._dropped(self.self_attn(queries, queries, queries, need_weights=False)[0]))
        x = self.norm2(x + self._dropped(self.cross_attn(x, memory, memory, need_weights=False)[0]))
        return self.norm3(x + self._dropped(self.linear2(self._dropped(F.relu(self.linear1(x))))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Decoder(nn.Module):
    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes.width, sizes.heads, sizes.inner, dropout) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            queries = layer(queries, memory)
        return self.norm(queries)


class PSAT(nn.Module):
    """The plane-slice-aware transformer: queries (batch, queries, width) read a volume's tokens (batch, n, width)."""

    def __init__(self, sizes: Sizes, dropout: float = 0.1) -> None:
        super().__init__()
        self.ps_pos = nn.Parameter(torch.randn(sizes.width, len(PLANES), sizes.places))
        self.decoder = Decoder(sizes, dropout)

    def forward(
        self, queries: Tensor, volume: Tensor, planes: Sequence[PlaneName], slices: Sequence[int] | Tensor
    ) -> Tensor:
        """(batch, queries, width). One vector says which slice is meant: it is added to all queries and all tokens."""
        places = (torch.as_tensor(slices) // PER_PLACE).clamp(0, self.ps_pos.shape[2] - 1)
        which = self.ps_pos[:, [PLANES.index(plane) for plane in planes], places].T[:, None]  # (batch, 1, width)
        return self.decoder(queries + which, volume + which)


class Med3DInsight(nn.Module):
    """What is trained: encoder, PSAT, and the parts of the two objectives that learn with them."""

    def __init__(self, sizes: Sizes, *, rebuilds: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = new_encoder(sizes.encoder)
        coarse, fine = sizes.encoder.widths[-1], sizes.encoder.widths[0]
        self.widen = nn.Identity() if coarse == sizes.width else nn.Linear(coarse, sizes.width)
        self.queries = nn.Embedding(sizes.queries, sizes.width)
        self.psat = PSAT(sizes)
        self.proj = nn.Linear(sizes.width, sizes.embedding)
        start = torch.randn(sizes.embedding, sizes.embedding)
        self.L = nn.Parameter((start + start.T) / 2 + torch.eye(sizes.embedding))
        """(embedding, embedding): how differences of embeddings are measured, for partial transport."""
        self.scale = nn.Parameter(torch.tensor(2.6592600369327783))  # ln(1 / 0.07), for the contrastive objective
        cell = sizes.encoder.cell
        self.rebuild = nn.ConvTranspose3d(fine, 1, cell, cell) if rebuilds else None

    def forward(
        self, volumes: Tensor, planes: Sequence[PlaneName], slices: Sequence[int] | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(slices, embedding) what each volume shows in its slices, and the volume as rebuilt from the finest grid.

        As many slices of each volume, one volume's after another's. The answer is that of the first query alone, as
        published.
        """
        grids = self.encoder(volumes)
        queries = self.queries.weight.expand(len(planes), -1, -1)
        memory = self.widen(tokens(grids[-1])).repeat_interleave(len(planes) // len(volumes), 0)
        found = self.psat(queries, memory, planes, slices)
        return self.proj(found[:, 0]), self._rebuilt(grids[0], volumes)

    def _rebuilt(self, grid: Tensor, volumes: Tensor) -> Tensor | None:
        """(batch, 1, depth, rows, columns): every cell's voxels from its features, one linear map for all cells."""
        if self.rebuild is None:
            return None
        depth, rows, columns = volumes.shape[2:]
        return self.rebuild(grid)[..., :depth, :rows, :columns]
