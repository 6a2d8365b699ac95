"""What passes between the reader and a model: a study after the encoder, the chat so far, the decoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.volume import View, Volume

if TYPE_CHECKING:
    from torch import Tensor

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


class Model(Protocol):
    """All that a file in models/ must offer to the reader."""

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
