"""Med3DInsight: pre-training on what a 2-D model makes of slices and captions, then masks and labels on a few studies.

The teacher is a pair of functions, pictures to embeddings and captions to embeddings; it never sees masks or labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.med3d_insight import Med3DInsight
from MedVLMReaderLib.models.pyramid import Classifier, Segmenter
from MedVLMReaderLib.training.objectives import contrastive, partial_transport
from MedVLMReaderLib.volume import PLANES

Objective = Literal["contrastive", "transport"]


class Insight(nn.Module):
    """The network with its objective: contrastive (2024), or partial transport and rebuilding (2025)."""

    def __init__(self, network: Med3DInsight, objective: Objective = "transport") -> None:
        super().__init__()
        self.network, self.objective = network, objective
        unused = (network.L, *network.rebuild.parameters()) if objective == "contrastive" and network.rebuild else ()
        for one in unused if objective == "contrastive" else (network.scale,):
            one.requires_grad_(False)

    def forward(self, volumes: Tensor, plane: Tensor, slice_number: Tensor, picture: Tensor, caption: Tensor
                ) -> dict[str, Tensor]:  # fmt: skip
        """Parts of the loss: `plane` indexes PLANES; `picture` and `caption` (batch, embedding) are the teacher's.

        With several slices of each volume, all but the volumes are (batch, slices, ...).
        """
        plane, slice_number = plane.flatten(), slice_number.flatten()
        picture, caption = picture.flatten(0, -2), caption.flatten(0, -2)
        found, rebuilt = self.network(volumes, [PLANES[int(n)] for n in plane], slice_number)
        if self.objective == "contrastive":
            one, scale = F.normalize(found, dim=-1), self.network.scale
            told = {"picture": picture, "caption": caption}
            return {name: contrastive(one, F.normalize(each, dim=-1), scale) for name, each in told.items()}
        parts = {
            "picture": partial_transport(found, picture, self.network.L),
            "caption": partial_transport(found, caption, self.network.L),
        }
        return parts if rebuilt is None else {**parts, "rebuilt": F.mse_loss(rebuilt, volumes)}


class MaskLoss(nn.Module):
    """Dice and cross-entropy of masks (MONAI), the published loss downstream.

    Dice is that of a batch as a whole: of a scan without an organ there is none. `weights` (classes,): how much each
    class counts.
    """

    def __init__(self, segmenter: Segmenter, weights: Tensor | None = None) -> None:
        from monai.losses.dice import DiceCELoss

        super().__init__()
        self.segmenter = segmenter
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True, weight=weights)
        self.elsewhere = frozenset(name for name in self.state_dict() if name.startswith("loss."))  # the weights

    def forward(self, volumes: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """`masks` (batch, 1, depth, rows, columns): class numbers."""
        return {"dice_ce": self.loss(self.segmenter(volumes), masks)}


class LabelLoss(nn.Module):
    """Cross-entropy of labels, each by itself."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, volumes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`labels` (batch, classes) of 0 and 1."""
        return {"labels": F.binary_cross_entropy_with_logits(self.classifier(volumes), labels.float())}


class Arrays:
    """Rows from arrays: of each, item n is row n."""

    def __init__(self, arrays: Mapping[str, Array | Tensor], names: Sequence[str]) -> None:
        self.arrays, self.names = {name: torch.as_tensor(array) for name, array in arrays.items()}, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"name": self.names[n], **{name: array[n] for name, array in self.arrays.items()}}


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of such rows."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "name"}
    return {"name": [row["name"] for row in rows], **stacked}


def shuffled(captions: Tensor, seed: int) -> Tensor:
    """The control: each slice gets another one's caption, (n, embedding), none its own where n is above 1."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))
    return captions[order[torch.argsort(order.roll(1))]]


def taught(network: Med3DInsight, learner: Segmenter | Classifier) -> None:
    """Put what the pre-trained encoder learned into a head's encoder."""
    learner.encoder.load_state_dict(network.encoder.state_dict())
