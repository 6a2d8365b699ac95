"""What the papers' trainings make small. Each is one loss, the same in any number of processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

REGULAR, MASS = 0.03, 0.95
"""Of partial transport, as published: entropy's weight, and the share of the mass that is moved."""


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes one after the other, differentiable; each process has as many.

    Every process works out the same loss of all rows. The gradients of its own rows come back summed over processes,
    and are then averaged over them with those of the weights: right for both.
    """
    if processes() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


def sigmoid(images: Tensor, texts: Tensor, t_prime: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss of unit vectors (n, width), pair by pair: over all processes' pairs, divided by their number."""
    which = torch.arange(len(images) * processes(), device=images.device)
    return _sigmoid(gathered(images), gathered(texts), which, t_prime, bias)


def sigmoid_among(images: Tensor, texts: Tensor, which: Tensor, t_prime: Tensor, bias: Tensor) -> Tensor:
    """The same of unit vectors (n, width) against all of (texts, width), which every process has; `which` (n,) is the
    right one of each."""
    return _sigmoid(gathered(images), texts, gathered(which), t_prime, bias)


def _sigmoid(images: Tensor, texts: Tensor, which: Tensor, t_prime: Tensor, bias: Tensor) -> Tensor:
    logits = (images @ texts.T).float() * t_prime.exp() + bias
    right = which[:, None] == torch.arange(len(texts), device=which.device)
    return -F.logsigmoid(torch.where(right, logits, -logits)).sum() / len(logits)


def contrastive(one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of unit vectors (n, width), pair by pair; `scale` before its exponential."""
    logits = gathered(one) @ gathered(other).T * scale.exp()
    right = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def partial_transport(one: Tensor, other: Tensor, measure: Tensor, *, rounds: int = 1000) -> Tensor:
    """How far the plan that moves most of `one` to `other` (n, width) is from moving each row to its own.

    Distances by a learned measure (width, width), the largest of them 1; entropic partial transport (POT). Source:
    arXiv 2509.09064. Worked out in 64 bits: the plan's smallest shares vanish in 32.
    """
    import ot

    one, other = (F.normalize(gathered(rows), dim=-1).double() for rows in (one, other))
    apart = one[:, None] - other[None]
    square = torch.einsum("nmi,ij,nmj->nm", apart, (measure + measure.T).double() / 2, apart)
    distance = square.clamp(min=1e-8).sqrt()
    share = torch.full((len(one),), 1 / len(one), dtype=torch.float64, device=one.device)
    plan = ot.partial.entropic_partial_wasserstein(
        share, share, distance / distance.max().clamp(min=1e-8), REGULAR, MASS, numItermax=rounds, stopThr=1e-9
    )
    return -(plan.diagonal().clamp(min=1e-30).log().mean()).float()


def words(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels (batch, length), each from what stands before it; -100 is left out.

    The mean is over the words of all processes, however unevenly they fall to them.
    """
    return said(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def said(logits: Tensor, told: Tensor) -> Tensor:
    """The same of (n, words) scores, each for the word `told` (n,)."""
    total = F.cross_entropy(logits.float(), told, ignore_index=-100, reduction="sum")
    count = (told != -100).sum().to(total)
    if processes() > 1:
        dist.all_reduce(count)
    return total * processes() / count.clamp(min=1)


def masked_slices(rebuilt: Tensor, true: Tensor, hidden: Tensor) -> Tensor:
    """MS-VLM's loss of hidden slices: (batch, slices, width) against the true ones, |difference| summed over the width,
    averaged over the slices that `hidden` (batch, slices) marks."""
    apart = (rebuilt - true).abs().sum(-1) * hidden
    return apart.sum() / hidden.sum().clamp(min=1)
