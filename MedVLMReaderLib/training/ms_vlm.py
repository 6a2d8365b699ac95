"""MS-VLM's training: slice encoder (DINO), Z-former (hidden slices), then the bridge, then the decoder by LoRA.

Each stage stands in a folder of its own and goes on where it was; `run` does all that are asked for, one after the
other. Source of the stages: arXiv 2412.13558.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models.domain import Domain, statistics
from MedVLMReaderLib.models.ms_vlm import MSVLM, Template, ZFormer
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.shards import Shards
from MedVLMReaderLib.training.bridge import RANKS, Exchanges, kept_features, train_bridge, train_lora
from MedVLMReaderLib.training.dino import Dino, HeadSizes, Views, new_encoder
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit
from MedVLMReaderLib.training.features import planes_of
from MedVLMReaderLib.training.language import made_tokenizer
from MedVLMReaderLib.training.masked_slices import (
    Hiding,
    Masked,
    against_interpolation,
    class_tokens,
    stacks_together,
)
from MedVLMReaderLib.training.med3dvlm import Lora
from MedVLMReaderLib.training.slice_stacks import Slices, Stacks, pictures_together
from MedVLMReaderLib.weights import DECODER_FIELDS, filled_decoder, new_decoder, read_tokenizer

MEASURED = "held-out.json"
"""Of the stage `masked`: its errors on studies that it has not learned from."""
SPREAD = "spread.safetensors"
"""Of the stage `dino`: mean and spread of the class tokens of the first scans."""
FIRST = 64
"""Scans that these are taken from."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and how. A stage without settings is left out."""

    sizes: Sizes
    recipe: Recipe
    planes: tuple[int, ...] = (0, 1, 2)
    """Of which the first two stages take slices."""
    dino: Settings | None = None
    head: HeadSizes = field(default_factory=HeadSizes)
    views: Views = field(default_factory=Views)
    momentum: float = 0.996
    masked: Settings | None = None
    hiding: Hiding = field(default_factory=Hiding)
    bridge: Settings | None = None
    lora: Settings | None = None
    ranks: Lora = RANKS
    template: Template | None = None
    decoder: Path | dict[str, Any] | None = None
    """A folder of a causal language model, or the sizes of a new one, whose tokenizer is then made from the texts."""
    reads: str = "scans"
    seed: int = 0


@dataclass(frozen=True)
class Runs:
    """Where everything is kept, and how many minutes there are for each stage."""

    folder: Path
    minutes: float = 1e9

    def weights(self, stage: str) -> Path:
        return self.folder / stage / WEIGHTS


def run(plan: Plan, cases: Sequence[Case], held_out: Sequence[Case], runs: Runs) -> bool:
    """All stages of the plan; True when they are finished, then the model stands in folder/model where there is a
    decoder. Slices of `held_out` are only measured on."""
    kept = Stacks(runs.folder / "stacks", plan.recipe)
    names, others = (list(dict.fromkeys(case.volume for case in each)) for each in (cases, held_out))
    unspread = not (runs.folder / "dino" / SPREAD).exists()
    if plan.dino and unspread and not _slices(plan, plan.dino, kept, names, runs):
        return False
    unmeasured = not (runs.folder / "masked" / MEASURED).exists()
    if plan.masked and unmeasured and not _hidden_slices(plan, plan.masked, kept, names, others, runs):
        return False
    return not (plan.bridge or plan.lora) or _words(plan, cases, kept, runs)


def _words(plan: Plan, cases: Sequence[Case], kept: Stacks, runs: Runs) -> bool:
    """Bridge and LoRA, and the model as the reader loads it."""
    if plan.template is None or plan.decoder is None:
        raise ReaderError("[bridge] and [lora] need a [template] and a [decoder].")
    decoder, config, tokenizer = language(plan.decoder, cases, plan.template, runs.folder / "tokenizer", plan.seed)
    model = assembled(plan, plan.template, decoder, tokenizer, runs)
    names = [case.volume for case in cases]
    paths = kept_features(model.slice_encoder, kept, names, runs.folder / "features", patches=bool(plan.sizes.places))
    rows = Exchanges(cases, paths, plan.template, tokenizer)
    for settings in filter(None, (plan.bridge, plan.lora)):
        _enough(len(rows), settings, "reports and questions")
    if plan.bridge and not train_bridge(model, rows, plan.bridge, runs.folder / "bridge", runs.minutes):
        return False
    if plan.lora and not train_lora(model, rows, plan.ranks, plan.lora, runs.folder / "lora", runs.minutes):
        return False
    if plan.sizes.places:
        model.domain = domain_of(list(paths.values()), plan.sizes.patch)
    save(model, config, plan.reads, runs.folder / "model")
    return True


def language(source: Path | dict[str, Any], cases: Sequence[Case], template: Template, folder: Path, seed: int
             ) -> tuple[Any, dict[str, Any], Any]:  # fmt: skip
    """Decoder, its plain configuration, and its tokenizer."""
    torch.manual_seed(seed)
    if isinstance(source, Path):
        config = {n: v for n, v in json.loads((source / "config.json").read_text()).items() if n in DECODER_FIELDS}
        return filled_decoder(config, Shards.open(source)), config, read_tokenizer(source, template.end)
    if not (folder / "tokenizer.json").exists():
        texts = {text for case in cases for text in (case.report, case.asked, case.expected, template.report) if text}
        folder.mkdir(parents=True, exist_ok=True)
        made_tokenizer(sorted(texts)).backend_tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer = read_tokenizer(folder, template.end)
    config = {**source, "vocab_size": len(tokenizer)}
    return new_decoder(config), config, tokenizer


def domain_of(paths: Sequence[Path], patch: int) -> Domain:
    """What the features of the learned scans look like; every fifth scan is held out for the limit."""
    if len(paths) < 10:
        raise ReaderError(f"{len(paths)} scans do not tell what is unlike them; a model with places needs 10 or more.")
    rows = torch.stack([statistics([plane.patches for plane in planes_of(load_file(path), patch)]) for path in paths])
    held_out = torch.arange(len(rows)) % 5 == 0
    return Domain.fitted(rows[~held_out], rows[held_out])


def _slices(plan: Plan, settings: Settings, kept: Stacks, names: Sequence[str], runs: Runs) -> bool:
    """DINO, and then how far the class tokens of slices lie apart."""
    folder = runs.folder / "dino"
    if not runs.weights("dino").exists():
        network = Dino(new_encoder(plan.sizes, plan.seed), plan.head, plan.views, momentum=plan.momentum)
        rows = Slices(kept, names, plan.planes, plan.sizes.context)
        _enough(len(rows), settings, "slices")
        if not fit(network, rows, pictures_together, settings, folder, minutes=runs.minutes):
            return False
    few = class_tokens(slice_encoder(plan, runs), kept, names[:FIRST], plan.planes, folder / "first.safetensors")
    tokens = torch.cat(few.stacks)
    save_file({"mean": tokens.mean(0), "spread": tokens.std(0).clamp(min=1e-6)}, folder / SPREAD)
    return True


def evened(encoder: SliceEncoder, mean: Tensor, spread: Tensor) -> None:
    """Have class tokens come out with a mean of 0 and a spread of 1, by the last norm's own numbers.

    Most of a class token is the same for every slice; what is not is what the Z-former has to tell.
    """
    with torch.no_grad():
        encoder.norm.weight.div_(spread)
        encoder.norm.bias.sub_(mean).div_(spread)


def _hidden_slices(
    plan: Plan, settings: Settings, kept: Stacks, names: Sequence[str], others: Sequence[str], runs: Runs
) -> bool:
    encoder, folder = slice_encoder(plan, runs), runs.folder / "masked"
    rows = class_tokens(encoder, kept, names, plan.planes, folder / "tokens.safetensors")
    _enough(len(rows), settings, "stacks")
    network = Masked(new_zformer(plan), plan.hiding)
    if runs.weights("masked").exists():
        network.load_state_dict(load_file(runs.weights("masked")))
    elif not fit(network, rows, stacks_together, settings, folder, minutes=runs.minutes):
        return False
    if others:
        unseen = class_tokens(encoder, kept, others, plan.planes, folder / "held-out.safetensors")
        figures = against_interpolation(network.cpu(), unseen)
        (folder / MEASURED).write_text(json.dumps(figures, indent=1) + "\n")
    return True


def _enough(count: int, settings: Settings, what: str) -> None:
    if count < settings.batch:
        raise ReaderError(f"{count} {what} cannot fill a batch of {settings.batch}. Lower 'batch', or add studies.")


def new_zformer(plan: Plan) -> ZFormer:
    """An untrained Z-former. What reads words in it, and what sums a text up, stays as it is."""
    torch.manual_seed(plan.seed)
    zformer = ZFormer(plan.sizes.zformer)
    for part in (zformer.bigbird.embeddings.word_embeddings, zformer.bigbird.pooler):
        part.requires_grad_(False)
    return zformer


def slice_encoder(plan: Plan, runs: Runs) -> SliceEncoder:
    """What the first stage has learned: the teacher, as is usual."""
    encoder: SliceEncoder = _stage_part(SliceEncoder(plan.sizes), runs.weights("dino"), "teacher.encoder.")
    if (path := runs.folder / "dino" / SPREAD).exists():
        evened(encoder, **load_file(path))
    return encoder


def _stage_part(network: Any, path: Path, below: str) -> Any:
    """The network with the tensors of a stage that stand below a name. ReaderError where the stage is not there."""
    try:
        tensors = load_file(path)
        network.load_state_dict({n.removeprefix(below): v for n, v in tensors.items() if n.startswith(below)})
    except (OSError, RuntimeError) as error:
        stage = path.parent.name
        raise ReaderError(
            f"'{path}' cannot be used ({str(error).splitlines()[0]}). Give the file a table [{stage}], so that this "
            "stage is done, or name the folder of the run that did it."
        ) from None
    return network.eval()


def assembled(plan: Plan, template: Template, decoder: Any, tokenizer: Any, runs: Runs) -> MSVLM:
    """The whole network with what the first two stages learned; without one, that part is untrained."""
    torch.manual_seed(plan.seed)
    model = MSVLM(plan.sizes, plan.recipe, template, decoder, tokenizer)
    model.slice_encoder.load_state_dict(
        (
            slice_encoder(plan, runs) if runs.weights("dino").exists() else new_encoder(plan.sizes, plan.seed)
        ).state_dict()
    )
    if runs.weights("masked").exists():
        _stage_part(model.bridge.zformer, runs.weights("masked"), "zformer.")
    return model


def save(model: MSVLM, decoder: dict[str, Any], reads: str, folder: Path) -> None:
    """The model as the reader loads it: config.json, tokenizer.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = {"decoder.lm_head.weight"} if decoder.get("tie_word_embeddings", True) else set()
    tensors = {n: v.detach().cpu().contiguous() for n, v in model.state_dict().items() if n not in tied}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "format": 1, "system": "ms_vlm", "sizes": model.sizes.to_json(), "recipe": model.recipe.to_json(),
        "template": model.template.__dict__, "decoder": decoder, "reads": reads,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
