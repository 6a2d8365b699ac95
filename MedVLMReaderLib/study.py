"""What passes between the reader and a model: a study after the encoder, the chat so far, the decoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.volume import View, Volume

if TYPE_CHECKING:
    from torch import Tensor


class Stopped(Exception):
    """Whoever asked wants no more of it; nothing is wrong."""


OUT_OF_DOMAIN = "Out of domain"
"""How the note begins that says a scan is unlike what the model has learned from."""


@dataclass(frozen=True)
class Message:
    """One turn of the chat."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, eq=False)
class Seen:
    """A study after the encoder; kept for the whole chat."""

    features: tuple[Tensor, ...]
    """The encoder's features, one (kept cells, width) tensor for each grid of the token map; see `Model.cells`."""
    tokens: Tensor
    """(visual tokens, decoder width): `features` through the model's projector, as the decoder reads them."""
    token_map: TokenMap
    preparation: dict[str, Any]
    """What was done to the voxels before the encoder, as plain data."""
    key: str
    """Changes with the model's revision, the preparation or the voxels; names a cache entry."""
    notes: tuple[str, ...] = field(default=())
    """What the user must know first: assumptions, limits, out of domain."""
    boxes: tuple[Grid, ...] = ()
    """The scans' own grids: cells centred outside all of them are padding, and no heatmap shows them."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the decoder is given before the answer."""

    inputs: Tensor
    """(1, length, decoder width) embeddings."""
    visual_positions: tuple[int, ...]
    """Where in the sequence the visual tokens stand, in the order of `Seen.tokens`."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further arguments of the decoder's call that reads `inputs`; empty for an ordinary causal language model.

    For tokens after the prompt: `position_ids` (axes, 1, length) go on by one on every axis, and each later call is
    given its own; marks (1, length) of what a position holds are 0; anything else belongs to the prompt alone.
    """

    def with_answer(self, count: int) -> dict[str, Tensor]:
        """`extras` for one call that reads the prompt and `count` tokens of an answer after it."""
        return {name: _longer(name, extra, count) for name, extra in self.extras.items()}

    def after(self, written: int) -> dict[str, Tensor]:
        """What the call must be told that reads one more token, after the prompt and `written` tokens."""
        positions = self.extras.get("position_ids")
        return {} if positions is None else {"position_ids": positions[..., -1:] + 1 + written}


def _longer(name: str, extra: Tensor, count: int) -> Tensor:
    if name != "position_ids" and extra.ndim != 2:
        return extra
    length = extra.shape[-1]
    out = extra.new_zeros((*extra.shape[:-1], length + count))
    out[..., :length] = extra
    if name == "position_ids":
        out[..., length:] = extra[..., -1:] + extra.new_tensor(range(1, count + 1))
    return out


class Model(Protocol):
    """All that a file in models/ must offer to the reader.

    It may offer `see_again(seen, volumes, view)`: as `see`, quicker for volumes that hardly differ from `seen`'s.
    """

    name: str
    revision: str
    decoder: Any
    """A transformers causal language model."""
    tokenizer: Any
    """A transformers tokenizer."""

    def prepared(self, volumes: Sequence[Volume], view: View | None) -> tuple[Volume, ...]:
        """What the encoder will be shown, as stacks of pictures in patient space; grey levels 0 to 1."""

    def see(self, volumes: Sequence[Volume], view: View | None) -> Seen:
        """Encode a study."""

    def tokens(self, features: Sequence[Tensor], seen: Seen) -> Tensor:
        """(visual tokens, decoder width) from feature grids like those of `seen`; differentiable."""

    def cells(self, seen: Seen) -> tuple[Tensor, ...]:
        """For each grid, the flat cell of every row of `seen.features`."""

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        """The decoder's input for the next answer. Differentiable in `seen.tokens`."""

    def report_request(self) -> str:
        """The question that asks this model for a report."""
