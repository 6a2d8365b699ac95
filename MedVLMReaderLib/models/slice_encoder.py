"""The slice encoder of MS-VLM, DINO's vision transformer (arXiv 2104.14294); and the sizes of the whole network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.layers import LocalBlock, SliceBlock, Stem
from MedVLMReaderLib.weights import only

ZFORMER_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "pad_token_id",
    "block_size", "num_random_blocks", "max_position_embeddings", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "initializer_range",
)  # fmt: skip
CHUNK = 32
"""Slices encoded at a time: bounds memory, changes nothing."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network. The defaults are the published ones."""

    patch: int = 16
    table: int = 224
    """Picture size for which the table of positions was learned."""
    channels: int = 3
    stem: tuple[int, ...] = ()
    """Widths of convolutions before the patches, halving the picture each; none in the published model."""
    stem_depth: int = 1
    """Residual 3x3 convolutions at each width of the stem."""
    local: int = 0
    """Residual 3x3 convolutions over the patches before the transformer; none in the published model."""
    context: int = 0
    """Neighbouring slices on either side that a slice is read with, as further channels."""
    slice_width: int = 768
    slice_depth: int = 12
    slice_heads: int = 12
    zformer: dict[str, Any] = field(
        default_factory=lambda: {"hidden_size": 768, "block_size": 16, "num_random_blocks": 3}
    )
    perceiver_width: int = 4096
    perceiver_depth: int = 6
    perceiver_heads: int = 12
    head_width: int = 64
    latents: int = 32
    places: int = 0
    """Octaves of the position code that tells the perceiver where in patient space each patch lies; 0: the perceiver
    reads slice tokens alone, as published."""

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patch % 2 ** len(self.stem) or self.table % self.patch:
            raise ValueError(f"patch {self.patch} with table {self.table} and {len(self.stem)} widths of stem")
        if self.slice_depth < 1 or self.slice_heads < 1 or self.slice_width % self.slice_heads:
            raise ValueError(
                f"slice_width {self.slice_width} with {self.slice_heads} slice_heads and slice_depth {self.slice_depth}"
            )

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Sizes:
        """Sizes from plain data; ReaderError for a field that is none of ours."""
        only(plain, (one.name for one in fields(cls)), "'sizes' in config.json")
        only(plain.get("zformer", {}), ZFORMER_FIELDS, "'zformer' in config.json")
        return cls(**{**plain, "stem": tuple(plain.get("stem", ()))})

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)


class PatchEmbedding(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels = sizes.channels * (1 + 2 * sizes.context)
        if sizes.stem:
            self.stem = Stem(channels, sizes.stem, sizes.stem_depth)
            channels = sizes.stem[-1]
        side = sizes.patch // 2 ** len(sizes.stem)
        self.proj = nn.Conv2d(channels, sizes.slice_width, side, side)
        self.local = nn.Sequential(*(LocalBlock(sizes.slice_width) for _ in range(sizes.local)))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "stem"):
            x = self.stem(x)
        return self.local(self.proj(x))  # (slices, width, rows, columns)


class SliceEncoder(nn.Module):
    """Vision transformer of DINO (arXiv 2104.14294): a class token and a token a patch for every slice."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch, self.context = sizes.patch, sizes.context
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.slice_width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (sizes.table // sizes.patch) ** 2, sizes.slice_width))
        self.patch_embed = PatchEmbedding(sizes)
        self.blocks = nn.ModuleList(SliceBlock(sizes.slice_width, sizes.slice_heads) for _ in range(sizes.slice_depth))
        self.norm = nn.LayerNorm(sizes.slice_width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(slices, 1 + patches, width) from pictures (slices, channels, rows, columns); class token first."""
        return self.last_block(self._up_to_last(x))

    def before_last_block(self, pictures: Tensor, which: Tensor | None = None) -> Tensor:
        """Tokens of a stack as they enter the last block; `which`: of these slices."""
        return torch.cat([self._up_to_last(part) for part in self.with_neighbours(pictures, which).split(CHUNK)])

    def last_block(self, x: Tensor) -> Tensor:
        """The last block and the norm."""
        return self.norm(self.blocks[-1](x))

    def class_attention(self, x: Tensor) -> Tensor:
        """(slices, heads, 1 + patches): what the class token attends to in the last block."""
        last: Any = self.blocks[-1]
        x = self._up_to_last(x)
        return last.attn.weights(last.norm1(x))[:, :, 0]

    def encode_stack(self, pictures: Tensor, which: Tensor | None = None) -> Tensor:
        """Tokens of a stack (slices, channels, rows, columns), each slice with its neighbours; `which`: of these."""
        beside = self.with_neighbours(pictures, which)
        return torch.cat([self(part) for part in beside.split(CHUNK)])

    def with_neighbours(self, pictures: Tensor, which: Tensor | None = None) -> Tensor:
        """(slices, channels * (1 + 2 context), rows, columns); the outermost slices stand in for what is beyond."""
        at = (torch.arange(len(pictures)) if which is None else which).to(pictures.device)
        steps = range(-self.context, self.context + 1)
        return torch.cat([pictures[(at + step).clamp(0, len(pictures) - 1)] for step in steps], 1)

    def _up_to_last(self, x: Tensor) -> Tensor:
        x = self._embedded(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def _embedded(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        return tokens + self._positions(rows, columns)

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)  # DINO adds 0.1 against rounding; the weights expect it
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], 1)
