"""The pair from which Med3DVLM got its eyes: DCFormer and ClinicalBERT, trained to find the text of a scan (SigLIP,
arXiv 2303.15343). It ranks scans by a text and scores short statements about a scan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.geometry import Shape
from MedVLMReaderLib.models import dcformer
from MedVLMReaderLib.models.dcformer import DCFormer
from MedVLMReaderLib.models.one_block import checked_config, fitting
from MedVLMReaderLib.models.pair import Pair
from MedVLMReaderLib.weights import Checkpoint, Shards, filled, read_tokenizer

NAMES = {"vision_encoder.encoder.": "vision_encoder."}
"""Published tensor names -> ours, by their beginnings."""

HEAD = 64
"""Width of an attention head of BERT-like models, which no tensor tells."""
PROMPT = "There is {}."
"""A finding said to be there."""
ABSENT = "There is no {}."
"""A finding said not to be there."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the pair. The defaults are the published ones."""

    shape: Shape = (128, 256, 256)
    """Voxels of a block: depth, rows, columns."""
    vision: dcformer.Sizes = dcformer.SIZES["small"]
    width: int = 768
    """Of the space that scans and texts share."""
    vocabulary: int = 119547
    text_width: int = 768
    text_hidden: int = 3072
    text_heads: int = 12
    text_layers: int = 6
    positions: int = 512
    """Tokens of a text; what is beyond is not read."""


class SiglipPair(Pair):
    """Scans and texts as unit vectors of one space."""

    t_prime: Tensor
    bias: Tensor
    score_is = "sigmoid of how well scan and 'There is X.' match, from 0 to 1; it orders findings, it is no probability"

    def __init__(self, sizes: Sizes, tokenizer: Any = None, name: str = "siglip", revision: str = "") -> None:
        super().__init__(BlockRecipe(sizes.shape), sizes.positions, tokenizer, name, revision)
        self.t_prime = nn.Parameter(torch.tensor(2.6592600369327783))  # ln(1 / 0.07)
        self.bias = nn.Parameter(torch.tensor(0.0))  # the paper begins at -10
        self.vision_encoder = DCFormer(sizes.vision)
        self.language_encoder = DistilBertModel(_text_config(sizes))
        self.mm_vision_proj = nn.Linear(sizes.vision.widths[-1], sizes.width)
        self.mm_language_proj = nn.Linear(sizes.text_width, sizes.width)

    def encode_image(self, blocks: Tensor) -> Tensor:
        """(batch, width) unit vectors of (batch, 1, depth, rows, columns): the coarsest grid's mean, projected."""
        cells = dcformer.tokens(self.vision_encoder(blocks)[-1])
        return F.normalize(self.mm_vision_proj(cells.mean(1)), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """(images, texts) from unit vectors; the sigmoid of one is the chance that the two belong together.

        That chance is of a batch of the training, where of many texts one was right: order says more than value.
        """
        return images @ texts.T * self.t_prime.exp() + self.bias

    @torch.no_grad()
    def scores(self, image: Tensor, findings: Sequence[str]) -> Tensor:
        """(findings,) each from 0 to 1, as `score_is` says, for the (width,) unit vector of a scan."""
        told = self.of_texts([PROMPT.format(finding) for finding in findings])
        return self.logits(image[None].to(told), told)[0].sigmoid()


def sigmoid_loss(logits: Tensor) -> Tensor:
    """What the pair was trained with: (n, n) logits of n scans and their n texts, pair by pair, over n.

    As in the paper and in the reference's runs on several processes; in a single one the reference leaves the
    exponential and the division out, which was not what the published weights were trained with.
    """
    labels = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def presence(pair: Any, image: Tensor, findings: Sequence[str]) -> list[float]:
    """From 0 to 1 for each finding: how much better "There is X." fits the scan than "There is no X.", as zero-shot
    labels are usually made. `pair`: any that gives vectors of texts."""
    said = [text.format(finding) for finding in findings for text in (PROMPT, ABSENT)]
    vectors = pair.of_texts(said)
    scale = getattr(pair, "t_prime", None)
    likeness = (vectors @ image.to(vectors)).float() * (scale.exp().float() if scale is not None else 1 / 0.07)
    return [float(x) for x in likeness.view(-1, 2).softmax(-1)[:, 0]]


def _text_config(sizes: Sizes) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=sizes.vocabulary, dim=sizes.text_width, hidden_dim=sizes.text_hidden, n_heads=sizes.text_heads,
        n_layers=sizes.text_layers, max_position_embeddings=sizes.positions,
    )  # fmt: skip


# ---- A published folder ---------------------------------------------------------------------------------------------

FIXED: dict[str, Any] = {"model_type": "dec_clip", "vision_encoder": "dcformer"}
"""Fields that would change the network, and the one value of each that is computed here."""
ELSEWHERE = (
    "_name_or_path", "architectures", "auto_map", "language_model_name_or_path", "input_size", "dim", "depth",
    "hidden_size", "mlp_depth", "loss_type", "t_prime", "bias", "efficient_loss", "gather_loss", "local_loss", "dtype",
    "torch_dtype", "transformers_version",
)  # fmt: skip
"""Fields for training, or that the tensors tell as well."""


def load(checkpoint: Checkpoint) -> SiglipPair:
    """The pair in a folder of the published layout; ReaderError where anything is missing, left over or off."""
    folder = checkpoint.folder
    config = checked_config(folder, (), FIXED, ELSEWHERE)
    tensors = Shards.open(folder).renamed(NAMES)
    sizes = _sizes(config, tensors.shapes, folder)
    tokenizer = _tokenizer(sizes, folder)
    pair = filled(
        lambda: SiglipPair(sizes, tokenizer, checkpoint.name, checkpoint.revision), tensors, device=checkpoint.device
    )
    pair.notes = (*checkpoint.notes, *tensors.notes)
    return pair


def _sizes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Sizes:
    """The sizes of the tensors; ReaderError where they are none of such a pair."""
    text = "language_encoder."
    found = {match[1] for name in shapes if (match := re.match(rf"{text}transformer\.layer\.(\d+)\.", name))}
    vision = {n.removeprefix("vision_encoder."): s for n, s in shapes.items() if n.startswith("vision_encoder.")}
    try:
        j, i, k = (int(n) for n in config.get("input_size", (256, 256, 128)))
        vocabulary, width = shapes[f"{text}embeddings.word_embeddings.weight"]
        sizes = Sizes(
            (k, j, i), dcformer.Sizes.found(vision), shapes["mm_vision_proj.weight"][0], vocabulary, width,
            shapes[f"{text}transformer.layer.0.ffn.lin1.weight"][0], max(width // HEAD, 1), len(found),
            shapes[f"{text}embeddings.position_embeddings.weight"][0],
        )  # fmt: skip
        BlockRecipe(sizes.shape)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ReaderError(
            f"'{folder}' holds no pair of DCFormer and DistilBERT ({error}). Get the model again."
        ) from None
    return sizes


def _tokenizer(sizes: Sizes, folder: Path) -> Any:
    tokenizer = read_tokenizer(folder, "[SEP]")
    tokenizer.pad_token = "[PAD]"
    return fitting(tokenizer, sizes.vocabulary, folder)
