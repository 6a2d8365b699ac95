"""What comes before a pair: texts learn from reports alone, images from all texts, texts from all images; then `align`.

The published pair begins with a text encoder that has read much before (ClinicalBERT). Where there is none, the first
stage stands in for that: two readings of a report, each without some of its sentences, are to be alike, and unlike
those of other reports (SimCSE, arXiv 2104.08821, by left-out sentences). The second is locked-image tuning turned round
(arXiv 2111.07991): texts stay as they are read, so that every report of the data set can be compared with each image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.dcformer import tokens
from MedVLMReaderLib.models.siglip import SiglipPair
from MedVLMReaderLib.training.augment import Augment, changed
from MedVLMReaderLib.training.objectives import contrastive, sigmoid_among

SCALE = math.log(1 / 0.07)
"""Of likenesses of two readings, before its exponential."""


class Readings(nn.Module):
    """The text encoder of a pair, with the loss of two readings of each report."""

    def __init__(self, pair: SiglipPair, dropped: float) -> None:
        super().__init__()
        self.pair, self.dropped = pair, dropped
        self.stop = pair.tokenizer.convert_tokens_to_ids(".")
        pair.requires_grad_(False)
        pair.language_encoder.requires_grad_(True)
        pair.mm_language_proj.requires_grad_(True)
        self.elsewhere = _without(self, "pair.language_encoder.", "pair.mm_language_proj.")

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        one, other = (self.pair.encode_text(ids, self.thinned(ids, mask)) for _ in range(2))
        return {"readings": contrastive(one, other, one.new_tensor(SCALE))}

    def thinned(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The (batch, length) mask without the words of some sentences; the first token, which sums up, stays."""
        sentence = F.pad((ids == self.stop).cumsum(1)[:, :-1], (1, 0))
        kept = torch.rand(len(ids), int(sentence.max()) + 1, device=ids.device) >= self.dropped
        kept = kept.gather(1, sentence)
        kept[:, 0] = True
        return mask * kept


class Locked(nn.Module):
    """A pair with the loss of images against every report: what the text encoder reads in them is read once, only its
    projection learns with the image encoder."""

    def __init__(self, pair: SiglipPair, read: Tensor, augment: Augment) -> None:
        super().__init__()
        self.pair, self.augment = pair.requires_grad_(True), augment
        pair.language_encoder.requires_grad_(False)
        self.register_buffer("read", read, persistent=False)
        self.read: Tensor
        self.elsewhere = frozenset(self.state_dict()) - _without(self, "pair.language_encoder.")

    def forward(self, blocks: Tensor, which: Tensor) -> dict[str, Tensor]:
        blocks = changed(blocks, self.augment) if self.training else blocks
        texts = F.normalize(self.pair.mm_language_proj(self.read), dim=-1)
        images = self.pair.encode_image(blocks)
        return {"siglip": sigmoid_among(images, texts, which, self.pair.t_prime, self.pair.bias)}


class LockedImages(nn.Module):
    """The other way round: texts against the image of every report, read once; the text encoder learns, and both
    projections. What a text encoder has learned from reports alone need not be what images show."""

    def __init__(self, pair: SiglipPair, seen: Tensor) -> None:
        super().__init__()
        self.pair = pair.requires_grad_(True)
        pair.vision_encoder.requires_grad_(False)
        self.register_buffer("seen", seen, persistent=False)
        self.seen: Tensor
        self.elsewhere = frozenset(self.state_dict()) - _without(self, "pair.vision_encoder.")

    def forward(self, ids: Tensor, mask: Tensor, which: Tensor) -> dict[str, Tensor]:
        images = F.normalize(self.pair.mm_vision_proj(self.seen), dim=-1)
        texts = self.pair.encode_text(ids, mask)
        return {"siglip": sigmoid_among(texts, images, which, self.pair.t_prime, self.pair.bias)}


def _without(network: nn.Module, *beginnings: str) -> frozenset[str]:
    """The names of all tensors but those below."""
    return frozenset(name for name in network.state_dict() if not name.startswith(beginnings))


@torch.no_grad()
def even(pair: SiglipPair, batches: Iterable[Tensor]) -> None:
    """Have the features of such blocks come to the projection of images with a mean of 0 and a spread of 1.

    Most of what an untrained encoder says is the same for every scan (its mean is several times its spread), so that
    all vectors begin alike; what is not already tells planes and organs apart. The projection's own numbers take it up.
    """
    encoder, project = pair.vision_encoder.train(), pair.mm_vision_proj  # norms as in training: of the batch
    features = torch.cat([tokens(encoder(blocks)[-1]).mean(1) for blocks in batches])
    project.weight.div_(features.std(0).clamp(min=1e-6))
    project.bias.copy_(-project.weight @ features.mean(0))


@torch.no_grad()
def align(pair: SiglipPair, seen: Tensor, read: Tensor) -> None:
    """Set both projections to where what is seen (scans, channels) and what is read of it (scans, text width) agree
    most: canonical correlations (Hotelling 1936), each direction as long as the root of its correlation.

    Steps of a gradient come there slowly, as the features of either side go largely together. Temperature and bias are
    those with the least loss of all pairs.
    """
    (ours, whiten_ours, centre_ours), (theirs, whiten_theirs, centre_theirs) = map(_whitened, (seen, read))
    left, agreement, right = torch.linalg.svd(ours.T @ theirs / len(ours), full_matrices=False)
    sides = (
        (pair.mm_vision_proj, whiten_ours @ left, centre_ours),
        (pair.mm_language_proj, whiten_theirs @ right.T, centre_theirs),
    )
    for layer, directions, centre in sides:
        kept = min(layer.out_features, len(agreement))
        layer.weight.zero_()
        layer.weight[:kept] = (directions[:, :kept] * agreement[:kept].sqrt()).T.to(layer.weight)
        layer.bias.copy_(-layer.weight @ centre.to(layer.weight))
    images, texts = (
        F.normalize(layer(rows), dim=-1)
        for layer, rows in zip((pair.mm_vision_proj, pair.mm_language_proj), (seen, read), strict=True)
    )
    _calibrate(pair, images @ texts.T)


EASED = 0.03
"""Of the spread of each feature, added to what they have in common: few scans tell small directions badly."""


def _whitened(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, width) rows in 64 bits with a spread of 1 each way; the (width, width) matrix for that; their mean."""
    rows = rows.double()
    centre, spread = rows.mean(0), rows.std(0).clamp(min=1e-6)
    plain = (rows - centre) / spread
    values, ways = torch.linalg.eigh(plain.T @ plain / len(plain) + EASED * torch.eye(plain.shape[1]).to(plain))
    whiten = (ways * values.rsqrt()) @ ways.T
    return plain @ whiten, whiten / spread[:, None], centre


@torch.enable_grad()
def _calibrate(pair: SiglipPair, likeness: Tensor) -> None:
    """The temperature and bias with the least loss of all (n, n) likenesses; the diagonal's pairs are right."""
    both = torch.tensor([pair.t_prime.item(), -math.log(len(likeness))], requires_grad=True)
    likeness = likeness.detach().float().cpu()
    labels = 2 * torch.eye(len(likeness)) - 1
    search = torch.optim.LBFGS([both], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        total = -F.logsigmoid(labels * (likeness * both[0].exp() + both[1])).sum() / len(likeness)
        total.backward()
        return total

    search.step(loss)
    with torch.no_grad():
        pair.t_prime.fill_(both[0].item())
        pair.bias.fill_(both[1].item())


@torch.no_grad()
def all_seen(pair: SiglipPair, batches: Iterable[Tensor]) -> Tensor:
    """(scans, channels): the coarsest grid's mean, before its projection."""
    pair.eval()
    return torch.cat([tokens(pair.vision_encoder(blocks)[-1]).mean(1) for blocks in batches])


@torch.no_grad()
def all_read(pair: SiglipPair, reports: Sequence[str], at_once: int = 64) -> Tensor:
    """(reports, text width): the first token's state, before its projection."""
    pair.eval()
    rows = []
    for n in range(0, len(reports), at_once):
        given = tokens_of(pair, reports[n : n + at_once])
        rows.append(pair.language_encoder(given["ids"], given["mask"]).last_hidden_state[:, 0])
    return torch.cat(rows)


def tokens_of(pair: SiglipPair, reports: Sequence[str]) -> dict[str, Any]:
    """(batch, length) ids and mask of reports, as long as the text encoder reads."""
    read = pair.tokenizer(list(reports), padding=True, truncation=True, max_length=pair.longest, return_tensors="pt")
    return {"ids": read["input_ids"], "mask": read["attention_mask"]}
