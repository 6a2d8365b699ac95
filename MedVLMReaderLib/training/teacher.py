"""The 2-D model from which Med3DInsight learns: CLIP of transformers, a published one from a folder or a small one
that is trained here, on slices and their captions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit
from MedVLMReaderLib.training.objectives import contrastive

MEAN, SPREAD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
"""Of CLIP's pictures, red, green and blue, as published."""
LONGEST = 64
"""Tokens of a caption; what is beyond is not read."""


@dataclass(frozen=True)
class TeacherSizes:
    """Sizes of a small teacher."""

    side: int = 96
    patch: int = 12
    width: int = 96
    depth: int = 3
    heads: int = 4
    embedding: int = 64
    words: int = 600


class Teacher:
    """Slices and captions as vectors of one space."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer

    @property
    def embedding(self) -> int:
        return int(self.network.config.projection_dim)

    @torch.no_grad()
    def of_pictures(self, pictures: Sequence[Array]) -> Tensor:
        """(pictures, embedding) unit vectors of grey pictures of 0 to 1, of any shape."""
        return self._seen(torch.cat([square(picture, self.side) for picture in pictures]))

    @torch.no_grad()
    def of_captions(self, captions: Sequence[str]) -> Tensor:
        """(captions, embedding) unit vectors."""
        read = encoded(self.tokenizer, captions)
        return F.normalize(text_vectors(self.network, read["ids"], read["mask"]), dim=-1)

    @property
    def side(self) -> int:
        return int(self.network.config.vision_config.image_size)

    def _seen(self, pictures: Tensor) -> Tensor:
        return torch.cat([F.normalize(picture_vectors(self.network, part), dim=-1) for part in pictures.split(64)])


def picture_vectors(network: Any, pictures: Tensor) -> Tensor:
    """(pictures, embedding), before they are given length 1."""
    return network.visual_projection(network.vision_model(pixel_values=pictures).pooler_output)


def text_vectors(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(texts, embedding), before they are given length 1."""
    return network.text_projection(network.text_model(input_ids=ids, attention_mask=mask).pooler_output)


def square(picture: Array, side: int) -> Tensor:
    """(1, 3, side, side) of a grey picture, as CLIP reads it."""
    grey = F.interpolate(torch.tensor(picture).float()[None, None], (side, side), mode="bilinear", antialias=True)
    mean, spread = (torch.tensor(three)[None, :, None, None] for three in (MEAN, SPREAD))
    return (grey.expand(-1, 3, -1, -1) - mean) / spread


def encoded(tokenizer: Any, captions: Sequence[str]) -> dict[str, Tensor]:
    """ids and mask (captions, length)."""
    read = tokenizer(list(captions), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return {"ids": read["input_ids"], "mask": read["attention_mask"]}


def load(folder: Path) -> Teacher:
    """A CLIP of the published layout: config.json, model.safetensors, tokenizer. Nothing is fetched."""
    from transformers import AutoTokenizer, CLIPModel

    from MedVLMReaderLib.weights import written_config

    if written_config(folder).get("model_type") != "clip":
        raise ReaderError(f"'{folder}' holds no CLIP. Choose the folder of one, or have a small one trained.")
    try:
        network, loading = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{folder}' holds no CLIP that can be read ({str(error).splitlines()[0]}).") from None
    if missing := sorted(loading["missing_keys"]):
        raise ReaderError(f"The CLIP of '{folder}' lacks the tensor '{missing[0]}'. Get it again.")
    return Teacher(network, tokenizer)


# ---- A small one ----------------------------------------------------------------------------------------------------


class Clip(nn.Module):
    """A CLIP with its loss."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if self.training:  # a little elsewhere each time, or the few slices are learned by heart
            pictures = pictures.roll((int(torch.randint(-4, 5, ())), int(torch.randint(-4, 5, ()))), (-2, -1))
        seen, told = picture_vectors(self.network, pictures), text_vectors(self.network, ids, mask)
        loss = contrastive(F.normalize(seen, dim=-1), F.normalize(told, dim=-1), self.network.logit_scale)
        return {"clip": loss}


class Pairs:
    """Slices with their captions."""

    def __init__(self, pictures: Sequence[Array], captions: Sequence[str], side: int) -> None:
        self.pictures, self.captions, self.side = pictures, captions, side

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, n: int) -> dict[str, Any]:
        picture = square(self.pictures[n], self.side)[0]
        return {"name": f"slice {n}", "picture": picture, "caption": self.captions[n]}


def taught(
    pictures: Sequence[Array], captions: Sequence[str], sizes: TeacherSizes, settings: Settings, folder: Path, *,
    minutes: float = 1e9,
) -> Teacher | None:  # fmt: skip
    """A small CLIP, trained on slices and captions; None where the training is not finished yet."""
    from transformers import CLIPConfig, CLIPModel

    from MedVLMReaderLib.training.siglip import SPECIAL, made_tokenizer

    tokenizer = made_tokenizer(captions, folder, sizes.words)
    layers = {"hidden_size": sizes.width, "intermediate_size": 4 * sizes.width, "num_hidden_layers": sizes.depth,
              "num_attention_heads": sizes.heads, "projection_dim": sizes.embedding}  # fmt: skip
    text = {**layers, "vocab_size": len(tokenizer), "max_position_embeddings": LONGEST,
            **{f"{name}_token_id": SPECIAL.index(mark) for name, mark in
               (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}}  # fmt: skip
    seen = {**layers, "image_size": sizes.side, "patch_size": sizes.patch}
    torch.manual_seed(settings.seed)
    network = Clip(CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=sizes.embedding)))

    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        read = encoded(tokenizer, [row["caption"] for row in rows])
        return {
            "name": [row["name"] for row in rows],
            "pictures": torch.stack([row["picture"] for row in rows]),
            **read,
        }

    if (folder / WEIGHTS).exists():
        from safetensors.torch import load_file

        network.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    elif not fit(network, Pairs(pictures, captions, sizes.side), collated, settings, folder, minutes=minutes):
        return None
    return Teacher(network.network, tokenizer)
