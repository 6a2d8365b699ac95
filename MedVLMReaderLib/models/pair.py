"""What pairs share that find the text of a scan and the scan of a text: both as unit vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.block import BlockRecipe, block, on_screen
from MedVLMReaderLib.volume import View, Volume


class Pair(nn.Module):
    """An encoder of scans and one of texts. A pair adds both and `encode_image`."""

    language_encoder: Any
    mm_vision_proj: nn.Linear
    mm_language_proj: nn.Linear

    def __init__(self, recipe: BlockRecipe, longest: int, tokenizer: Any, name: str, revision: str) -> None:
        super().__init__()
        self.tokenizer, self.name, self.revision = tokenizer, name, revision
        self.notes: tuple[str, ...] = ()
        """What the user must know of the files."""
        self.recipe, self.longest = recipe, longest
        """How a scan is prepared, and how many tokens of a text are read."""

    def encode_image(self, blocks: Tensor) -> Tensor:
        """(batch, width) unit vectors of (batch, 1, depth, rows, columns)."""
        raise NotImplementedError

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(batch, width) unit vectors of (batch, length) tokens: the first one's, projected."""
        states = self.language_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.mm_language_proj(states[:, 0]), dim=-1)

    @torch.no_grad()
    def of_volume(self, volume: Volume, view: View | None = None) -> Tensor:
        """(width,) unit vector of a scan; CT in the window of the view, where there is one."""
        shown = block(volume, on_screen(self.recipe, view))
        return self.encode_image(torch.from_numpy(shown.values)[None, None].to(self.mm_vision_proj.weight))[0]

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(texts, width) unit vectors."""
        read = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.mm_language_proj.weight.device)  # fmt: skip
        return self.encode_text(read["input_ids"], read["attention_mask"])
