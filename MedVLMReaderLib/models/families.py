"""Families of vision-language models that transformers ships: what differs from one to the next.

Each takes a network apart in the same places: pixels to the features that enter the projector, one row for each cell
of the picture that becomes a token; features to tokens; and what else the decoder must be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from MedVLMReaderLib.geometry import Array, Grid


class Family(Protocol):
    """What a family of models must tell."""

    architecture: ClassVar[str]
    """transformers' own class of the whole."""
    processor: ClassVar[str]
    """transformers' own class that turns a picture into numbers, the one that works without torchvision."""
    plain: ClassVar[dict[str, Any]]
    """Settings of that class for one crop a picture, so that a token is one place in it."""
    square: ClassVar[bool]
    """Whether whatever comes is stretched to a square."""
    ordered: ClassVar[bool]
    """Whether the published chat template keeps pictures and texts in the order in which they are given."""
    placeholder: ClassVar[str]
    """What stands for a picture in a written chat."""
    token: ClassVar[str]
    """What stands for each of its tokens afterwards."""
    specials: ClassVar[tuple[str, ...]]
    """What else is written around them; the tokenizer must know these."""
    length_names: ClassVar[tuple[str, ...]]
    """Under what names processor_config.json says how many tokens a picture makes."""
    encoder: ClassVar[tuple[str, ...]]
    """Parts of the network that are never quantised."""
    language: ClassVar[str]
    """The part of the network that reads words."""
    body: ClassVar[str]
    """The part that is called to read embeddings; empty: all of it."""

    def __init__(self, network: Any) -> None: ...

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """(rows, columns) of a processed picture in pixels, and the pixels along a side of a token's cell."""

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """(cells, width) of one processed picture, as they enter the projector; rows of cells from the top."""

    def project(self, features: Tensor) -> Tensor:
        """(cells, decoder width) tokens. Where deeper layers are fed too, theirs follow along the width."""

    def written(self, count: int) -> str:
        """What takes the placeholder's place for a picture of `count` tokens."""

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        """What the decoder must be told beside the embeddings of `ids` (1, length); see `Prompt.extras`.

        `sizes`: (rows, columns) in cells of each picture; `deeper`: (layers, tokens, width) for deeper layers.
        """


class Gemma3:
    """Gemma 3 and MedGemma: SigLIP, 4 x 4 patches averaged to a token; pictures are read in both directions."""

    architecture, processor = "Gemma3ForConditionalGeneration", "Gemma3ImageProcessorPil"
    plain: ClassVar[dict[str, Any]] = {"do_pan_and_scan": False}
    square = ordered = True
    placeholder, token = "<start_of_image>", "<image_soft_token>"
    specials = ("<start_of_image>", "<end_of_image>")
    length_names = ("image_seq_length", "mm_tokens_per_image")
    encoder, language, body = ("vision_tower", "multi_modal_projector"), "language_model", ""

    def __init__(self, network: Any) -> None:
        self.parts, self.token_id = network.model, network.config.image_token_id
        self.patch = network.config.vision_config.patch_size

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch * self.parts.multi_modal_projector.kernel_size

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        patches = self.parts.vision_tower(pixel_values=inputs["pixel_values"]).last_hidden_state
        side = self.parts.multi_modal_projector.patches_per_image
        pooled = self.parts.multi_modal_projector.avg_pool(patches[0].T.unflatten(1, (side, side)))
        return pooled.flatten(1).T

    def project(self, features: Tensor) -> Tensor:
        projector = self.parts.multi_modal_projector
        return projector.mm_soft_emb_norm(features) @ projector.mm_input_projection_weight

    def written(self, count: int) -> str:
        return f"\n\n<start_of_image>{self.token * count}<end_of_image>\n\n"

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == self.token_id).long()}


class QwenVL:
    """Qwen2.5-VL: any aspect, 2 x 2 patches to a token; positions count along rows and columns."""

    architecture, processor = "Qwen2_5_VLForConditionalGeneration", "Qwen2VLImageProcessorPil"
    plain: ClassVar[dict[str, Any]] = {}
    square, ordered = False, True
    placeholder = token = "<|image_pad|>"
    specials = ("<|vision_start|>", "<|vision_end|>")
    length_names: ClassVar[tuple[str, ...]] = ()
    encoder, language, body = ("visual",), "language_model", "language_model"

    def __init__(self, network: Any) -> None:
        self.parts, self.token_id = network.model, network.config.image_token_id
        self.mergers = [self.parts.visual.merger, *getattr(self.parts.visual, "deepstack_merger_list", ())]
        self.patch, self.merge = network.config.vision_config.patch_size, self.parts.visual.spatial_merge_size

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        return rows * self.patch, columns * self.patch, self.patch * self.merge

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        with counted(self.mergers) as entered:
            order = self.parts.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output[:, 0]
        cells = [entered[id(merger)].reshape(len(order), -1) for merger in self.mergers]
        return torch.cat([cells[0][order], *cells[1:]], 1)  # windows reorder what the last merger reads

    def project(self, features: Tensor) -> Tensor:
        widths = [features.shape[1] // len(self.mergers)] * len(self.mergers)
        parts = zip(self.mergers, features.split(widths, 1), strict=True)
        return torch.cat([merger(part.reshape(len(part) * self.merge**2, -1)) for merger, part in parts], 1)

    def written(self, count: int) -> str:
        return self.token * count

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        thw = torch.tensor([(1, rows * self.merge, columns * self.merge) for rows, columns in sizes])
        marks = (ids == self.token_id).int()
        positions, _ = self.parts.get_rope_index(ids, mm_token_type_ids=marks, image_grid_thw=thw.to(ids.device))
        return {"position_ids": positions}


class Qwen3VL(QwenVL):
    """Qwen3-VL: as Qwen2.5-VL, and features of earlier layers are added within the decoder's first layers."""

    architecture = "Qwen3VLForConditionalGeneration"

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        told = super().extras(ids, sizes, deeper)
        return told | {"visual_pos_masks": ids == self.token_id, "deepstack_visual_embeds": deeper}


class Idefics3:
    """Idefics3: SigLIP at one crop, patches shuffled into fewer, wider tokens."""

    architecture, processor = "Idefics3ForConditionalGeneration", "Idefics3ImageProcessorPil"
    plain: ClassVar[dict[str, Any]] = {"do_image_splitting": False}
    square = ordered = True
    placeholder = token = "<image>"
    specials = ("<fake_token_around_image>", "<global-img>")
    length_names = ("image_seq_len",)
    encoder, language, body = ("vision_model", "connector"), "text_model", "text_model"

    def __init__(self, network: Any) -> None:
        self.parts, self.token_id = network.model, network.config.image_token_id
        self.patch, self.merge = network.config.vision_config.patch_size, network.config.scale_factor

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch * self.merge

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        patches = self.parts.vision_model(pixel_values=inputs["pixel_values"][0]).last_hidden_state
        return self.parts.connector.pixel_shuffle(patches, self.merge)[0]

    def project(self, features: Tensor) -> Tensor:
        return self.parts.connector.modality_projection(features)

    def written(self, count: int) -> str:
        return f"<fake_token_around_image><global-img>{self.token * count}<fake_token_around_image>"

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        return {}


class SmolVLM(Idefics3):
    """SmolVLM: as Idefics3, smaller."""

    architecture, processor = "SmolVLMForConditionalGeneration", "SmolVLMImageProcessorPil"


class LlavaOnevision:
    """LLaVA-OneVision: SigLIP at one crop, as it reads several pictures; each ends with a token of its own."""

    architecture, processor = "LlavaOnevisionForConditionalGeneration", "LlavaOnevisionImageProcessorPil"
    plain: ClassVar[dict[str, Any]] = {}
    square, ordered = True, False
    placeholder = token = "<image>"
    specials: ClassVar[tuple[str, ...]] = ()
    length_names = ("num_image_tokens",)
    encoder, language, body = ("vision_tower", "multi_modal_projector"), "language_model", "language_model"

    def __init__(self, network: Any) -> None:
        self.parts, self.token_id = network.model, network.config.image_token_id
        self.patch, self.layer = network.config.vision_config.patch_size, network.config.vision_feature_layer

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        pixels = inputs["pixel_values"][:, 0]
        layers = self.parts.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        return layers[self.layer][0]

    def project(self, features: Tensor) -> Tensor:
        return self.parts.multi_modal_projector(features)

    def written(self, count: int) -> str:
        return self.token * (count + 1)

    def extras(self, ids: Tensor, sizes: Sequence[tuple[int, int]], deeper: Tensor) -> dict[str, Tensor]:
        return {}


FAMILIES: dict[str, type[Family]] = {
    "gemma3": Gemma3,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": Qwen3VL,
    "idefics3": Idefics3,
    "smolvlm": SmolVLM,
    "llava_onevision": LlavaOnevision,
}
"""`model_type` of a config.json -> its family."""


@contextmanager
def counted(mergers: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What enters each module, by its id; in here they put out nothing but (cells, 1) numbers of their rows."""
    entered: dict[int, Tensor] = {}

    def count(merger: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        entered[id(merger)] = given[0]
        return torch.arange(len(out), device=out.device)[:, None]

    handles = [merger.register_forward_hook(count) for merger in mergers]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def cell_grid(picture: Grid, rows: int, columns: int, cell: int) -> Grid:
    """The cells of the tokens, from the picture's own grid: stretched to (rows, columns) pixels, cut into whole cells.

    What is left at the right and at the bottom, less than a cell, no token sees.
    """
    down, across = rows // cell, columns // cell
    seen = picture.resize((1, rows, columns)).crop((0, 0, 0), (1, down * cell, across * cell))
    return seen.resize((1, down, across))


class Decoder(nn.Module):
    """A network's language model and head, called as a causal language model of its own."""

    def __init__(self, network: Any, family: Family) -> None:
        super().__init__()
        self.config = network.config.get_text_config()
        self.words = getattr(network.model, family.language)
        self.body = getattr(network.model, family.body) if family.body else network.model
        self.head = network.lm_head

    def get_input_embeddings(self) -> nn.Module:
        """Words to embeddings."""
        return self.words.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Hidden states to scores of words."""
        return self.head

    def set_attn_implementation(self, name: str) -> None:
        """How attention is computed from now on."""
        self.words.set_attn_implementation(name)

    def forward(self, *, logits_to_keep: int = 0, **inputs: Any) -> CausalLMOutputWithPast:
        """Scores (batch, length, vocabulary) of `inputs` as transformers' language models take them."""
        if (deeper := inputs.get("deepstack_visual_embeds")) is not None:
            inputs["deepstack_visual_embeds"] = list(deeper)
        out = self.body(**inputs)
        hidden = out.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=self.head(hidden), past_key_values=out.past_key_values)


def picture_inputs(processor: Any, pixels: Array, family: Family) -> dict[str, Tensor]:
    """One picture (rows, columns, 3) uint8 as the family's own processor makes numbers of it, in one crop."""
    nested = [[pixels, pixels]] if not family.ordered else [pixels]  # LLaVA tiles a picture that comes alone
    made = processor(images=nested, return_tensors="pt", **family.plain)
    return {name: value[:1] for name, value in made.items() if isinstance(value, Tensor)}
