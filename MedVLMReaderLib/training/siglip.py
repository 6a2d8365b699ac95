"""First stage of Med3DVLM: DCFormer and a DistilBERT learn which report is of which scan; saved as published."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models import siglip
from MedVLMReaderLib.models.siglip import SiglipPair, Sizes
from MedVLMReaderLib.training.augment import NOTHING, Augment, changed
from MedVLMReaderLib.training.engine import Settings, fit, leads
from MedVLMReaderLib.training.objectives import sigmoid
from MedVLMReaderLib.training.prepared import Prepared, prepare
from MedVLMReaderLib.weights import Checkpoint, read_tokenizer

SPECIAL = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class Pairs(nn.Module):
    """A pair with its loss."""

    def __init__(self, pair: SiglipPair, augment: Augment = NOTHING) -> None:
        super().__init__()
        self.pair, self.augment = pair, augment

    def forward(self, blocks: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        blocks = changed(blocks, self.augment) if self.training else blocks
        images, texts = self.pair.encode_image(blocks), self.pair.encode_text(ids, mask)
        return {"siglip": sigmoid(images, texts, self.pair.t_prime, self.pair.bias)}


class Reports:
    """Blocks of volumes with their reports."""

    def __init__(self, cases: Sequence[Case], prepared: Prepared) -> None:
        self.cases, self.prepared = cases, prepared

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, n: int) -> dict[str, Any]:
        case = self.cases[n]
        block = torch.tensor(self.prepared.of(case.volume)).float()[None] / 255
        return {"name": case.place, "blocks": block, "report": case.report}


def train(
    cases: Sequence[Case], pair: SiglipPair, settings: Settings, folder: Path, *, augment: Augment = NOTHING,
    skip_faulty: bool = False, minutes: float = 1e9,
) -> bool:  # fmt: skip
    """Train a pair on reports; True when finished, then with the published layout in folder/model."""
    if settings.batch < 2:
        raise ReaderError("A batch of one has no other report to compare with. Raise 'batch' in [training].")
    prepared = Prepared(folder / "blocks", pair.recipe)
    kept, left_out = prepare(cases, prepared, skip=skip_faulty)
    for fault in left_out:
        print(f"Left out: {fault}")
    if len(kept) < settings.batch:
        raise ReaderError(f"{len(kept)} reports cannot fill a batch of {settings.batch}. Lower 'batch' in [training].")

    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        read = pair.tokenizer([row["report"] for row in rows], padding=True, truncation=True, max_length=pair.longest,
                              return_tensors="pt")  # fmt: skip
        blocks = torch.stack([row["blocks"] for row in rows])
        names = [row["name"] for row in rows]
        return {"name": names, "blocks": blocks, "ids": read["input_ids"], "mask": read["attention_mask"]}

    pair.requires_grad_(True)
    if not fit(Pairs(pair, augment), Reports(kept, prepared), collated, settings, folder, minutes=minutes):
        return False
    if leads():
        save(pair, folder / "model")
    return True


def started(folder: Path) -> SiglipPair:
    """A pair of the published layout, to go on from."""
    return siglip.load(Checkpoint(folder, folder.name, "start"))


def new(
    sizes: Sizes, tokenizer: Any, seed: int = 0, *, t_prime: float = 0.0, bias: float = 0.0, scale: float = 0.0,
    gain: float = 0.0,
) -> SiglipPair:  # fmt: skip
    """An untrained pair. Where they are given: SigLIP's temperature and bias, and what the encoder's blocks add at
    first to what they are given (published: 2.659, 0 and 1e-6, for long trainings); `gain` is how much of what comes in
    the text encoder's layers pass on at first, whatever their width: the usual .02 a weight is .55 at the published
    width and .23 at 128, where the first token then hardly hears of the others."""
    torch.manual_seed(seed)
    pair = SiglipPair(sizes, tokenizer)
    with torch.no_grad():
        if t_prime:
            pair.t_prime.fill_(t_prime)
        pair.bias.fill_(bias)
        for name, one in pair.vision_encoder.named_parameters():
            if scale and name.endswith(".scale"):
                one.fill_(scale)
    for layer in pair.language_encoder.transformer.modules():
        if gain and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
    return pair


def made_tokenizer(texts: Sequence[str], folder: Path, words: int = 2000) -> Any:
    """A WordPiece tokenizer of such texts, kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    whole.normalizer = normalizers.BertNormalizer(lowercase=True)
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    whole.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=words, special_tokens=list(SPECIAL)))
    ends = [(token, whole.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    whole.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    part = folder / f"part{os.getpid()}"  # several processes may write the same at once
    whole.save(str(part))
    part.replace(folder / "tokenizer.json")
    tokenizer = read_tokenizer(folder, "[SEP]")
    tokenizer.pad_token = "[PAD]"
    return tokenizer


def save(pair: SiglipPair, folder: Path) -> None:
    """Write the pair in the published layout: config.json, tokenizer.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_published(name): tensor.detach().cpu().contiguous() for name, tensor in pair.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    pair.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    depth, rows, columns = pair.recipe.shape
    config = {
        "model_type": "dec_clip", "architectures": ["DEC_CLIP"], "vision_encoder": "dcformer", "loss_type": "sigmoid",
        "input_size": [rows, columns, depth], "hidden_size": pair.mm_vision_proj.out_features, "mlp_depth": 2,
        "t_prime": pair.t_prime.item(), "bias": pair.bias.item(), "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _published(name: str) -> str:
    for theirs, ours in siglip.NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
