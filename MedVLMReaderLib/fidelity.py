"""How far a decoder in fewer bits is from the full one: the same words given, what each would write next."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from MedVLMReaderLib.memory import Precision
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.study import Message, Model, Seen
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.weights import Checkpoint

QUESTIONS = (
    "Is there a nodule in the right lung?",
    "How large is the liver lesion?",
    "Describe the kidneys.",
    "Was contrast given? Choices: A. with contrast B. without contrast",
)
"""Asked beside the report; the full model's own answers are what the others are compared on."""
LONGEST = 48
"""Tokens of an answer that are compared."""


@dataclass(frozen=True)
class Fidelity:
    """A precision against the full one."""

    precision: Precision
    top_1: float
    """Share of places at which both would write the same word next."""
    divergence: float
    """Kullback-Leibler divergence from the full one's chances, mean over the places, in nats."""
    report: float
    """Share of the words of the report that both write, in order."""
    places: int


def agreement(full: Tensor, other: Tensor) -> tuple[float, float]:
    """Top-1 agreement and divergence of (places, vocabulary) scores from the full one's."""
    expected, found = full.float().log_softmax(-1), other.float().log_softmax(-1)
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return float(same), float((expected.exp() * (expected - found)).sum(-1).mean())


def words_in_common(full: str, other: str) -> float:
    """Share of the words of two texts that stand in both in the same order."""
    first, second = full.split(), other.split()
    if not first and not second:
        return 1.0
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def fidelities(
    build: Callable[[Checkpoint], Model], checkpoint: Checkpoint, volume: Volume, precisions: Sequence[Precision]
) -> Iterator[Fidelity]:
    """Each precision against the first of them, one after the other in memory, on one study."""
    full: list[Tensor] = []
    asked: list[tuple[str, list[int]]] = []
    report = ""
    for n, precision in enumerate(precisions):
        model = build(replace(checkpoint, precision=precision))
        reader = Reader(model)
        seen = reader.see(volume)
        found = reader.report(seen, Options(longest=LONGEST, heatmaps=False)).text
        if n == 0:
            report, asked = found, [_asked(reader, seen, q) for q in (model.report_request(), *QUESTIONS)]
        scores = [next_words(model, seen, question, ids) for question, ids in asked if ids]
        if n == 0:
            full = scores
        top_1, divergence = agreement(torch.cat(full), torch.cat(scores))
        yield Fidelity(precision, top_1, divergence, words_in_common(report, found), sum(len(one) for one in scores))
        del model, reader, seen, scores
        gc.collect()


def _asked(reader: Reader, seen: Seen, question: str) -> tuple[str, list[int]]:
    """A question, and the tokens of the reader's answer."""
    *_, reading = reader.ask(seen, question, options=Options(longest=LONGEST, heatmaps=False))
    text: Any = getattr(reading, "text", "")
    return question, list(reader.model.tokenizer.encode(text, add_special_tokens=False))


@torch.no_grad()
def next_words(model: Model, seen: Seen, question: str, ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) scores of what comes at each place of an answer, on the CPU."""
    prompt = model.prompt(seen, [Message("user", question)])
    told = model.decoder.get_input_embeddings()(torch.tensor(ids, device=prompt.inputs.device))[None]
    inputs = torch.cat([prompt.inputs, told], 1)
    scores = model.decoder(inputs_embeds=inputs, use_cache=False).logits[0]
    return scores[prompt.inputs.shape[1] - 1 : -1].float().cpu()
