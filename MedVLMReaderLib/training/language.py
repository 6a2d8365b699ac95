"""The built-in model's tokenizer and the exchanges that its decoder learns from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from MedVLMReaderLib.phantom_report import REPORT_REQUESTS, Exchange, questions, report
from MedVLMReaderLib.truth import Truth

PAD, END, USER, READER = "<|pad|>", "<|end|>", "<|user|>", "<|reader|>"
NUMBERS = range(1, 100)


@dataclass(frozen=True)
class Turn:
    """One question and its answer, as the decoder learns them."""

    question: str
    answer: str


def turns(truth: Truth, rng: random.Random, count: int) -> list[Turn]:
    """The report and `count` other exchanges of a made study, three in four of them closed."""
    asked = questions(truth, rng)
    closed, free = [q for q in asked if q.closed], [q for q in asked if not q.closed]
    chosen = rng.sample(closed, min(count * 3 // 4, len(closed)))
    chosen += rng.sample(free, min(count - len(chosen), len(free)))
    request = REPORT_REQUESTS[0] if rng.random() < 0.6 else rng.choice(REPORT_REQUESTS)
    return [Turn(request, report(truth)), *(Turn(q.question, worded(q)) for q in chosen)]


def worded(exchange: Exchange) -> str:
    """The answer as it is taught: the words of a choice before its letter, which is looked up once they stand there."""
    if not exchange.closed:
        return exchange.answer
    letter, words = exchange.answer.split(". ", 1)
    return f"{words}, {letter}."


def corpus(truths: Iterable[Truth], seed: int = 0) -> Iterator[str]:
    """Every text that made studies give, and every number a size can be."""
    rng = random.Random(seed)
    for truth in truths:
        yield report(truth)
        for exchange in questions(truth, rng):
            yield exchange.question
            yield worded(exchange)
    for number in NUMBERS:
        yield from [f"of {number} mm"] * 20


def made_tokenizer(texts: Iterable[str], size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: the words of made reports are one token each, any other text is spelled out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, USER, READER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, READER],
        clean_up_tokenization_spaces=False,
    )


def encoded(turn: Turn, tokenizer: Any) -> tuple[list[int], int]:
    """Ids of a question and its answer, and where the answer starts."""
    question = tokenizer.encode(USER + turn.question + READER)
    return question + tokenizer.encode(turn.answer + END), len(question)


def number_ids(tokenizer: Any) -> dict[int, int]:
    """Token id of " n" for every number that is one token -> n."""
    ids = {n: tokenizer.encode(f" {n}") for n in NUMBERS}
    return {found[0]: n for n, found in ids.items() if len(found) == 1}
