"""Blocks of networks: vision transformer of slices, convolutional stem, perceiver resampler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SliceAttention(nn.Module):
    """Self-attention of a slice's tokens: (slices, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v  # each (slices, heads, tokens, width / heads)

    def forward(self, x: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(*self.split(x))
        return self.proj(out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> Tensor:
        """(slices, heads, tokens, tokens) attention, rows summing to 1."""
        q, k, _ = self.split(x)
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)


class SliceMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SliceBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SliceAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SliceMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LocalBlock(nn.Module):
    """A residual 3x3 convolution over (slices, width, rows, columns); starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(F.gelu(self.norm(self.conv(x))))


class Stem(nn.Sequential):
    """Convolutions that halve the picture at each width and look around there: low-contrast edges before patches."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int = 1) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            halve = nn.Conv2d(before, after, 4, 2, 1, bias=False)  # even: centred on the four pixels that it joins
            layers += [halve, nn.BatchNorm2d(after), nn.GELU(), *(LocalBlock(after) for _ in range(depth))]
        super().__init__(*layers)
        self.widths = len(widths)

    def at_each_width(self, x: Tensor) -> list[Tensor]:
        """What each width gives, finest first; the last is what `forward` gives."""
        found = []
        for n, layer in enumerate(self, 1):
            x = layer(x)
            if n % (len(self) // self.widths) == 0:
                found.append(x)
        return found


class PerceiverAttention(nn.Module):
    """Latents (batch, latents, width) attend to media (batch, n, width) and themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def split(self, media: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, latents, head width); keys and values of the media, then of the latents."""
        latents = self.norm_latents(latents)
        k, v = self.to_kv(torch.cat([self.norm_media(media), latents], 1)).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(latents), k, v))
        return q, k, v

    def gathered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        return self.gathered(*self.split(media, latents))


class Perceiver(nn.Module):
    """Perceiver resampler as in Flamingo (arXiv 2204.14198): (batch, n, width) -> (batch, 1, latents, width)."""

    def __init__(self, width: int, depth: int, latents: int, heads: int, head_width: int, widen: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.media_pos_emb = nn.Parameter(torch.randn(4, 1, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, heads, head_width), _feed_forward(width, widen * width)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def steps(self) -> Iterator[tuple[PerceiverAttention, nn.Sequential]]:
        """Attention and feed-forward of each layer."""
        for layer in self.layers:
            attend, feed = cast(nn.ModuleList, layer)
            yield cast(PerceiverAttention, attend), cast(nn.Sequential, feed)

    def forward(self, media: Tensor) -> Tensor:
        media = media + self.media_pos_emb[0]
        latents = self.latents.expand(len(media), -1, -1)
        for attend, feed in self.steps():
            latents = latents + attend(media, latents)
            latents = latents + feed(latents)
        return self.norm(latents)[:, None]

    def reach(self, media: Tensor) -> Tensor:
        """(latents, n) what share of each latent comes from each of the media (1, n, width); rows sum to 1.

        Attention rollout, arXiv 2005.00928: in every layer half is kept, half comes from where the heads attend on
        average, and what comes from other latents is followed to the media.
        """
        media, latents, count = media + self.media_pos_emb[0], self.latents[None], media.shape[1]
        reach = media.new_zeros(latents.shape[1], count)
        for attend, feed in self.steps():
            q, k, _ = attend.split(media, latents)
            paid = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)[0]
            reach = (reach + paid[:, :count] + paid[:, count:] @ reach) / 2
            latents = latents + attend(media, latents)
            latents = latents + feed(latents)
        return reach / reach.sum(-1, keepdim=True)


def _feed_forward(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )
