"""Encoders of volumes that give grids of features, fine to coarse, and heads on top of them.

Med3DInsight teaches any of these encoders; segmentation and classification heads then use what it learned. Arrays are
(batch, channels, depth, rows, columns).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Shape
from MedVLMReaderLib.models import dcformer
from MedVLMReaderLib.weights import only

Grids = list[Tensor]


@dataclass(frozen=True)
class EncoderSizes:
    """Which encoder, and its sizes."""

    kind: str = "dcformer"
    """dcformer, resnet, swin (of SwinUNETR) or vit (of UNETR)."""
    widths: tuple[int, ...] = (32, 32, 64, 128, 256)
    """Channels of each grid, fine to coarse. swin: each twice the one before; vit: all alike."""
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Layers of each stage (dcformer, resnet, swin: of four); of vit, the layers before each grid."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage (swin), or of all layers (vit)."""
    shape: Shape = (32, 96, 96)
    """Voxels of what is read at once; vit has a place for each patch of it."""
    patch: tuple[int, int, int] = (8, 16, 16)
    """Of vit, in voxels."""

    def __post_init__(self) -> None:
        if self.kind not in ENCODERS:
            raise ReaderError(f"No encoder '{self.kind}'. Known: {', '.join(ENCODERS)}.")
        if len(self.widths) < 2 or not self.blocks or min(*self.widths, *self.blocks, *self.shape) < 1:
            raise ReaderError(f"An encoder of widths {self.widths} with blocks {self.blocks} cannot be made.")

    @property
    def cell(self) -> tuple[int, int, int]:
        """Voxels of a cell of the finest grid along each axis."""
        return {"dcformer": (4, 4, 4), "vit": self.patch}.get(self.kind, (2, 2, 2))

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> EncoderSizes:
        """Sizes from plain data; ReaderError for a field that is none of ours."""
        only(plain, (one.name for one in fields(cls)), "'encoder' in config.json")
        lists: dict[str, Any] = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        return cls(**{**plain, **lists})

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)


# ---- Encoders -------------------------------------------------------------------------------------------------------


class DCFormerEncoder(nn.Module):
    """Med3DVLM's encoder; cells of 4 to 64 voxels."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        blocks, widths = cast(Any, sizes.blocks), cast(Any, sizes.widths)
        if (len(blocks), len(widths)) != (4, 5):
            raise ReaderError(f"dcformer has 4 numbers of blocks and 5 widths, not {blocks} and {widths}.")
        self.encoder = dcformer.DCFormer(dcformer.Sizes(blocks, widths))

    def forward(self, x: Tensor) -> Grids:
        return [grid.movedim(-1, 1) for grid in self.encoder(x)]


class ResNetEncoder(nn.Module):
    """MONAI's 3-D ResNet of basic blocks; cells of 2, 2, 4, 8 and 16 voxels."""

    def __init__(self, sizes: EncoderSizes) -> None:
        from monai.networks.nets.resnet import ResNet

        super().__init__()
        if len(sizes.blocks) != 4 or len(sizes.widths) != 5 or sizes.widths[0] != sizes.widths[1]:
            raise ReaderError(f"resnet has 4 numbers of blocks and 5 widths, the first two alike; got {sizes.widths}.")
        self.encoder = ResNet("basic", list(sizes.blocks), list(sizes.widths[1:]), n_input_channels=1,
                              conv1_t_size=5, conv1_t_stride=2, no_max_pool=True, feed_forward=False)  # fmt: skip

    def forward(self, x: Tensor) -> Grids:
        whole = cast(Any, self.encoder)
        grids = [whole.act(whole.bn1(whole.conv1(x)))]
        for stage in (whole.layer1, whole.layer2, whole.layer3, whole.layer4):
            grids.append(stage(grids[-1]))
        return grids


class SwinEncoder(nn.Module):
    """The encoder of MONAI's SwinUNETR; cells of 2, 4, 8, 16 and 32 voxels."""

    def __init__(self, sizes: EncoderSizes) -> None:
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        width = sizes.widths[0]
        if len(sizes.blocks) != 4 or sizes.widths != tuple(width * 2**n for n in range(5)):
            raise ReaderError(f"swin has 4 numbers of blocks and 5 widths, each twice the last; got {sizes.widths}.")
        self.encoder = SwinTransformer(1, width, (7, 7, 7), (2, 2, 2), list(sizes.blocks), list(sizes.heads))

    def forward(self, x: Tensor) -> Grids:
        return list(self.encoder(x))


class VitEncoder(nn.Module):
    """The vision transformer of MONAI's UNETR: its hidden layers after each of `blocks`, all of the same cells."""

    def __init__(self, sizes: EncoderSizes) -> None:
        from monai.networks.nets.vit import ViT

        super().__init__()
        width = sizes.widths[0]
        if set(sizes.widths) != {width} or len(sizes.blocks) != len(sizes.widths):
            raise ReaderError(f"vit has one width for all grids and a number of blocks each; got {sizes.widths}.")
        self.ends = [sum(sizes.blocks[: n + 1]) - 1 for n in range(len(sizes.blocks))]
        self.cells = [n // patch for n, patch in zip(sizes.shape, sizes.patch, strict=True)]
        self.encoder = ViT(1, sizes.shape, sizes.patch, width, 4 * width, sum(sizes.blocks), sizes.heads[0])
        for name, one in self.encoder.named_parameters():
            one.requires_grad_("cross_attn" not in name)  # MONAI's blocks have these even where nothing uses them

    def forward(self, x: Tensor) -> Grids:
        last, layers = self.encoder(x)
        layers = [*layers[:-1], last]
        return [layers[n].transpose(1, 2).unflatten(2, self.cells) for n in self.ends]


ENCODERS: dict[str, Callable[[EncoderSizes], nn.Module]] = {
    "dcformer": DCFormerEncoder, "resnet": ResNetEncoder, "swin": SwinEncoder, "vit": VitEncoder,
}  # fmt: skip


def new_encoder(sizes: EncoderSizes) -> nn.Module:
    """An untrained encoder: (batch, 1, depth, rows, columns) of grey levels 0 to 1 to grids, fine to coarse."""
    return ENCODERS[sizes.kind](sizes)


def tokens(grid: Tensor) -> Tensor:
    """(batch, cells, channels) of a grid (batch, channels, depth, rows, columns); columns count fastest."""
    return grid.flatten(2).transpose(1, 2)


# ---- Heads ----------------------------------------------------------------------------------------------------------


class Mask(nn.Module):
    """Scores of every class at every voxel: grids joined from coarse to fine, the volume itself last."""

    def __init__(self, widths: Sequence[int], classes: int, width: int = 32) -> None:
        super().__init__()
        fine_first = [max(min(one, 128), width) for one in widths]
        self.join = nn.ModuleList(
            _joined(coarse + fine, out)
            for coarse, fine, out in zip([widths[-1], *fine_first[-2:0:-1]], widths[-2::-1], fine_first[-2::-1],
                                         strict=True)
        )  # fmt: skip
        self.voxels = nn.Sequential(_joined(fine_first[0] + 1, width // 2), nn.Conv3d(width // 2, classes, 1))

    def forward(self, x: Tensor, grids: Grids) -> Tensor:
        """(batch, classes, depth, rows, columns) of a volume (batch, 1, ...) and its grids."""
        out = grids[-1]
        for join, finer in zip(self.join, grids[-2::-1], strict=True):
            out = join(torch.cat([_as_large(out, finer), finer], 1))
        return self.voxels(torch.cat([_as_large(out, x), x], 1))


def _joined(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, padding=1, bias=False), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01)
    )


def _as_large(x: Tensor, other: Tensor) -> Tensor:
    if x.shape[2:] == other.shape[2:]:
        return x
    return F.interpolate(x, other.shape[2:], mode="trilinear", align_corners=False)


class Segmenter(nn.Module):
    """Encoder and mask head: (batch, 1, depth, rows, columns) to scores of the classes at every voxel."""

    def __init__(self, sizes: EncoderSizes, classes: int, width: int = 32) -> None:
        super().__init__()
        self.encoder, self.head = new_encoder(sizes), Mask(sizes.widths, classes, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x, self.encoder(x))


class Classifier(nn.Module):
    """Encoder and a linear layer on the coarsest grid's mean and peak: (batch, classes) scores, each by itself."""

    def __init__(self, sizes: EncoderSizes, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = new_encoder(sizes), nn.Linear(2 * sizes.widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        cells = tokens(self.encoder(x)[-1])
        return self.head(torch.cat([cells.mean(1), cells.amax(1)], 1))
