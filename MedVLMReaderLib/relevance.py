"""Relevance: how much each cell's features spoke for stretches of an answer; by gradients, so through any projector.

Three things make it point better than a plain gradient times the features. Attention and norms count as constants, so
that what is shared out is what flowed to the words, and not what would have moved the flow. Features count as what they
are beyond the scan's mean, because most of a feature is the same everywhere. And the words count by their odds, each as
far as the image decides it: of a word that the model is sure of, the likelihood hardly has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from MedVLMReaderLib.attention import Row, continued
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.prefix import rest
from MedVLMReaderLib.study import Message, Model, Seen, Stopped


def relevance(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], rows: Sequence[Row],
    stopped: Callable[[], bool] = lambda: False,
) -> Array:  # fmt: skip
    """(rows, cells) float32: how much each cell's features spoke for the tokens [start, stop) of an answer.

    Gradient of the tokens' odds at the feature grid, times what the features are beyond their mean, summed over the
    width; what speaks against is cut off, and so are cells centred in the padding around the scan. `ids` is the whole
    answer. Raises `Stopped` before a row, once `stopped` says True.
    """
    mean = plain(seen.features)
    with torch.enable_grad(), Flow():
        features = [part.detach().clone().requires_grad_() for part in seen.features]
        tokens = model.tokens(features, seen)
        visual = tokens.detach().requires_grad_()
        scores = said(model, replace(seen, tokens=visual), messages, ids)
    with torch.enable_grad():
        odds = _odds(scores, ids) * _decided(model, seen, messages, ids, scores, mean)
        beyond = [part.detach() - middle for part, middle in zip(features, mean, strict=True)]
        found = []
        for start, stop in rows:
            if stopped():
                raise Stopped
            found.append(_row(model, seen, features, beyond, tokens, visual, odds[start:stop].sum()))
    return np.stack(found) * seen.token_map.inside(seen.boxes).astype(np.float32)


def _row(
    model: Model, seen: Seen, features: list[Tensor], beyond: list[Tensor], tokens: Tensor, visual: Tensor,
    total: Tensor,
) -> Array:  # fmt: skip
    (at_tokens,) = torch.autograd.grad(total, visual, retain_graph=True)
    at_features = torch.autograd.grad(tokens, features, at_tokens, retain_graph=True)
    cells = []
    for kept, part, gradient, grid in zip(model.cells(seen), beyond, at_features, seen.token_map.grids, strict=True):
        whole = torch.zeros(int(np.prod(grid.shape)))
        whole[kept] = (part * gradient).sum(-1).clamp(min=0).float().cpu()
        cells.append(whole)
    return torch.cat(cells).numpy()


# ---- What the image decides ------------------------------------------------------------------------------------------


def said(model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) float32 scores from which each token of an answer was chosen."""
    prompt = model.prompt(seen, messages)
    told = model.decoder.get_input_embeddings()(torch.tensor(ids, device=prompt.inputs.device))
    inputs = rest(continued(prompt, told), 0)
    scores: Tensor = model.decoder(use_cache=False, logits_to_keep=len(ids) + 1, **inputs).logits[0, :-1]
    return scores.float()


def log_likelihood(model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int]) -> Tensor:
    """(tokens,) natural logarithm of the chance that the model gave each token of an answer."""
    return _chances(said(model, seen, messages, ids), ids)


def decided(model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int]) -> Tensor:
    """(tokens,) how far the image decides each token of an answer, 0 or more.

    What becomes of its log-likelihood, up or down, where all features of the scan are as their mean.
    """
    with torch.no_grad():
        return _decided(model, seen, messages, ids, said(model, seen, messages, ids), plain(seen.features))


@torch.no_grad()
def _decided(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], scores: Tensor, mean: Sequence[Tensor]
) -> Tensor:
    even = [middle.expand_as(part) for part, middle in zip(seen.features, mean, strict=True)]
    without = said(model, replace(seen, tokens=model.tokens(even, seen)), messages, ids)
    return (_chances(scores.detach(), ids) - _chances(without, ids)).abs()


def plain(features: Sequence[Tensor]) -> list[Tensor]:
    """For each part, the (width,) mean of all features as wide as its own."""
    wide = {part.shape[-1]: [other for other in features if other.shape[-1] == part.shape[-1]] for part in features}
    means = {width: torch.cat([part.detach() for part in parts]).mean(0) for width, parts in wide.items()}
    return [means[part.shape[-1]] for part in features]


def _chances(scores: Tensor, ids: Sequence[int]) -> Tensor:
    return scores.log_softmax(-1).gather(1, _column(scores, ids))[:, 0]


def _odds(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """(tokens,) natural logarithm of chance against all others."""
    at = _column(scores, ids)
    return scores.gather(1, at)[:, 0] - scores.scatter(1, at, float("-inf")).logsumexp(-1)


def _column(scores: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, device=scores.device)[:, None]


# ---- What flowed -----------------------------------------------------------------------------------------------------


class Flow(TorchFunctionMode):
    """In here, gradients take attention weights and the spreads of norms as constants; values are as outside.

    Gradient times input then shares out what came in, instead of asking what would change: arXiv 2202.07304.
    """

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's own result, with such gradients."""
        named = kwargs or {}
        if function is F.scaled_dot_product_attention:
            asked = [part.detach() for part in args[:2]]
            named = {n: v.detach() if n in ("query", "key") else v for n, v in named.items()}
            return function(*asked, *args[2:], **named)
        if function in (torch.softmax, Tensor.softmax, F.softmax, torch.rsqrt, Tensor.rsqrt):
            return function(*args, **named).detach()
        if function is F.layer_norm:
            return _layer_norm(*args, **named)
        if function is F.rms_norm:
            return _rms_norm(*args, **named)
        return function(*args, **named)


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    around = tuple(range(-len(normalized_shape), 0))
    return _scaled(input - input.mean(around, keepdim=True), around, weight, bias, eps)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    least = torch.finfo(input.dtype).eps if eps is None else eps
    return _scaled(input, tuple(range(-len(normalized_shape), 0)), weight, None, least)


def _scaled(x: Tensor, over: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = x.detach().double() if x.dtype == torch.float64 else x.detach().float()
    out = x * (wide.square().mean(over, keepdim=True) + eps).rsqrt().to(x.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias
