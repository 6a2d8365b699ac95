"""First stage of Med3DVLM: DCFormer and a DistilBERT learn which report is of which scan; saved as published."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models import siglip
from MedVLMReaderLib.models.siglip import SiglipPair, Sizes
from MedVLMReaderLib.training.augment import NOTHING, Augment, changed
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit, leads, load_into
from MedVLMReaderLib.training.objectives import sigmoid
from MedVLMReaderLib.training.pair_start import (
    Locked,
    LockedImages,
    Readings,
    align,
    all_read,
    all_seen,
    even,
    tokens_of,
)
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
    """Blocks of volumes with their reports; without `prepared` the reports alone."""

    def __init__(self, cases: Sequence[Case], prepared: Prepared | None) -> None:
        self.cases, self.prepared = cases, prepared

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, n: int) -> dict[str, Any]:
        case = self.cases[n]
        if self.prepared is None:
            return {"name": case.place, "report": case.report}
        block = torch.tensor(self.prepared.of(case.volume)).float()[None] / 255
        return {"name": case.place, "blocks": block, "report": case.report}

    def blocks(self, batch: int, most: int) -> Iterator[Tensor]:
        """The blocks of the first so many in whole batches."""
        for first in range(0, min(most, len(self)) - batch + 1, batch):
            yield torch.stack([self[n]["blocks"] for n in range(first, first + batch)])


@dataclass(frozen=True)
class Starts:
    """What comes before the pair learns as a whole; None: left out."""

    text: Settings | None = None
    """Two readings of a report, by the text encoder alone."""
    dropped: float = 0.3
    """Share of the sentences that each reading leaves out."""
    image: Settings | None = None
    """Images against all reports, by the image encoder and both projections."""
    evened: int = 0
    """Scans by which the projection of images is evened before it; 0: it begins as it is."""
    match: Settings | None = None
    """Texts against the image of each report, by the text encoder and both projections."""
    aligned: bool = False
    """After all that, both projections are solved for from what the encoders say of all pairs."""


NO_STARTS = Starts()


def train(
    cases: Sequence[Case], pair: SiglipPair, settings: Settings | None, folder: Path, *, augment: Augment = NOTHING,
    starts: Starts = NO_STARTS, skip_faulty: bool = False, minutes: float = 1e9,
) -> bool:  # fmt: skip
    """Train a pair on reports; True when finished, then with the published layout in folder/model. Without settings the
    stages before are all that it learns."""
    if not (settings or starts.image):
        raise ReaderError("Nothing teaches the images. Give the file a table [image], or [training].")
    largest = max(one.batch for one in (settings, starts.text, starts.image, starts.match) if one)
    if any(one.batch < 2 for one in (settings, starts.text) if one):
        raise ReaderError("A batch of one has no other report to compare with. Raise 'batch' in [training].")
    prepared = Prepared(folder / "blocks", pair.recipe)
    kept, left_out = prepare(cases, prepared, skip=skip_faulty)
    for fault in left_out:
        print(f"Left out: {fault}")
    if len(kept) < largest:
        raise ReaderError(f"{len(kept)} reports cannot fill a batch of {largest}. Lower 'batch' in [training].")
    if not begun(kept, prepared, pair, starts, augment, folder, minutes):
        return False
    rows, together = Reports(kept, prepared), partial(collated, pair, None)
    if settings and (starts.match or starts.image):  # of fewer texts one is right: the odds that nothing is known by
        with torch.no_grad():
            pair.bias += math.log(len({case.report for case in kept}) / settings.batch)
    network = Pairs(pair.requires_grad_(True), augment)
    if settings and not fit(network, rows, together, settings, folder, minutes=minutes):
        return False
    if leads():
        save(pair, folder / "model")
    return True


def begun(
    cases: Sequence[Case], prepared: Prepared, pair: SiglipPair, starts: Starts, augment: Augment, folder: Path,
    minutes: float,
) -> bool:  # fmt: skip
    """The stages before the pair, each in a folder of its own; True when they are finished."""
    reports = list({case.report: case for case in reversed(cases)}.values())  # of equal ones none would be right
    texts, scans = Reports(reports, None), Reports(cases, prepared)
    numbers = {case.report: n for n, case in enumerate(reports)}
    together = partial(collated, pair, numbers)
    if starts.text:
        network = Readings(pair, starts.dropped)
        if not _stage(network, texts, partial(collated, pair, None), starts.text, folder / "text", minutes):
            return False
    if starts.image:
        if starts.evened:
            even(pair, scans.blocks(starts.image.batch, starts.evened))
        locked = Locked(pair, all_read(pair, list(numbers)), augment)
        if not _stage(locked, scans, together, starts.image, folder / "image", minutes):
            return False
    if not (starts.match or starts.aligned):
        return True
    seen = all_seen(pair, Reports(reports, prepared).blocks(1, len(reports)))  # what follows leaves the images' encoder
    if starts.match and not _stage(LockedImages(pair, seen), texts, together, starts.match, folder / "match", minutes):
        return False
    if starts.aligned:
        align(pair, seen, all_read(pair, list(numbers)))
    return True


def _stage(network: nn.Module, rows: Reports, collate: Any, settings: Settings, folder: Path, minutes: float) -> bool:
    """A stage, or what it has left where it is finished."""
    if (folder / WEIGHTS).exists():
        load_into(network, load_file(folder / WEIGHTS), folder / WEIGHTS)
        return True
    if len(rows) < settings.batch:
        raise ReaderError(f"{len(rows)} different reports cannot fill a batch of {settings.batch}. Lower 'batch' in "
                          f"[{folder.name}].")  # fmt: skip
    return fit(network, rows, collate, settings, folder, minutes=minutes)


def collated(pair: SiglipPair, numbers: Mapping[str, int] | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tokens of the reports, the blocks where the rows have some, and, for the stages that compare with all,
    the number of the report; these need one of both alone."""
    batch: dict[str, Any] = {"name": [row["name"] for row in rows]}
    has_blocks = "blocks" in rows[0]
    if numbers is not None:
        batch["which"] = torch.tensor([numbers[row["report"]] for row in rows])
    if has_blocks:
        batch["blocks"] = torch.stack([row["blocks"] for row in rows])
    if not has_blocks or numbers is None:
        batch |= tokens_of(pair, [row["report"] for row in rows])
    return batch


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
    """A tokenizer of the commonest words of such texts, and of letters for all others, kept in a folder; the one that
    is kept there already, for a training that goes on.

    No trained WordPiece: equally common pieces would come in another order every time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        part = folder / f"part{os.getpid()}"  # several processes may write the same at once
        _of_words(texts, words).save(str(part))
        part.replace(folder / "tokenizer.json")
    tokenizer = read_tokenizer(folder, "[SEP]")
    tokenizer.pad_token = "[PAD]"
    return tokenizer


def _of_words(texts: Sequence[str], most: int) -> Tokenizer:
    normal, cut = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    count = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(normal.normalize_str(text)))
    letters = sorted(set("".join(count)))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    common = sorted((word for word in count if len(word) > 1), key=lambda word: (-count[word], word))
    vocabulary = [*pieces, *common[: max(most - len(pieces), 0)]]
    whole = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    whole.normalizer, whole.pre_tokenizer = normal, cut
    whole.add_special_tokens(list(SPECIAL))
    ends = [(token, whole.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    whole.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return whole


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
