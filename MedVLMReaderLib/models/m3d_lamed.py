"""M3D-LaMed (arXiv 2404.00578): a whole volume as one block of 32 x 256 x 256 voxels, read by a 3D vision transformer.

Its patches are averaged two by two by two and projected to 256 visual tokens; Phi-3 or Llama-2 writes. The published
segmentation module is left aside: it draws organs, and no answer depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe, block, notes, on_screen
from MedVLMReaderLib.geometry import Array, Shape, TokenMap
from MedVLMReaderLib.models.one_block import checked_config, ending, one, prompt, whole_numbers, written
from MedVLMReaderLib.models.sentencepiece import read_llama_tokenizer
from MedVLMReaderLib.models.vit3d import Vit3d, Vit3dSizes
from MedVLMReaderLib.study import Message, Prompt, Seen
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import DEEPEST, Checkpoint, Shards, filled, filled_decoder, read_tokenizer

NAMES = {
    "model.vision_tower.vision_tower.": "encoder.",
    "model.mm_projector.": "projector.",
    "model.": "decoder.model.",
    "lm_head.": "decoder.lm_head.",
}
"""Published tensor names -> ours, by their beginnings."""
UNUSED = ("model.seg_module.", "model.seg_projector.")
"""Published tensors that are knowingly not used: SegVol, and the projection of the [SEG] token to it."""

REPORT = "Can you provide a caption consists of findings for this medical image?"
"""Word for word one of the questions of the training, its grammar included."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of what stands before the decoder. The defaults are the published ones."""

    vision: Vit3dSizes = field(default_factory=Vit3dSizes)
    pooling: int = 2
    """Patches along each axis that become one visual token."""
    layers: int = 2
    """Linear layers of the projector."""

    def __post_init__(self) -> None:
        if not 1 <= self.pooling <= min(self.vision.grid) or not 1 <= self.layers <= DEEPEST:
            raise ValueError(
                f"pooling {self.pooling} of {list(self.vision.grid)} patches with {self.layers} layers of the projector"
            )

    @property
    def grid(self) -> Shape:
        """Visual tokens along k, j, i; token n is cell n."""
        k, j, i = (n // self.pooling for n in self.vision.grid)
        return k, j, i

    @property
    def tokens(self) -> int:
        """Visual tokens of a volume."""
        return int(np.prod(self.grid))


class SpatialPooling(nn.Module):
    """(batch, patches, width) averaged over neighbours and projected: (batch, visual tokens, decoder width)."""

    def __init__(self, sizes: Sizes, decoder_width: int) -> None:
        super().__init__()
        self.grid, self.pooling = sizes.vision.grid, sizes.pooling
        layers: list[nn.Module] = [nn.Linear(sizes.vision.width, decoder_width)]
        for _ in range(1, sizes.layers):
            layers += [nn.GELU(), nn.Linear(decoder_width, decoder_width)]
        self.projector = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        box = x.transpose(1, 2).unflatten(2, self.grid)  # (batch, width, k, j, i)
        return self.projector(F.avg_pool3d(box, self.pooling).flatten(2).transpose(1, 2))


class M3DLaMed(nn.Module):
    """The reader's model: sees a volume, prompts the decoder."""

    def __init__(
        self, sizes: Sizes, decoder: Any, tokenizer: Any = None, name: str = "m3d-lamed", revision: str = ""
    ) -> None:
        super().__init__()
        self.sizes, self.tokenizer, self.name, self.revision = sizes, tokenizer, name, revision
        self.recipe = BlockRecipe(sizes.vision.image)
        self.encoder = Vit3d(sizes.vision)
        self.projector = SpatialPooling(sizes, decoder.config.hidden_size)
        self.decoder = decoder

    def prepared(self, volumes: Sequence[Volume], view: View | None = None) -> tuple[Volume, ...]:
        """The block that the encoder is shown, grey levels 0 to 1."""
        return (block(one(volumes, "M3D-LaMed"), on_screen(self.recipe, view)),)

    @torch.no_grad()
    def see(self, volumes: Sequence[Volume], view: View | None = None) -> Seen:
        """Encode a volume. The view gives the grey window of a CT; the whole scan is seen wherever its cursor is."""
        volume, recipe = one(volumes, "M3D-LaMed"), on_screen(self.recipe, view)
        shown = block(volume, recipe)
        voxels = torch.from_numpy(shown.values)[None, None].to(self.encoder.cls_token)
        patches = self.encoder(voxels)[0, 1:]  # the class token lies nowhere
        cells = TokenMap((shown.grid.resize(self.sizes.vision.grid),), self.spread)
        key = hashlib.sha256(repr((self.revision, recipe.key, volume.key)).encode()).hexdigest()[:16]
        said = tuple(dict.fromkeys((*volume.notes, *notes(volume, recipe))))
        seen = Seen((patches,), torch.empty(0), cells, recipe.to_json(), key, said, (volume.grid,))
        return replace(seen, tokens=self.tokens(seen.features, seen))

    def spread(self, weights: Array) -> Array:
        """(..., visual tokens) weights shared evenly among the patches that each token averages: (..., patches)."""
        pooling, before = self.sizes.pooling, weights.shape[:-1]
        share = np.asarray(weights).reshape(*before, *self.sizes.grid) / pooling**3
        for axis in (-3, -2, -1):
            share = np.repeat(share, pooling, axis)
        out = np.zeros((*before, *self.sizes.vision.grid), share.dtype)
        k, j, i = share.shape[-3:]
        out[..., :k, :j, :i] = share  # at the far ends some patches may be in no token
        return out.reshape(*before, -1)

    def tokens(self, features: Sequence[Tensor], seen: Seen) -> Tensor:  # noqa: ARG002
        """(visual tokens, decoder width) from patch features like those of `seen`."""
        (patches,) = features
        return self.projector(patches[None])[0]

    def cells(self, seen: Seen) -> tuple[Tensor, ...]:
        """Feature n is patch n of the grid."""
        return (torch.arange(len(seen.features[0])),)

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        """The visual tokens, then the turns of the chat, written as the model was trained on one."""
        return prompt(self.decoder, self.tokenizer, seen, written(messages, REPORT, self.tokenizer.eos_token))

    def report_request(self) -> str:
        """The question that asks for a report."""
        return REPORT


# ---- A published folder ---------------------------------------------------------------------------------------------

DECODERS = {"lamed_phi3": "phi3", "lamed_llama": "llama"}
"""`model_type` of a published config.json -> the decoder in it."""
NUMBERS = (
    "mm_hidden_size", "proj_layer_num", "proj_pooling_size", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "eos_token_id",
)  # fmt: skip
NEEDED = ("model_type", "image_size", "patch_size", *NUMBERS)
DECODER = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "original_max_position_embeddings", "sliding_window", "rms_norm_eps", "rope_theta",
    "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Fields that are the decoder's own."""
FIXED: dict[str, Any] = {
    "image_channel": 1, "vision_tower": "vit3d", "vision_select_layer": -1, "vision_select_feature": "patch",
    "mm_projector_type": "spp", "proj_layer_type": "mlp", "proj_pooling_type": "spatial", "rope_scaling": None,
    "partial_rotary_factor": 1.0, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
"""Fields that would change the network, and the one value of each that is computed here."""
ELSEWHERE = (
    "_name_or_path", "architectures", "auto_map", "attention_dropout", "embd_pdrop", "resid_pdrop", "dtype",
    "torch_dtype", "initializer_range", "pretraining_tp", "transformers_version", "use_cache", "seg_token_id",
    "segmentation_module", "proj_out_num",
)  # fmt: skip
"""Fields for training, segmentation or code of the model's own: they change no answer, and nothing of them is run."""


def load(checkpoint: Checkpoint) -> M3DLaMed:
    """The model in a folder of the published layout; ReaderError where anything is missing, left over or off."""
    folder = checkpoint.folder
    config = _config(folder)
    tensors = Shards.open(folder).renamed(NAMES, UNUSED)
    sizes = _sizes(config, tensors.below("encoder.").shapes, folder)
    is_whole = (folder / "tokenizer.json").is_file()
    tokenizer = ending(read_tokenizer(folder, "</s>") if is_whole else read_llama_tokenizer(folder), config, folder)
    plain = {name: config[name] for name in DECODER if name in config}
    decoder = filled_decoder(
        {**plain, "model_type": DECODERS[config["model_type"]]}, tensors.below("decoder."), checkpoint.precision,
        checkpoint.device, below="decoder.",
    )  # fmt: skip
    return filled(
        lambda: M3DLaMed(sizes, decoder, tokenizer, checkpoint.name, checkpoint.revision),
        tensors.beside("decoder."), given="decoder.", device=checkpoint.device,
    )  # fmt: skip


def _config(folder: Path) -> dict[str, Any]:
    """config.json, once all of it is known to be of this system."""
    config = checked_config(folder, NEEDED, FIXED, (*DECODER, *ELSEWHERE))
    whole_numbers(config, NUMBERS, folder)
    if str(config["model_type"]) not in DECODERS:
        raise ReaderError(f"'{folder}' holds a '{config['model_type']}'. Known here: {', '.join(sorted(DECODERS))}.")
    return config


def _sizes(config: dict[str, Any], encoder: dict[str, tuple[int, ...]], folder: Path) -> Sizes:
    try:
        vision = Vit3dSizes.found(encoder, _shape(config["image_size"]), _shape(config["patch_size"]))
        sizes = Sizes(vision, config["proj_pooling_size"], config["proj_layer_num"])
        BlockRecipe(vision.image)
    except (TypeError, ValueError) as error:
        raise ReaderError(f"config.json of '{folder}' makes no model: {error}. Get the model again.") from None
    for name, found, wanted in (
        ("mm_hidden_size", config["mm_hidden_size"], vision.width),
        ("proj_out_num", config.get("proj_out_num", sizes.tokens), sizes.tokens),
    ):
        if found != wanted:
            raise ReaderError(f"config.json of '{folder}' says {name} {found}; its sizes and weights make {wanted}. "
                              "They do not belong together.")  # fmt: skip
    return sizes


def _shape(value: Any) -> Shape:
    k, j, i = (int(n) for n in value)
    return k, j, i
