"""Where an answer came from: relevance of the encoder's feature grids for stretches of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.study import Message, Model, Seen


def relevance(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], rows: Sequence[tuple[int, int]]
) -> Array:
    """(rows, cells) float32: how much each cell's features spoke for the tokens [start, stop) of an answer.

    Gradient of the tokens' log-likelihood at the feature grid, times the features, summed over the width; what speaks
    against is cut off, and so are cells centred in the padding around the scan. Exact through projectors and
    resamplers. `ids` is the whole answer.
    """
    with torch.enable_grad():
        features = [part.detach().clone().requires_grad_() for part in seen.features]
        tokens = model.tokens(features, seen)
        visual = tokens.detach().requires_grad_()
        likelihood = log_likelihood(model, replace(seen, tokens=visual), messages, ids)
        found = np.stack([_row(model, seen, features, tokens, visual, likelihood[a:b].sum()) for a, b in rows])
    return found * seen.token_map.inside(seen.boxes).astype(np.float32)


def log_likelihood(model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int]) -> Tensor:
    """(tokens,) natural logarithm of the chance that the model gave each token of an answer."""
    prompt = model.prompt(seen, messages)
    answer = torch.tensor(ids, device=prompt.inputs.device)
    told = model.decoder.get_input_embeddings()(answer)[None]
    scores = model.decoder(
        inputs_embeds=torch.cat([prompt.inputs, told], 1), use_cache=False, logits_to_keep=len(answer) + 1,
        **prompt.with_answer(len(answer)),
    ).logits[0]  # fmt: skip
    said = scores[:-1].float().log_softmax(-1)
    return said.gather(1, answer[:, None])[:, 0]


def _row(model: Model, seen: Seen, features: list[Tensor], tokens: Tensor, visual: Tensor, total: Tensor) -> Array:
    (at_tokens,) = torch.autograd.grad(total, visual, retain_graph=True)
    at_features = torch.autograd.grad(tokens, features, at_tokens, retain_graph=True)
    cells = []
    for kept, part, gradient, grid in zip(model.cells(seen), features, at_features, seen.token_map.grids, strict=True):
        whole = torch.zeros(int(np.prod(grid.shape)))
        whole[kept] = (part * gradient).sum(-1).clamp(min=0).detach().float().cpu()
        cells.append(whole)
    return torch.cat(cells).numpy()
