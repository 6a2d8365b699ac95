"""Med3DVLM (arXiv 2503.20047): a whole volume as one block of 128 x 256 x 256 voxels, read by DCFormer.

The two coarsest grids of the encoder, 4 x 8 x 8 and 2 x 4 x 4 cells, are blended into 256 visual tokens by a mixer;
Qwen2.5 writes. What looks like a slip in the published code was trained with and is kept here, each with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe, block, notes, on_screen
from MedVLMReaderLib.geometry import Array, Grid, Shape, TokenMap
from MedVLMReaderLib.models import dcformer
from MedVLMReaderLib.models.dcformer import STRIDES, DCFormer
from MedVLMReaderLib.models.one_block import checked_config, ending, one, prompt, written
from MedVLMReaderLib.study import Message, Prompt, Seen
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint, Shards, filled, filled_decoder, read_tokenizer

NAMES = {
    "model.vision_tower.vision_tower.encoder.": "encoder.",
    "model.mm_projector.": "projector.",
    "model.": "decoder.model.",
    "lm_head.": "decoder.lm_head.",
}
"""Published tensor names -> ours, by their beginnings."""

REPORT = "Describe the findings of the medical image you see."
"""One of the 42 requests for a report of the training; the one of the authors' demonstration."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of what stands before the decoder. The defaults are the published ones."""

    shape: Shape = (128, 256, 256)
    """Voxels of a block: depth, rows, columns."""
    vision: dcformer.Sizes = dcformer.SIZES["small"]
    low: tuple[int, ...] = (192, 128)
    """Tokens after each layer of the mixer of the finer grid, the encoder's last but one."""
    high: tuple[int, ...] = (64, 128)
    """The same for the coarser grid, the encoder's last."""
    layers: int = 2
    """Linear layers of each step of a mixer."""

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(n < STRIDES[-1] or n % STRIDES[-1] for n in self.shape):
            raise ValueError(f"a block of {self.shape} voxels, not multiples of {STRIDES[-1]}")
        if not self.low or len(self.low) != len(self.high) or min(*self.low, *self.high, self.layers) < 1:
            raise ValueError(f"mixers of {self.low} and {self.high} tokens with {self.layers} layers")

    @property
    def grids(self) -> tuple[Shape, Shape]:
        """Cells of the finer and of the coarser grid."""
        (k, j, i), (low, high) = self.shape, STRIDES[-2:]
        return (k // low, j // low, i // low), (k // high, j // high, i // high)

    @property
    def tokens(self) -> int:
        """Visual tokens of a volume."""
        return self.low[-1] + self.high[-1]


# ---- The mixer ------------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """Linear layers with GELU between them, over the last axis."""

    def __init__(self, before: int, after: int, layers: int) -> None:
        super().__init__()
        more = (nn.Sequential(nn.GELU(), nn.Linear(after, after)) for _ in range(1, layers))
        self.mm_projector = nn.Sequential(nn.Linear(before, after), *more)

    def forward(self, x: Tensor) -> Tensor:
        return self.mm_projector(x)


class MixerLayer(nn.Module):
    """Tokens with each other, then channels with each other: (batch, n, c) -> (batch, other n, other c).

    Nothing is added back, unlike in MLP-Mixer (arXiv 2105.01601): both steps change the size, and the weights were
    trained so.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int], layers: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(before[1])
        self.ln2 = nn.LayerNorm(before[1])
        self.mlp1 = Step(before[0], after[0], layers)
        self.mlp2 = Step(before[1], after[1], layers)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mlp1(self.ln1(x).transpose(1, 2)).transpose(1, 2)
        return self.mlp2(self.ln2(mixed))


class Mixer(nn.Module):
    """Two stacks of layers, one a grid; their tokens one after the other: (batch, low + high tokens, decoder width)."""

    def __init__(
        self, low: tuple[int, int], low_tokens: Sequence[int], high: tuple[int, int], high_tokens: Sequence[int],
        width: int, layers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.low_mixer = _stack(low, low_tokens, width, layers)
        self.high_mixer = _stack(high, high_tokens, width, layers)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.cat([self.low_mixer(low), self.high_mixer(high)], 1)


def _stack(before: tuple[int, int], tokens: Sequence[int], width: int, layers: int) -> nn.Sequential:
    """Layers from (n, c) of a grid to the decoder's width, which they approach by doubling."""
    widths = [width // 2**n for n in reversed(range(len(tokens)))]
    steps = [before, *zip(tokens, widths, strict=True)]
    return nn.Sequential(*(MixerLayer(one, other, layers) for one, other in pairwise(steps)))


# ---- The whole ------------------------------------------------------------------------------------------------------


class Med3DVLM(nn.Module):
    """The reader's model: sees a volume, prompts the decoder."""

    def __init__(
        self, sizes: Sizes, decoder: Any, tokenizer: Any = None, name: str = "med3dvlm", revision: str = ""
    ) -> None:
        super().__init__()
        self.sizes, self.tokenizer, self.name, self.revision = sizes, tokenizer, name, revision
        self.recipe = BlockRecipe(sizes.shape)
        low, high = (int(np.prod(grid)) for grid in sizes.grids)
        self.encoder = DCFormer(sizes.vision)
        self.projector = Mixer(
            (low, sizes.vision.widths[-2]), sizes.low, (high, sizes.vision.widths[-1]), sizes.high,
            decoder.config.hidden_size, sizes.layers,
        )  # fmt: skip
        self.decoder = decoder

    def prepared(self, volumes: Sequence[Volume], view: View | None = None) -> tuple[Volume, ...]:
        """The block that the encoder is shown, grey levels 0 to 1."""
        return (block(one(volumes, "Med3DVLM"), on_screen(self.recipe, view)),)

    @torch.no_grad()
    def see(self, volumes: Sequence[Volume], view: View | None = None) -> Seen:
        """Encode a volume. The view gives the grey window of a CT; the whole scan is seen wherever its cursor is."""
        volume, recipe = one(volumes, "Med3DVLM"), on_screen(self.recipe, view)
        shown = block(volume, recipe)
        features = self.features(torch.from_numpy(shown.values)[None, None])
        low, high = features
        grids = tuple(_cells(shown.grid, grid) for grid in self.sizes.grids)
        cells = TokenMap(grids, lambda weights: self.spread(weights, (low[0], high[0])))
        key = hashlib.sha256(repr((self.revision, recipe.key, volume.key)).encode()).hexdigest()[:16]
        said = tuple(dict.fromkeys((*volume.notes, *notes(volume, recipe))))
        seen = Seen((low[0], high[0]), torch.empty(0), cells, recipe.to_json(), key, said, (volume.grid,))
        return replace(seen, tokens=self.tokens(seen.features, seen))

    def features(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, cells, channels) of the finer and of the coarser grid, from (batch, 1, depth, rows, columns)."""
        like = next(self.encoder.parameters())
        *_, low, high = self.encoder(blocks.to(like))
        return dcformer.tokens(low), dcformer.tokens(high)

    def tokens(self, features: Sequence[Tensor], seen: Seen) -> Tensor:  # noqa: ARG002
        """(visual tokens, decoder width) from features like those of `seen`."""
        low, high = features
        return self.projector(low[None], high[None])[0]

    def cells(self, seen: Seen) -> tuple[Tensor, ...]:
        """Feature n of a grid is its cell n."""
        return tuple(torch.arange(len(part)) for part in seen.features)

    def spread(self, weights: Array, features: Sequence[Tensor]) -> Array:
        """(..., visual tokens) weights, at the cells that the tokens were made of: (..., cells), with the same sum.

        Every token is a blend of all cells of a grid. A cell gets what its features do to the tokens, each along itself
        and as strongly as it was weighted: one product of the weights with the mixer's derivative.
        """
        rows = torch.from_numpy(np.asarray(weights, np.float32).reshape(-1, weights.shape[-1]))
        with torch.enable_grad():
            parts = [part.detach().clone().requires_grad_() for part in features]
            tokens = self.projector(*(part[None] for part in parts))[0]
            along = nn.functional.normalize(tokens.detach(), dim=-1)
            found = [_shares(tokens, parts, along * row[:, None].to(along)) for row in rows]
        shares = torch.stack(found).float().cpu().numpy()
        shares *= rows.sum(1, keepdim=True).numpy() / np.maximum(shares.sum(1, keepdims=True), 1e-30)
        return shares.reshape(*weights.shape[:-1], -1)

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        """The visual tokens, then the turns of the chat: no template, no instruction, as the model was trained."""
        return prompt(self.decoder, self.tokenizer, seen, written(messages, REPORT, self.tokenizer.eos_token))

    def report_request(self) -> str:
        """The question that asks for a report."""
        return REPORT


def _cells(box: Grid, shape: Shape) -> Grid:
    """Where the cells of one of the encoder's grids lie: as large as their share of the box, half a cell before it.

    Every convolution and pooling with a stride is centred on the first of the voxels or cells that it makes one of, not
    on their middle. So what a cell gathers lies around its first voxel, to both sides alike.
    """
    back = [n // cells // 2 - 1 for n, cells in zip(box.shape, shape, strict=True)]
    return box.crop([-b for b in back], [n - b for n, b in zip(box.shape, back, strict=True)]).resize(shape)


def _shares(tokens: Tensor, parts: Sequence[Tensor], cotangent: Tensor) -> Tensor:
    """(cells,) how much each cell's features do to the tokens along a cotangent, whichever way."""
    gradients = torch.autograd.grad(tokens, parts, cotangent, retain_graph=True)
    return torch.cat(
        [(part * gradient).sum(-1).abs() for part, gradient in zip(parts, gradients, strict=True)]
    ).detach()


# ---- A published folder ---------------------------------------------------------------------------------------------

NEEDED = (
    "model_type", "proj_out_num", "low_input_size", "low_output_size", "high_input_size", "high_output_size",
    "mm_mlp_depth", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "eos_token_id",
)  # fmt: skip
DECODER = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Fields that are the decoder's own."""
FIXED: dict[str, Any] = {
    "model_type": "vlm_qwen", "vision_tower": "dcformer", "mm_projector_type": "mixer", "vision_select_layer": -2,
    "vision_select_feature": "cls_patch", "use_sliding_window": False, "rope_scaling": None,
}  # fmt: skip
"""Fields that would change the network, and the one value of each that is computed here."""
ELSEWHERE = (
    "_name_or_path", "architectures", "auto_map", "attention_dropout", "depth", "dim", "dtype", "input_size",
    "initializer_range", "layer_types", "max_window_layers", "mm_hidden_size", "patch_size", "sliding_window",
    "torch_dtype", "transformers_version", "tune_mm_mlp_adapter", "use_cache",
)  # fmt: skip
"""Fields for training, for another encoder or for code of the model's own: they change no answer, and none is run."""


def load(checkpoint: Checkpoint) -> Med3DVLM:
    """The model in a folder of the published layout; ReaderError where anything is missing, left over or off."""
    folder = checkpoint.folder
    config = checked_config(folder, NEEDED, FIXED, (*DECODER, *ELSEWHERE))
    tensors = Shards.open(folder).renamed(NAMES)
    sizes = _sizes(config, tensors.below("encoder.").shapes, folder)
    is_whole = (folder / "tokenizer.json").is_file()
    tokenizer = ending(read_tokenizer(folder, "") if is_whole else _read_qwen_tokenizer(folder), config, folder)
    plain = {name: config[name] for name in DECODER if name in config}
    decoder = filled_decoder(
        {**plain, "model_type": "qwen2"}, tensors.below("decoder."), checkpoint.precision, checkpoint.device,
        below="decoder.",
    )  # fmt: skip
    return filled(
        lambda: Med3DVLM(sizes, decoder, tokenizer, checkpoint.name, checkpoint.revision),
        tensors.beside("decoder."), given="decoder.", device=checkpoint.device,
    )  # fmt: skip


def _sizes(config: dict[str, Any], encoder: Mapping[str, tuple[int, ...]], folder: Path) -> Sizes:
    """Sizes of config.json and, for the encoder, of its tensors; ReaderError where they make no whole."""
    try:
        j, i, k = (int(n) for n in config.get("input_size", (256, 256, 128)))
        low, high = (tuple(int(n) for n in config[f"{name}_output_size"]) for name in ("low", "high"))
        sizes = Sizes((k, j, i), dcformer.Sizes.found(encoder), low, high, int(config["mm_mlp_depth"]))
        BlockRecipe(sizes.shape)
    except (TypeError, ValueError) as error:
        raise ReaderError(f"config.json of '{folder}' makes no model: {error}. Get the model again.") from None
    cells = [int(np.prod(grid)) for grid in sizes.grids]
    for name, wanted in (
        ("proj_out_num", sizes.tokens),
        ("low_input_size", [cells[0], sizes.vision.widths[-2]]),
        ("high_input_size", [cells[1], sizes.vision.widths[-1]]),
    ):
        if config[name] != wanted:
            raise ReaderError(f"config.json of '{folder}' says {name} {config[name]}; its sizes and weights make "
                              f"{wanted}. They do not belong together.")  # fmt: skip
    return sizes


def _read_qwen_tokenizer(folder: Path) -> Any:
    """The tokenizer of vocab.json and merges.txt, as the authors' scripts save it."""
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ReaderError(f"'{folder}' has neither tokenizer.json nor vocab.json with merges.txt. Get the model again.")
    try:
        return transformers.Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ReaderError(f"The tokenizer of '{folder}' cannot be read ({error}). Get the model again.") from None
