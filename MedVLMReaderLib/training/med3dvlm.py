"""Second and third stage of Med3DVLM: the projector learns to show scans to a decoder, then LoRA adapts the decoder to
write of them; merged, and saved as published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models import dcformer, med3dvlm, siglip
from MedVLMReaderLib.models.med3dvlm import NAMES, REPORT, Med3DVLM, Sizes
from MedVLMReaderLib.models.ms_vlm import MSVLM
from MedVLMReaderLib.models.one_block import IMAGE, spliced
from MedVLMReaderLib.training.augment import NOTHING, Augment, changed
from MedVLMReaderLib.training.decoder import LINEARS, decoder_numbers, read_decoder
from MedVLMReaderLib.training.engine import Settings, fit, leads
from MedVLMReaderLib.training.objectives import said
from MedVLMReaderLib.training.packed import UNTOLD, collated, grouped, seen_by, short_attention
from MedVLMReaderLib.training.prepared import Prepared, prepare
from MedVLMReaderLib.weights import Checkpoint, renamed

PARTS = "encoder", "projector", "embeddings", "head"
"""What can be trained as it is, beside LoRA's own weights; the head of a decoder that ties it is its embeddings."""
PROJECTOR_STAGE, LORA_STAGE = ("projector", "embeddings"), PARTS
"""What is trained so, as published."""


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of the decoder's linear layers. The defaults are the published ones."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = LINEARS

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.targets) - set(LINEARS)):
            raise ReaderError(f"[lora] has the target '{unknown[0]}'. Known: {', '.join(LINEARS)}.")
        if not self.targets or self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ReaderError(f"[lora] that changes nothing: {self}.")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Lora:
        """From a table of a configuration, of known keys; ReaderError where a value is of the wrong kind."""
        kinds = {one.name: type(one.default) for one in fields(cls)}
        kept: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in table.items()
        }
        for name, value in kept.items():
            if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int):
                raise ReaderError(f"[lora] has {name} = {table[name]!r}; it should be like {getattr(cls(), name)!r}.")
        return cls(**kept)


@dataclass(frozen=True)
class Stage:
    """What a training changes."""

    trains: tuple[str, ...] = PROJECTOR_STAGE
    lora: Lora | None = None
    augment: Augment = NOTHING
    longest: int = 512
    """Tokens of image, question and answer together; what is beyond is not learned."""
    keep_features: bool = False
    """The encoder reads each scan once, before the training, and the features stay in memory."""
    together: int = 1
    """Questions (and reports) of a scan that are one row of a batch: scan and image tokens are read once for all."""

    evened: int = 0
    """Scans by which an untrained projector is evened before it learns; 0: it begins as it is."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.trains) - set(PARTS)):
            raise ReaderError(f"[model] trains the part '{unknown[0]}'. Known: {', '.join(PARTS)}.")
        if not self.trains and not self.lora:
            raise ReaderError("[model] trains nothing, and there is no [lora]. Name parts, or add the table.")
        for name, least in (("together", 1), ("evened", 0)):
            if type(number := getattr(self, name)) is not int or number < least:
                raise ReaderError(f"[model] has {name} = {number!r}; it should be a whole number, {least} or more.")
        if self.keep_features and ("encoder" in self.trains or self.augment != NOTHING):
            raise ReaderError(
                "keep_features reads every scan once: it goes with neither a trained encoder nor [augment]."
            )


# ---- The network with its loss --------------------------------------------------------------------------------------


class Taught(nn.Module):
    """A Med3DVLM with the loss of its answers, each word from the scan and what stands before it."""

    def __init__(self, model: Med3DVLM, stage: Stage) -> None:
        super().__init__()
        self.model, self.augment = model.requires_grad_(False), stage.augment
        if stage.lora:
            adapted(model.decoder, stage.lora)
        for part in stage.trains:
            _part(model, part).requires_grad_(True)
        decoder = self.state_dict(keep_vars=True).items()  # with the names of what is tied
        self.elsewhere = frozenset(n for n, one in decoder if n.startswith("model.decoder.") and not one.requires_grad)
        self._no_split_modules = [*(model.decoder._no_split_modules or ()), "Block"]  # where FSDP may cut

    def forward(
        self, ids: Tensor, turns: Tensor, places: Tensor, labels: Tensor, blocks: Tensor | None = None,
        low: Tensor | None = None, high: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """From (scans, length) tokens, their turns and places (`packed`), and the scans' blocks or features."""
        if blocks is not None:
            low, high = self.model.features(changed(blocks, self.augment) if self.training else blocks)
        decoder = self.model.decoder
        given = spliced(decoder.get_input_embeddings()(ids), self.model.projector(low, high))
        with nullcontext() if decoder.is_gradient_checkpointing else short_attention(ids.device):
            hidden = decoder.model(
                inputs_embeds=given, attention_mask=seen_by(turns, given.dtype), position_ids=places, use_cache=False
            ).last_hidden_state
        told = labels[:, 1:]
        counted = told != UNTOLD
        return {"words": said(decoder.lm_head(hidden[:, :-1][counted]), told[counted])}


def _part(model: Med3DVLM, name: str) -> Any:
    decoder = model.decoder
    parts = {"encoder": model.encoder, "projector": model.projector, "embeddings": decoder.get_input_embeddings()}
    return parts.get(name) or decoder.get_output_embeddings()


def adapted(decoder: Any, lora: Lora) -> None:
    """Put LoRA's weights beside those of the decoder's layers; they alone are then trained."""
    from peft import LoraConfig, inject_adapter_in_model

    names = rf"model\.layers\..*\.({'|'.join(lora.targets)})"
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, bias="none"
    )
    inject_adapter_in_model(config, decoder)


def merge(model: Med3DVLM | MSVLM) -> None:
    """Add what LoRA learned to the decoder's own weights, and take its layers away."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.decoder.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.decoder.set_submodule(name, layer.get_base_layer())


# ---- What it learns from --------------------------------------------------------------------------------------------


class Exchanges:
    """Scans with questions, or the request for a report, and what is to be said: a row has `together` of one scan."""

    def __init__(
        self, cases: Sequence[Case], model: Med3DVLM, longest: int, scan: Callable[[str], dict[str, Tensor]],
        together: int = 1,
    ) -> None:  # fmt: skip
        self.cases, self.tokenizer, self.longest, self.scan = cases, model.tokenizer, longest, scan
        self.image, self.image_tokens = IMAGE * model.sizes.tokens, model.sizes.tokens
        self.groups = grouped(cases, together)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, n: int) -> dict[str, Any]:
        group = self.groups[n]
        turns = [self.written(case) for case in group]
        shared = self.image_tokens + 1  # the first token after the image is not read (`spliced`)
        return {"name": group[0].place, "turns": turns, "shared": shared, **self.scan(group[0].volume)}

    def written(self, case: Case) -> tuple[list[int], int]:
        """Tokens as the reader asks and the model is to answer, and where the answer starts."""
        asked = self.tokenizer(self.image + (f" {case.asked}" if case.question else REPORT))["input_ids"]
        answer = case.expected if case.question else case.report
        told = self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        return [*asked, *told, self.tokenizer.eos_token_id][: self.longest], len(asked)


def _blocks(prepared: Prepared) -> Callable[[str], dict[str, Tensor]]:
    return lambda name: {"blocks": torch.tensor(prepared.of(name)).float()[None] / 255}


@torch.no_grad()
def _features(cases: Sequence[Case], prepared: Prepared, model: Med3DVLM) -> Callable[[str], dict[str, Tensor]]:
    """What the encoder sees in each scan, read once."""
    kept: dict[str, dict[str, Tensor]] = {}
    for name in dict.fromkeys(case.volume for case in cases):
        low, high = model.eval().features(_blocks(prepared)(name)["blocks"][None])
        kept[name] = {"low": low[0].float().cpu(), "high": high[0].float().cpu()}
    return kept.__getitem__


@torch.no_grad()
def even(model: Med3DVLM, low: Tensor, high: Tensor) -> None:
    """Have an untrained projector begin with what differs between such scans' features (scans, cells, channels).

    Most of a feature is the same for every scan, and of what untrained layers make of it even more: a decoder would be
    shown almost the same tokens each time. The first norms and the last layers take that out by their own numbers, and
    what is left is as large as the decoder's own embeddings.
    """
    goal = model.decoder.get_input_embeddings().weight.std()
    stacks: Any = model.projector.low_mixer, model.projector.high_mixer
    for stack, part in zip(stacks, (low, high), strict=True):
        norm, last = stack[0].ln1, [one for one in stack[-1].mlp2.modules() if isinstance(one, nn.Linear)][-1]
        plain = nn.functional.layer_norm(part, part.shape[-1:]).flatten(0, 1)
        norm.weight.copy_(1 / plain.std(0).clamp(min=1e-6))
        norm.bias.copy_(-plain.mean(0) * norm.weight)
        tokens = stack(part)  # (scans, tokens, width)
        factor = goal / tokens.std(0).mean(0).clamp(min=1e-8)
        last.weight.mul_(factor[:, None])
        last.bias.sub_(tokens.mean((0, 1))).mul_(factor)


# ---- Training -------------------------------------------------------------------------------------------------------


def train(
    cases: Sequence[Case], model: Med3DVLM, stage: Stage, settings: Settings, folder: Path, *,
    skip_faulty: bool = False, minutes: float = 1e9,
) -> bool:  # fmt: skip
    """Train on reports and questions; True when finished, then with the merged model as published in folder/model."""
    prepared = Prepared(folder / "blocks", model.recipe)
    kept, left_out = prepare(cases, prepared, skip=skip_faulty)
    for fault in left_out:
        print(f"Left out: {fault}")
    if (count := len(grouped(kept, stage.together))) < settings.batch:
        raise ReaderError(f"{count} cases cannot fill a batch of {settings.batch}. Lower 'batch' in [training].")
    if stage.evened:
        some = list({case.volume: case for case in kept}.values())[: stage.evened]
        if len(some) < 2:
            raise ReaderError("[model] has 'evened', which needs two scans or more. Add scans, or take it out.")
        found = list(map(_features(some, prepared, model), (case.volume for case in some)))
        even(model, *(torch.stack([one[grid] for one in found]) for grid in ("low", "high")))
    scan = _features(kept, prepared, model) if stage.keep_features else _blocks(prepared)
    rows = Exchanges(kept, model, stage.longest, scan, stage.together)
    _check_room(rows, stage.longest)
    torch.manual_seed(settings.seed)  # LoRA's first weights
    if not fit(Taught(model, stage), rows, collated, settings, folder, minutes=minutes):
        return False
    if leads():
        merge(model)
        save(model, folder / "model")
    return True


def _check_room(rows: Exchanges, longest: int) -> None:
    """ReaderError where image and question leave no room for any of an answer."""
    for case in rows.cases:
        if (start := rows.written(case)[1]) >= longest:
            raise ReaderError(
                f"{case.place}: image and question take {start} tokens of {longest}, and nothing is left for the "
                "answer. Raise 'longest' in [model], or leave the case out."
            )


def assembled(pair: Path, decoder: Path, low: Sequence[int], high: Sequence[int], layers: int, seed: int) -> Med3DVLM:
    """A model to begin with: the encoder of a trained pair, a language model, and an untrained mixer between them."""
    eyes = siglip.load(Checkpoint(pair, pair.name, "start"))
    vision = dcformer.Sizes.found({n: tuple(t.shape) for n, t in eyes.vision_encoder.state_dict().items()})
    try:
        sizes = Sizes(eyes.recipe.shape, vision, tuple(low), tuple(high), layers)
    except ValueError as error:
        raise ReaderError(f"The pair '{pair}' and the mixer in [model] make no Med3DVLM: {error}.") from None
    writer, tokenizer = read_decoder(decoder)
    torch.manual_seed(seed)
    model = Med3DVLM(sizes, writer, tokenizer)
    model.encoder.load_state_dict(eyes.vision_encoder.state_dict())
    return model


def started(folder: Path) -> Med3DVLM:
    """A model of the published layout, to go on from."""
    return med3dvlm.load(Checkpoint(folder, folder.name, "start"))


def save(model: Med3DVLM, folder: Path) -> None:
    """Write the model in the published layout: config.json, tokenizer.json, weights in files of at most 5 GB."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    backwards = {ours: theirs for theirs, ours in NAMES.items() if ours != "decoder.model."}
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if model.decoder.config.tie_word_embeddings:
        del state["decoder.lm_head.weight"]
    save_torch_state_dict(renamed(state, {**backwards, "decoder.": ""}), folder, max_shard_size="5GB")
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(_config(model), indent=1) + "\n")


def _config(model: Med3DVLM) -> dict[str, Any]:
    """The fields of the published config.json."""
    sizes = model.sizes
    (depth, rows, columns), widths = sizes.shape, sizes.vision.widths
    low, high = (k * j * i for k, j, i in sizes.grids)
    return {
        **decoder_numbers(model.decoder.config), "model_type": "vlm_qwen", "architectures": ["VLMQwenForCausalLM"],
        "eos_token_id": model.tokenizer.eos_token_id, "input_size": [rows, columns, depth],
        "vision_tower": "dcformer", "vision_select_layer": -2, "vision_select_feature": "cls_patch",
        "mm_projector_type": "mixer", "mm_mlp_depth": sizes.layers, "proj_out_num": sizes.tokens,
        "mm_hidden_size": widths[-1], "low_output_size": list(sizes.low), "high_output_size": list(sizes.high),
        "low_input_size": [low, widths[-2]], "high_input_size": [high, widths[-1]], "torch_dtype": "float32",
    }  # fmt: skip
