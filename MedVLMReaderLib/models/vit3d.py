"""The 3D vision transformer of M3D (arXiv 2404.00578): a volume's patches and a class token before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Shape


@dataclass(frozen=True)
class Vit3dSizes:
    """Sizes of the network. The defaults are the published ones."""

    image: Shape = (32, 256, 256)
    """Voxels of the volume that it reads: k, j, i."""
    patch: Shape = (4, 16, 16)
    width: int = 768
    mlp: int = 3072
    depth: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        for name, shape in (("image", self.image), ("patch", self.patch)):
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(f"{name} {list(shape)} should be three positive sizes")
        if any(n % p for n, p in zip(self.image, self.patch, strict=True)):
            raise ValueError(f"a volume of {list(self.image)} cannot be cut into patches of {list(self.patch)}")
        if self.depth < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} with {self.heads} heads and depth {self.depth}")

    @classmethod
    def found(cls, shapes: Mapping[str, tuple[int, ...]], image: Shape, patch: Shape) -> Vit3dSizes:
        """Sizes of a network whose tensors have these shapes; ValueError where there is none.

        A published configuration does not name them. Heads leave no trace: they are 64 wide, in all of ViT's sizes.
        """
        depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        try:
            width, mlp = shapes["cls_token"][-1], shapes["blocks.0.mlp.linear1.weight"][0]
        except (KeyError, IndexError):
            raise ValueError("the weights hold no 3D vision transformer") from None
        if width % 64:
            raise ValueError(f"a vision transformer {width} wide has no heads of 64")
        return cls(image, patch, width, mlp, depth, width // 64)

    @property
    def grid(self) -> Shape:
        """Patches along k, j, i; token n after the class token is patch n of this grid."""
        k, j, i = (n // p for n, p in zip(self.image, self.patch, strict=True))
        return k, j, i

    @property
    def patches(self) -> int:
        """Patches of a volume."""
        k, j, i = self.grid
        return k * j * i


class Patches(nn.Module):
    """(batch, 1, k, j, i) cut into (batch, patches, voxels of a patch), both in the order of the array."""

    def __init__(self, patch: Shape) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        for axis, size in zip((2, 4, 6), self.patch, strict=True):
            x = x.unflatten(axis, (-1, size))  # (batch, 1, k, pk, j, pj, i, pi) in the end
        return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


class PatchEmbedding(nn.Module):
    def __init__(self, sizes: Vit3dSizes) -> None:
        super().__init__()
        k, j, i = sizes.patch
        self.position_embeddings = nn.Parameter(torch.zeros(1, sizes.patches, sizes.width))
        self.patch_embeddings = nn.Sequential(Patches(sizes.patch), nn.Linear(k * j * i, sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_embeddings(x) + self.position_embeddings


class Attention(nn.Module):
    """Self-attention of (batch, tokens, width); queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    def __init__(self, sizes: Vit3dSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width)
        self.attn = Attention(sizes.width, sizes.heads)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.mlp = Mlp(sizes.width, sizes.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit3d(nn.Module):
    """Tensors are named as in the published files, MONAI's of 2024, whose blocks changed with its versions."""

    def __init__(self, sizes: Vit3dSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.patch_embedding = PatchEmbedding(sizes)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1 + patches, width) of volumes (batch, 1, k, j, i) with voxels 0 to 1; the class token first."""
        *_, last = self.layers(x)
        return self.norm(last)

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        """Tokens after each block, before the norm."""
        patches = self.patch_embedding(x)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)  # the class token has no position
        for block in self.blocks:
            x = block(x)
            yield x
