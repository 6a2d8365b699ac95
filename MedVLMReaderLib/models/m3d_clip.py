"""M3D-CLIP (arXiv 2404.00578): a 3D vision transformer and BERT, trained to find the text of a scan and the scan of a
text. It ranks scans by a text and scores statements about a scan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.geometry import Shape
from MedVLMReaderLib.models.one_block import checked_config, fitting
from MedVLMReaderLib.models.pair import Pair
from MedVLMReaderLib.models.vit3d import Vit3d, Vit3dSizes
from MedVLMReaderLib.weights import Checkpoint, Shards, filled, read_tokenizer

HEAD = 64
"""Width of an attention head of all of BERT's sizes, which no tensor tells."""
PROMPTS = "There is {}.", "There is no {}."
"""A finding said to be there, and said not to be."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the pair. The defaults are the published ones: BERT-base, uncased."""

    vision: Vit3dSizes = field(default_factory=Vit3dSizes)
    vocabulary: int = 30522
    text_hidden: int = 3072
    text_layers: int = 12
    positions: int = 512
    """Tokens of a text; what is beyond is not read."""
    kinds: int = 2
    """Rows of BERT's table of first and second sentences."""

    @property
    def width(self) -> int:
        """Of both encoders and of the space that scans and texts share."""
        return self.vision.width


class M3DClip(Pair):
    """Scans and texts as unit vectors of one space."""

    logit_scale: Tensor
    score_is = (
        "softmax of 'There is X.' against 'There is no X.', from 0 to 1; it orders findings, it is no probability"
    )

    def __init__(self, sizes: Sizes, tokenizer: Any = None, name: str = "m3d-clip", revision: str = "") -> None:
        super().__init__(BlockRecipe(sizes.vision.image), sizes.positions, tokenizer, name, revision)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592600369327783))  # ln(1 / 0.07)
        self.vision_encoder = Vit3d(sizes.vision)
        self.language_encoder = BertModel(_text_config(sizes))
        self.mm_vision_proj = nn.Linear(sizes.width, sizes.width)
        self.mm_language_proj = nn.Linear(sizes.width, sizes.width)

    def encode_image(self, blocks: Tensor) -> Tensor:
        """(batch, width) unit vectors of (batch, 1, k, j, i): the class token, projected."""
        return F.normalize(self.mm_vision_proj(self.vision_encoder(blocks)[:, 0]), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """(images, texts) from unit vectors. The scale is used as it is: CLIP's has an exponential, this was trained
        without."""
        return self.logit_scale * images @ texts.T

    @torch.no_grad()
    def scores(self, image: Tensor, findings: Sequence[str]) -> Tensor:
        """(findings,) each from 0 to 1, as `score_is` says, for the (width,) unit vector of a scan."""
        told = self.of_texts([prompt.format(finding) for finding in findings for prompt in PROMPTS])
        return self.logits(image[None].to(told), told)[0].unflatten(0, (-1, 2)).softmax(-1)[:, 0]


def _text_config(sizes: Sizes) -> BertConfig:
    return BertConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=sizes.text_hidden,
        num_hidden_layers=sizes.text_layers, num_attention_heads=max(sizes.width // HEAD, 1),
        max_position_embeddings=sizes.positions, type_vocab_size=sizes.kinds,
    )  # fmt: skip


# ---- A published folder ---------------------------------------------------------------------------------------------

FIXED: dict[str, Any] = {"model_type": "m3d_clip", "in_channels": 1, "pos_embed": "perceptron", "spatial_dims": 3}
"""Fields that would change the network, and the one value of each that is computed here."""
VISION = {"hidden_size": "width", "mlp_dim": "mlp", "num_layers": "depth", "num_heads": "heads"}
"""Published names of the vision transformer's sizes -> ours."""
ELSEWHERE = (
    "_name_or_path", "architectures", "auto_map", "language_model_name_or_path", "img_size", "patch_size",
    "local_loss", "gather_loss", "dropout_rate", "max_text_len", "vocab_size", "dtype", "torch_dtype",
    "transformers_version",
)  # fmt: skip
"""Fields for training, or that the tensors tell as well."""


def load(checkpoint: Checkpoint) -> M3DClip:
    """The pair in a folder of the published layout; ReaderError where anything is missing, left over or off."""
    folder = checkpoint.folder
    config = checked_config(folder, (), FIXED, (*VISION, *ELSEWHERE))
    tensors = Shards.open(folder)
    sizes = _sizes(config, tensors.shapes, folder)
    tokenizer = _tokenizer(sizes, folder)
    pair = filled(
        lambda: M3DClip(sizes, tokenizer, checkpoint.name, checkpoint.revision), tensors, device=checkpoint.device
    )
    pair.notes = (*checkpoint.notes, *tensors.notes)
    return pair


def _sizes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Sizes:
    """Sizes of config.json and, for the text, of its tensors; ReaderError where they make no whole."""
    text = "language_encoder."
    layers = {match[1] for name in shapes if (match := re.match(rf"{text}encoder\.layer\.(\d+)\.", name))}
    try:
        numbers = {ours: int(config[name]) for name, ours in VISION.items() if name in config}
        image, patch = (
            _shape(config.get(n, d)) for n, d in (("img_size", (32, 256, 256)), ("patch_size", (4, 16, 16)))
        )
        sizes = Sizes(
            Vit3dSizes(image, patch, **numbers), shapes[f"{text}embeddings.word_embeddings.weight"][0],
            shapes[f"{text}encoder.layer.0.intermediate.dense.weight"][0], len(layers),
            shapes[f"{text}embeddings.position_embeddings.weight"][0],
            shapes[f"{text}embeddings.token_type_embeddings.weight"][0],
        )  # fmt: skip
        BlockRecipe(image)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ReaderError(
            f"'{folder}' holds no pair of a 3D vision transformer and BERT ({error}). Get the model again."
        ) from None
    return sizes


def _shape(value: Any) -> Shape:
    k, j, i = (int(n) for n in value)
    return k, j, i


def _tokenizer(sizes: Sizes, folder: Path) -> Any:
    """The tokenizer of tokenizer.json, else of BERT's vocab.txt."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(folder, "[SEP]")
        tokenizer.pad_token = "[PAD]"
    else:
        tokenizer = _read_vocabulary(folder)
    return fitting(tokenizer, sizes.vocabulary, folder)


def _read_vocabulary(folder: Path) -> Any:
    path = folder / "vocab.txt"
    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ReaderError(f"'{folder}' has neither tokenizer.json nor vocab.txt. Get the model again.") from None
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    ids = {word.rstrip("\r"): number for number, word in enumerate(words) if word}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in ids]:
        raise ReaderError(f"'{path}' has no {missing[0]}: it is no vocabulary of BERT. Get the model again.")
    return BertTokenizer(vocab=ids)
