"""Families of vision-language models that transformers ships: what differs from one to the next.

A network of each is taken apart in the same places: pixels to the features that enter the projector, one row for each
cell of the picture that becomes a token; features to tokens; and what else the decoder must be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid


@dataclass(frozen=True, eq=False)
class Placed:
    """A chat as numbers, and the pictures in it."""

    ids: Tensor
    """(1, length) tokens."""
    sizes: tuple[tuple[int, int], ...]
    """(rows, columns) in cells of each picture."""
    deeper: Tensor | None = None
    """(layers, visual tokens, width) for the decoder's first layers, where the network has such."""


class Parts(Protocol):
    """A network taken apart."""

    def __init__(self, network: Any) -> None: ...

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        """(rows, columns) of a processed picture in pixels, and the pixels along a side of a token's cell."""

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """(cells, width) of one processed picture, as they enter the projector; cells row by row from the top."""

    def project(self, features: Tensor) -> Tensor:
        """(cells, decoder width) tokens. Where deeper layers are fed too, theirs follow along the width."""

    def extras(self, chat: Placed) -> dict[str, Tensor]:
        """What the decoder must be told beside the embeddings; see `Prompt.extras`."""


# ---- Networks -------------------------------------------------------------------------------------------------------


class Gemma3:
    """Gemma 3 and MedGemma: SigLIP, 4 x 4 patches averaged to a token; a picture is read in both directions."""

    def __init__(self, network: Any) -> None:
        self.tower, self.projector = network.model.vision_tower, network.model.multi_modal_projector
        self.patch, self.token_id = network.config.vision_config.patch_size, network.config.image_token_id

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch * self.projector.kernel_size

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        patches = self.tower(pixel_values=inputs["pixel_values"]).last_hidden_state[0]
        side = self.projector.patches_per_image
        return self.projector.avg_pool(patches.T.unflatten(1, (side, side))).flatten(1).T

    def project(self, features: Tensor) -> Tensor:
        return self.projector.mm_soft_emb_norm(features) @ self.projector.mm_input_projection_weight

    def extras(self, chat: Placed) -> dict[str, Tensor]:
        return {"token_type_ids": (chat.ids == self.token_id).long()}


class QwenVL:
    """Qwen2.5-VL: any aspect, 2 x 2 patches to a token; positions count along rows and columns.

    Qwen3-VL: the same, and what earlier layers of the encoder found is added within the decoder's first layers.
    """

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
        return torch.cat([cells[0][order], *cells[1:]], 1)  # Qwen2.5 reads windows, and puts them in order at the end

    def project(self, features: Tensor) -> Tensor:
        parts = zip(self.mergers, features.chunk(len(self.mergers), 1), strict=True)
        return torch.cat([merger(part.reshape(len(part) * self.merge**2, -1)) for merger, part in parts], 1)

    def extras(self, chat: Placed) -> dict[str, Tensor]:
        is_picture = chat.ids == self.token_id
        thw = [(1, rows * self.merge, columns * self.merge) for rows, columns in chat.sizes]
        grids = torch.tensor(thw, device=chat.ids.device)
        marks = is_picture.int()
        positions, _ = self.parts.get_rope_index(chat.ids, mm_token_type_ids=marks, image_grid_thw=grids)
        if chat.deeper is None:
            return {"position_ids": positions}
        return {"position_ids": positions, "visual_pos_masks": is_picture, "deepstack_visual_embeds": chat.deeper}


class Idefics3:
    """Idefics3 and SmolVLM: SigLIP at one crop, patches shuffled into fewer, wider tokens."""

    def __init__(self, network: Any) -> None:
        self.tower, self.connector = network.model.vision_model, network.model.connector
        self.patch, self.merge = network.config.vision_config.patch_size, network.config.scale_factor

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch * self.merge

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        patches = self.tower(pixel_values=inputs["pixel_values"][0]).last_hidden_state
        return self.connector.pixel_shuffle(patches, self.merge)[0]

    def project(self, features: Tensor) -> Tensor:
        return self.connector.modality_projection(features)

    def extras(self, chat: Placed) -> dict[str, Tensor]:  # noqa: ARG002
        return {}


class LlavaOnevision:
    """LLaVA-OneVision: SigLIP at one crop, as it reads several pictures; a token of its own ends each."""

    def __init__(self, network: Any) -> None:
        self.tower, self.projector = network.model.vision_tower, network.model.multi_modal_projector
        self.patch, self.layer = network.config.vision_config.patch_size, network.config.vision_feature_layer
        if not isinstance(self.layer, int) or network.config.vision_feature_select_strategy != "full":
            raise ReaderError(
                f"This LLaVA-OneVision takes '{network.config.vision_feature_select_strategy}' features of layer "
                f"{self.layer}; only all features of one layer are read."
            )

    def size(self, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
        rows, columns = inputs["pixel_values"].shape[-2:]
        return rows, columns, self.patch

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        layers = self.tower(pixel_values=inputs["pixel_values"][:, 0], output_hidden_states=True).hidden_states
        return layers[self.layer][0]

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)

    def extras(self, chat: Placed) -> dict[str, Tensor]:  # noqa: ARG002
        return {}


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


# ---- The table of families ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How the models of a family are built, called and written to."""

    architecture: str
    """transformers' own class of the whole."""
    parts: Callable[[Any], Parts]
    processor: str
    """transformers' own class that turns a picture into numbers, the one that works without torchvision."""
    token: str
    """What stands in a written chat for each token of a picture."""
    placeholder: str = ""
    """What the chat template writes for a picture; the token itself where empty."""
    around: tuple[str, str] = ("", "")
    """What the placeholder's tokens are put between."""
    specials: tuple[str, ...] = ()
    """What else the tokenizer must know as one token."""
    closing: int = 0
    """Tokens after those of a picture's cells that only end it."""
    plain: dict[str, Any] = field(default_factory=dict)
    """Settings of the processor for one crop a picture, so that a token is one place in it."""
    square: bool = True
    """Whether every picture is stretched to a square."""
    ordered: bool = True
    """Whether the published chat template keeps pictures and texts in the order in which they are given."""
    length_names: tuple[str, ...] = ()
    """Under what names the settings say how many tokens a picture makes."""
    names: dict[str, str] = field(default_factory=dict)
    """Beginnings of published tensor names -> transformers' own."""
    encoder: tuple[str, ...] = ()
    """Parts of the network that are never quantised."""
    language: str = "language_model"
    """The part of the network that reads words."""
    whole: bool = False
    """Whether the whole network is called to read embeddings, because it makes the masks for its language model."""

    @property
    def mark(self) -> str:
        """What stands for a picture once the template has written the chat."""
        return self.placeholder or self.token

    def written(self, cells: int) -> str:
        """What takes the mark's place for a picture of so many cells."""
        return self.around[0] + self.token * (cells + self.closing) + self.around[1]


LLAVA_NAMES = {
    "language_model.": "model.language_model.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "model.vision_tower.vision_model.": "model.vision_tower.",
    "vision_tower.": "model.vision_tower.",
    "vision_tower.vision_model.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
}
QWEN_NAMES = {
    "model.": "model.language_model.",
    "model.language_model.": "model.language_model.",
    "model.visual.": "model.visual.",
    "visual.": "model.visual.",
}
_SIGLIP = ("vision_tower", "multi_modal_projector")
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>")


def _qwen(architecture: str) -> Family:
    return Family(
        architecture, QwenVL, "Qwen2VLImageProcessorPil", "<|image_pad|>", specials=_VISION_TOKENS, square=False,
        names=QWEN_NAMES, encoder=("visual",),
    )  # fmt: skip


def _idefics(architecture: str, processor: str) -> Family:
    around = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")
    return Family(
        architecture, Idefics3, processor, "<image>", around=around,
        specials=("<fake_token_around_image>", "<global-img>"), plain={"do_image_splitting": False},
        length_names=("image_seq_len",), encoder=("vision_model", "connector"), language="text_model",
    )  # fmt: skip


FAMILIES = {
    "gemma3": Family(
        "Gemma3ForConditionalGeneration", Gemma3, "Gemma3ImageProcessorPil", "<image_soft_token>", "<start_of_image>",
        ("\n\n<start_of_image>", "<end_of_image>\n\n"), ("<start_of_image>", "<end_of_image>"),
        plain={"do_pan_and_scan": False}, length_names=("image_seq_length", "mm_tokens_per_image"),
        names=LLAVA_NAMES, encoder=_SIGLIP, whole=True,
    ),
    "qwen2_5_vl": _qwen("Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": _qwen("Qwen3VLForConditionalGeneration"),
    "idefics3": _idefics("Idefics3ForConditionalGeneration", "Idefics3ImageProcessorPil"),
    "smolvlm": _idefics("SmolVLMForConditionalGeneration", "SmolVLMImageProcessorPil"),
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration", LlavaOnevision, "LlavaOnevisionImageProcessorPil", "<image>",
        closing=1, ordered=False, length_names=("num_image_tokens",), names=LLAVA_NAMES, encoder=_SIGLIP,
    ),
}  # fmt: skip
"""`model_type` of a config.json -> its family."""


# ---- What is the same for all ---------------------------------------------------------------------------------------


def picture_inputs(processor: Any, pixels: Array, family: Family) -> dict[str, Tensor]:
    """One picture (rows, columns, 3) uint8 as the family's own processor makes numbers of it, in one crop."""
    if family.ordered:
        made = processor(images=[pixels], return_tensors="pt", **family.plain)
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}
    made = processor(images=[[pixels, pixels]], return_tensors="pt", **family.plain)  # one alone would be tiled
    return {name: value[:1] for name, value in made.items() if isinstance(value, Tensor)}


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
        self.body = network.model if family.whole else self.words
        self.head = network.lm_head
        self.origins: dict[str, str] = {}
        """Names of its tensors -> those in the files."""

    def get_input_embeddings(self) -> Any:
        """Words to embeddings."""
        return self.words.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
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
        scores = self.head(hidden)
        return CausalLMOutputWithPast(logits=scores, past_key_values=out.past_key_values, attentions=out.attentions)
