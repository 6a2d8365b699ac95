"""What the decoder remembers of a chat, kept from one question to the next, so that each costs its own words alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from MedVLMReaderLib.memory import free_memory
from MedVLMReaderLib.study import Prompt

READ_AGAIN = (
    "The memory left could not hold what the model had read for the last answer, so it read the image again for this "
    "one. The answer is the same; it only took longer."
)
UNSETTLED = ("dynamic", "longrope")
"""Ways to write positions that change what was read before once a text grows long."""


@dataclass(frozen=True, eq=False)
class Held:
    """A cache, and exactly what it was made of."""

    key: str
    """`Seen.key`: the model's revision, the preparation and the voxels."""
    inputs: Tensor
    """(1, length, width) the embeddings that it holds, those of the image among them."""
    visual: tuple[int, ...]
    """Where the visual tokens stand."""
    positions: Tensor | None
    """(axes, 1, length) the positions it was told, where the decoder must be told them."""
    cache: DynamicCache
    sinks: dict[int, Tensor]
    """By layer, (visual tokens,) bool: those that every word attends to."""

    def shared(self, key: str, prompt: Prompt) -> int:
        """How many positions at the beginning of a prompt are held; 0 where that ends within the image.

        Nothing is shared with another image, even if its key were the same: its embeddings are compared too.
        """
        if key != self.key or prompt.visual_positions != self.visual or not _alike(prompt.inputs, self.inputs):
            return 0
        length = min(prompt.inputs.shape[1] - 1, self.inputs.shape[1])  # at least one is read, for its scores
        same = (prompt.inputs[0, :length] == self.inputs[0, :length]).all(-1)
        told = prompt.extras.get("position_ids")
        if (told is None) != (self.positions is None):
            return 0
        if told is not None and self.positions is not None:
            same &= (told[..., :length] == self.positions[..., :length]).flatten(0, -2).all(0)
        count = int(same.long().cumprod(0).sum())
        return count if count > max(self.visual, default=-1) else 0


@dataclass(frozen=True, eq=False)
class Lent:
    """What is held of a prompt, for one pass over what follows; the pass leaves it as it was."""

    cache: DynamicCache
    count: int
    """Positions of the prompt that it holds."""
    sinks: dict[int, Tensor]


class _Unchanged(DynamicLayer):
    """A layer of a cache that shows what comes in behind what it holds, and keeps none of it."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values so far; memory for those of one layer at a time."""
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class Prefix:
    """The decoder's memory of the last prompt and its answer. Of several studies: the last one's."""

    def __init__(self, free: Callable[[str], int] = free_memory) -> None:
        self.free = free
        """Bytes left on a device."""
        self.held: Held | None = None
        self.refused = ""
        """The key of the study whose cache did not fit."""

    def taken(self, key: str, prompt: Prompt) -> Lent:
        """A cache, empty or with the beginning of the prompt. It is the caller's, to change and to `keep`."""
        held, self.held = self.held, None
        count = held.shared(key, prompt) if held else 0
        if not held or not count:
            return Lent(DynamicCache(), 0, {})
        cut(held.cache, count)
        return Lent(held.cache, count, held.sinks)

    def lent(self, key: str, prompt: Prompt) -> Lent | None:
        """What is held of a prompt, to look at; None where that is nothing."""
        count = self.held.shared(key, prompt) if self.held else 0
        if not self.held or not count:
            return None
        cache = DynamicCache()
        cache.layers = [
            _Unchanged(layer.keys[..., :count, :], layer.values[..., :count, :]) for layer in self.held.cache.layers
        ]
        return Lent(cache, count, self.held.sinks)

    def missed(self, key: str) -> bool:
        """Whether this study's cache was given up because it did not fit; asked once."""
        was, self.refused = self.refused == key, ""
        return was

    def keep(
        self, key: str, inputs: Tensor, prompt: Prompt, cache: DynamicCache, sinks: dict[int, Tensor], config: Any
    ) -> None:
        """Hold a cache of `inputs`, (1, length, width): of the prompt and what followed it, or its beginning.

        Not where it cannot be cut back, nor where as much memory again is not free: the next answer makes it grow.
        """
        length, visual = inputs.shape[1], prompt.visual_positions
        if length <= max(visual, default=-1) or not cuttable(cache, config):
            return
        cut(cache, length)
        if self.free(str(inputs.device)) < size(cache):
            self.refused = key
            return
        more = max(0, length - prompt.inputs.shape[1])
        positions = prompt.with_answer(more).get("position_ids")
        self.held = Held(key, inputs, visual, None if positions is None else positions[..., :length], cache, sinks)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape[2], one.dtype, one.device) == (other.shape[2], other.dtype, other.device)


def rest(prompt: Prompt, held: int) -> dict[str, Any]:
    """The decoder's arguments that read a prompt after its first `held` positions, the image among those."""
    if not held:
        return {"inputs_embeds": prompt.inputs, **prompt.extras}
    inputs: dict[str, Any] = {"inputs_embeds": prompt.inputs[:, held:]}
    if (positions := prompt.extras.get("position_ids")) is not None:
        inputs["position_ids"] = positions[..., held:]
    return inputs  # what else there may be belongs to the image, or is nothing for words


def cuttable(cache: DynamicCache, config: Any) -> bool:
    """Whether a cache keeps every position as it was read, so that its end can be taken away."""
    ropes = (getattr(config, "rope_parameters", None) or {}, getattr(config, "rope_scaling", None) or {})
    kinds = {str(rope.get("rope_type", rope.get("type"))) for rope in ropes if isinstance(rope, dict)}
    kinds |= {str(one.get("rope_type")) for rope in ropes for one in rope.values() if isinstance(one, dict)}
    return all(type(layer) is DynamicLayer for layer in cache.layers) and not kinds & set(UNSETTLED)


def cut(cache: DynamicCache, length: int) -> None:
    """Take away what follows the first `length` positions; a layer that was interrupted holds fewer than the others."""
    for layer in cache.layers:
        if (more := layer.get_seq_length() - length) > 0:
            layer.crop(-more)


def size(cache: DynamicCache) -> int:
    """Bytes of a cache."""
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values) if part is not None]
    return sum(part.numel() * part.element_size() for part in parts)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch has a name for that on a GPU, and none on a CPU."""
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )
