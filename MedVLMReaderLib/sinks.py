"""Attention sinks: visual tokens that every word attends to, whatever it says. What enters a layer tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

MASSIVE = 20.0
"""Times the root mean square of a hidden state: a number as large as this marks an attention sink, arXiv 2503.03321."""


def sinks_among(hidden: Tensor, visual: Tensor) -> Tensor:
    """(visual tokens,) bool: the sinks, of what enters a layer (1, length, width), at the positions `visual`.

    In some dimensions of the first token's state, sinks too hold a massive number; elsewhere they are like others.
    """
    state = hidden[0][torch.cat([visual.new_zeros(1), visual])].float()
    massive = state.abs() >= MASSIVE * state.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    return (massive[1:] & massive[0]).any(-1)


def kept_somewhere(sinks: Tensor) -> Tensor:
    """The sinks (..., visual tokens), but none where all would be."""
    return sinks & ~sinks.all(-1, keepdim=True)


@contextmanager
def watched(decoder: Any, positions: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """In here the decoder reads the image at `positions`; by layer, the sinks that it makes of it come in."""
    found: dict[int, Tensor] = {}

    def look(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        found[layer.self_attn.layer_idx] = sinks_among(hidden, torch.tensor(positions, device=hidden.device))

    with ExitStack() as stack:
        for layer in decoder.modules():
            if positions and hasattr(getattr(layer, "self_attn", None), "layer_idx"):
                stack.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        yield found
