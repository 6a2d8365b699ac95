"""The built-in model's recipe: its stages, each resumable, in a folder of runs.

data      made studies, prepared              runs/data/SEED.npz
stem      its convolutions, on crops          runs/stem/
encoder   its transformer, on whole slices    runs/encoder/
features  every study through the encoder     runs/features/SEED.safetensors
language  the decoder, on perfect tokens      runs/language/
words     Z-former and perceiver between both  runs/words/
export    the model as the reader loads it    a folder
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.domain import Domain, statistics
from MedVLMReaderLib.models.ms_vlm import Bridge, Template
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.phantom import made_truth
from MedVLMReaderLib.phantom_report import REPORT_REQUEST
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training import encoder as dense
from MedVLMReaderLib.training import stem as local
from MedVLMReaderLib.training.features import encode_all, load_features
from MedVLMReaderLib.training.language import END, READER, USER, corpus, made_tokenizer, turns
from MedVLMReaderLib.training.loop import Ahead, Schedule, train, weights_in
from MedVLMReaderLib.training.made_data import FIRST_TEXT_SEED, FIRST_TRAINING_SEED, make, outlines
from MedVLMReaderLib.training.telling import TOKENS
from MedVLMReaderLib.training.words import Studies, Writer, centred, place_latents

AGAIN = {"encoder": "encoder-2", "features": "features-2", "words": "words-2"}
"""Stages that come a second time, and what they are then called."""
STAGES = ("data", "stem", "encoder", "features", "language", "words", *AGAIN.values(), "export")

RECIPE = Recipe(
    size=128,
    pixel_mm=3.2,
    slice_mm=(5.0, 10.0, 10.0),
    windows_ct=((-1000.0, -600.0), (-100.0, 260.0), (-1000.0, 600.0)),
    windows_mr=((0.0, 0.5), (0.25, 1.0), (0.0, 1.5)),
)
SIZES = Sizes(
    patch=8,
    table=128,
    stem=(48, 96),
    stem_depth=3,
    local=2,
    context=1,
    slice_width=128,
    slice_depth=4,
    slice_heads=4,
    zformer={
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 1,
        "pad_token_id": 0, "block_size": 16, "num_random_blocks": 3, "max_position_embeddings": 1024,
    },
    perceiver_width=128,
    perceiver_depth=3,
    perceiver_heads=4,
    head_width=32,
    latents=TOKENS,
    places=6,
)  # fmt: skip
DECODER: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
TEMPLATE = Template("{image}", USER + "{question}" + READER, END, REPORT_REQUEST, remembers=False)


STEM = Schedule(steps=6000, learning_rate=2e-3)
ENCODER = Schedule(steps=2200, learning_rate=1.5e-3)
LANGUAGE = Schedule(steps=4000, learning_rate=1.5e-3)
WORDS = Schedule(steps=2200, learning_rate=1.5e-3)
ENCODER_AGAIN = Schedule(steps=3000, learning_rate=8e-4, warm_up=50)
"""A second round from where the first ended, as in warm restarts (arXiv 1608.03983)."""
WORDS_AGAIN = Schedule(steps=1600, learning_rate=1e-3, warm_up=50)


THINNED = 0.8
"""Share of the steps of the words stage that see a part of each study's patches alone."""


@dataclass(frozen=True)
class Plan:
    """How much of everything; smaller for a trial."""

    studies: int = 3000
    stem: Schedule = STEM
    encoder: Schedule = ENCODER
    language: Schedule = LANGUAGE
    outlines: int = 5000
    """Made studies that are never rendered, for the decoder to write about."""
    outlines_each: int = 8
    words: Schedule = WORDS
    encoder_again: Schedule = ENCODER_AGAIN
    words_again: Schedule = WORDS_AGAIN
    words_studies: int = 3
    asked: int = 12
    texts: int = 500
    """Made studies whose texts the tokenizer is made from."""
    seed: int = 0


def run(stage: str, runs: Path, plan: Plan, minutes: float = 75.0) -> bool:
    """Do one stage, or go on with it; True when it is finished."""
    if stage == "data":
        seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + plan.studies)
        for _ in make(runs / "data", seeds, RECIPE):
            pass
        return True
    if stage == "stem":
        return train_stem(runs, plan, minutes)
    if stage in ("encoder", AGAIN["encoder"]):
        return train_encoder(runs, plan, minutes, stage != "encoder")
    if stage in ("features", AGAIN["features"]):
        of = "encoder" if stage == "features" else AGAIN["encoder"]
        encode_all(runs / "data", runs / stage, trained_encoder(runs / of), RECIPE)
        return True
    if stage == "language":
        return train_language(runs, plan, minutes)
    if stage in ("words", AGAIN["words"]):
        return train_words(runs, plan, minutes, stage != "words")
    raise ReaderError(f"No stage '{stage}'. Stages: {', '.join(STAGES)}.")


def train_stem(runs: Path, plan: Plan, minutes: float) -> bool:
    """The convolutions of the slice encoder, on crops around findings."""
    torch.manual_seed(plan.seed)
    network = local.Local(SIZES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crops = Ahead(local.Crops(runs / "data", RECIPE, SIZES, plan.seed).at)
    return train(network, lambda step: local.loss(network, crops(step)), runs / "stem", plan.stem, minutes)


def train_encoder(runs: Path, plan: Plan, minutes: float, again: bool = False) -> bool:
    """The transformer of the slice encoder, over the convolutions of the stage before; a second time all of it."""
    encoder, head = dense.encoder_parts(SIZES, plan.seed)
    learned = learned_in(runs / "stem")
    named = {n.removeprefix("patch_embed."): v for n, v in learned.items() if n.startswith("patch_embed.")}
    encoder.patch_embed.load_state_dict(named)
    encoder.patch_embed.requires_grad_(again)
    network = nn.ModuleDict({"encoder": encoder, "head": head}).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if again:
        network.load_state_dict(learned_in(runs / "encoder"))
    pictures = Ahead(dense.Pictures(runs / "data", RECIPE, SIZES, plan.seed + again).at)

    def losses(step: int) -> dict[str, Tensor]:
        encoder.patch_embed.eval()  # its batch norms stay as they are
        batch = pictures(step)
        with torch.autocast("cpu", torch.bfloat16):  # a quarter less time on processors that have it
            tokens = encoder(batch.pictures.to(memory_format=torch.channels_last))
        return dense.loss(head, tokens.float(), batch)

    stage, schedule = (AGAIN["encoder"], plan.encoder_again) if again else ("encoder", plan.encoder)
    return train(network, losses, runs / stage, schedule, minutes)


def learned_in(folder: Path) -> dict[str, Tensor]:
    """The weights of a stage's last checkpoint."""
    return weights_in(load_file(folder / "checkpoint.safetensors"))


def last_round(runs: Path, stage: str) -> Path:
    """The folder of a stage's second round, or of its first where words, the last of all, have had no second.

    The same round for every stage: words of one round do not fit the encoder of the other.
    """
    return runs / (AGAIN[stage] if (runs / AGAIN["words"]).exists() else stage)


def trained_encoder(folder: Path) -> SliceEncoder:
    """The slice encoder of the last checkpoint in the folder of its stage."""
    weights = learned_in(folder)
    encoder = SliceEncoder(SIZES)
    encoder.load_state_dict({n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")})
    return encoder.eval()


def tokenizer_of(runs: Path, texts: int = Plan.texts) -> Any:
    """The tokenizer, made once, from the texts of so many made studies."""
    from transformers import PreTrainedTokenizerFast

    if not (runs / "tokenizer" / "tokenizer.json").exists():
        truths = (made_truth(FIRST_TRAINING_SEED + n) for n in range(texts))
        made_tokenizer(corpus(truths)).save_pretrained(runs / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(runs / "tokenizer")


def new_writer(tokenizer: Any, seed: int) -> Writer:
    """Bridge, decoder and what teaches them, untrained."""
    torch.manual_seed(seed)
    config = Qwen2Config(**{k: v for k, v in DECODER.items() if k != "model_type"}, vocab_size=len(tokenizer))
    bridge = Bridge(SIZES, DECODER["hidden_size"])
    place_latents(bridge, SIZES.places)
    return Writer(bridge, Qwen2ForCausalLM(config))


def train_language(runs: Path, plan: Plan, minutes: float) -> bool:
    """The decoder learns to write about what perfect visual tokens tell it; no picture is seen."""
    tokenizer = tokenizer_of(runs, plan.texts)
    writer = new_writer(tokenizer, plan.seed)
    seeds = range(FIRST_TEXT_SEED, FIRST_TEXT_SEED + plan.outlines)
    known = outlines(runs / "language" / "outlines.jsonl", seeds)

    def losses(step: int) -> dict[str, Tensor]:
        rng = random.Random(plan.seed * 1_000_003 + step)
        chosen = rng.sample(known, min(plan.outlines_each, len(known)))
        asked = [turns(outline.truth, rng, plan.asked) for outline in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            return {"words": writer.words([writer.perfect(outline, rng) for outline in chosen], asked, tokenizer)}

    return train(_language(writer), losses, runs / "language", plan.language, minutes)


def _language(writer: Writer) -> nn.Module:
    """What the language stage trains."""
    return nn.ModuleDict({"decoder": writer.decoder, "teller": writer.teller})


def train_words(runs: Path, plan: Plan, minutes: float, again: bool = False) -> bool:
    """Z-former and perceiver, between an encoder and a decoder that stay as they are."""
    stage, schedule = (AGAIN["words"], plan.words_again) if again else ("words", plan.words)
    tokenizer = tokenizer_of(runs, plan.texts)
    writer = new_writer(tokenizer, plan.seed)
    studies = Studies(runs / (AGAIN["features"] if again else "features"), SIZES.patch, plan.seed + again)
    if again:
        writer.load_state_dict(learned_in(runs / "words"))  # the decoder among them
    else:
        _language(writer).load_state_dict(learned_in(runs / "language"))
        centred(writer.bridge, studies.mean())
    _language(writer).requires_grad_(False)

    whole = schedule.steps - int((1 - THINNED) * schedule.steps)
    batches = Ahead(lambda step: studies.at(step, plan.words_studies, plan.asked, step < whole))

    def losses(step: int) -> dict[str, Tensor]:
        features, asked = zip(*batches(step), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            tokens, parts = zip(*(writer.seen(one) for one in features), strict=True)
            words = writer.words(tokens, asked, tokenizer)
        return {"words": words, **{name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}}

    return train(writer, losses, runs / stage, schedule, minutes)


def fitted_domain(runs: Path) -> Domain:
    """What the features of made studies look like; every fifth study is held out for the limit."""
    paths = sorted(last_round(runs, "features").glob("*.safetensors"))
    rows = torch.stack([statistics([p.patches for p in load_features(path, SIZES.patch).planes]) for path in paths])
    held_out = torch.arange(len(rows)) % 5 == 0
    return Domain.fitted(rows[~held_out], rows[held_out])


def export(runs: Path, folder: Path) -> None:
    """Write the model as the reader loads it: config.json, tokenizer.json, model.safetensors in 16 bits."""
    tokenizer = tokenizer_of(runs)
    folder.mkdir(parents=True, exist_ok=True)
    written = learned_in(last_round(runs, "words"))
    encoder = trained_encoder(last_round(runs, "encoder"))
    tensors = {f"slice_encoder.{n}": v for n, v in encoder.state_dict().items()}
    tensors |= {n: v for n, v in written.items() if n.split(".")[0] in ("bridge", "decoder")}
    tensors.pop("decoder.lm_head.weight", None)  # tied to the embeddings
    half = {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
    half |= {f"domain.{n}": v for n, v in fitted_domain(runs).state_dict().items()}
    save_file({n: v.contiguous() for n, v in half.items()}, folder / "model.safetensors", {"format": "pt"})
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "format": 1, "system": "ms_vlm", "sizes": SIZES.to_json(), "recipe": RECIPE.to_json(),
        "template": TEMPLATE.__dict__, "decoder": {**DECODER, "vocab_size": len(tokenizer)},
        "reads": "made studies",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def trial(plan: Plan) -> Plan:
    """A plan small enough for a test: it shows that the stages fit together, not that they teach anything."""
    few = Schedule(steps=3, learning_rate=1e-3, warm_up=1, save_every=2, log_every=1)
    return replace(
        plan, studies=3, stem=few, encoder=few, language=few, words=few, encoder_again=few, words_again=few,
        words_studies=2, asked=3, texts=20, outlines=4,
    )  # fmt: skip
