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
from torch import nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models.ms_vlm import MSVLM, Sizes, SliceEncoder, Template, ZFormer
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training.dino import Dino, HeadSizes, Views, new_encoder
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit
from MedVLMReaderLib.training.masked_slices import (
    SHARE,
    Masked,
    against_interpolation,
    class_tokens,
    stacks_together,
)
from MedVLMReaderLib.training.slice_stacks import Slices, Stacks, pictures_together

MEASURED = "held-out.json"
"""Of the stage `masked`: its errors on studies that it has not learned from."""


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
    share: float = SHARE
    seed: int = 0


@dataclass(frozen=True)
class Runs:
    """Where everything is kept, and how many minutes there are for each stage."""

    folder: Path
    minutes: float = 1e9

    def weights(self, stage: str) -> Path:
        return self.folder / stage / WEIGHTS


def run(plan: Plan, cases: Sequence[Case], held_out: Sequence[Case], runs: Runs) -> bool:
    """The first two stages; True when they are finished. Slices of `held_out` are only measured on."""
    kept = Stacks(runs.folder / "stacks", plan.recipe)
    names, others = (list(dict.fromkeys(case.volume for case in each)) for each in (cases, held_out))
    if plan.dino and not runs.weights("dino").exists():
        network = Dino(new_encoder(plan.sizes, plan.seed), plan.head, plan.views, momentum=plan.momentum)
        rows = Slices(kept, names, plan.planes, plan.sizes.context)
        _enough(len(rows), plan.dino, "slices")
        if not fit(network, rows, pictures_together, plan.dino, runs.folder / "dino", minutes=runs.minutes):
            return False
    if plan.masked and not (runs.folder / "masked" / MEASURED).exists():
        return _hidden_slices(plan, plan.masked, kept, names, others, runs)
    return True


def _hidden_slices(
    plan: Plan, settings: Settings, kept: Stacks, names: Sequence[str], others: Sequence[str], runs: Runs
) -> bool:
    encoder, folder = slice_encoder(plan, runs), runs.folder / "masked"
    rows = class_tokens(encoder, kept, names, plan.planes, folder / "tokens.safetensors")
    _enough(len(rows), settings, "stacks")
    network = Masked(new_zformer(plan), plan.share)
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
    return _stage_part(SliceEncoder(plan.sizes), runs.weights("dino"), "teacher.encoder.")


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
        (slice_encoder(plan, runs) if runs.weights("dino").exists() else new_encoder(plan.sizes, plan.seed)).state_dict()
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


