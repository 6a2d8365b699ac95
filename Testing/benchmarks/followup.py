"""What a follow-up question costs against the first, and how soon a stop is heeded: one JSON object.

A random Qwen2 decoder of 0.5 B behind 512 visual tokens; the encoder is on neither side. `prefill_stop_s`: the longest
longest wait of a stop that was asked for while the prompt was being read. Exits with 1 where a target is missed.
`python -m Testing.benchmarks.followup`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.prefix import Prefix
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.study import Message, Prompt, Seen
from MedVLMReaderLib.training.language import made_tokenizer
from MedVLMReaderLib.weights import filled_decoder
from Testing.random_decoder import qwen2, random_shards

VISUAL, WORDS, TURNS = 512, 12, 3
RATIO, STOP = 1 / 8, 0.5


class Model:
    """A decoder behind an image that needs no encoder; every letter of a question is a token, as is an answer."""

    name, revision = "random", "0"

    def __init__(self) -> None:
        config = qwen2(896, 24)
        self.decoder = filled_decoder(config, random_shards(config), "fp32", "cpu")
        self.tokenizer = made_tokenizer(["x"], 320)

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        ids = [ord(letter) for message in messages for letter in message.text]
        told = self.decoder.get_input_embeddings()(torch.tensor(ids))
        return Prompt(torch.cat([seen.tokens, told])[None], tuple(range(VISUAL)))


def random_image() -> Seen:
    """A study after an encoder that there is none of."""
    return Seen((), torch.randn(VISUAL, 896) * 0.03, TokenMap((Grid((1, 16, 32), np.eye(4)),)), {}, "key")


def first_word(reader: Reader, seen: Seen, messages: Sequence[Message]) -> float:
    """Seconds to the first token."""
    began = time.perf_counter()
    tokens: Any = reader._tokens(seen, messages, Options())
    next(tokens)
    took = time.perf_counter() - began
    tokens.close()
    return took


def stopping(reader: Reader, seen: Seen, messages: Sequence[Message], after: float) -> float:
    """Seconds from a stop, `after` so many seconds of reading the prompt, to the end."""
    reader.prefix, began = Prefix(), time.perf_counter()
    list(reader._tokens(seen, messages, Options(), lambda: time.perf_counter() - began >= after))
    return time.perf_counter() - began - after


def main() -> int:
    torch.manual_seed(0)
    reader = Reader(Model())  # type: ignore[arg-type]
    seen = random_image()
    one, two = Message("user", "a" * WORDS), Message("user", "b" * WORDS)
    first_word(reader, seen, [one])  # warms up
    firsts, laters = [], []
    for _ in range(TURNS):
        reader.prefix = Prefix()
        firsts.append(first_word(reader, seen, [one]))
        laters.append(first_word(reader, seen, [one, Message("assistant", "ok"), two]))
    stops = [stopping(reader, seen, [one], share * min(firsts)) for share in (0.2, 0.5, 0.8)]
    found = {
        "first_s": round(min(firsts), 3), "followup_s": round(min(laters), 3), "threads": torch.get_num_threads(),
        "followup_first_word_ratio": round(min(laters) / min(firsts), 4), "prefill_stop_s": round(max(stops), 4),
    }  # fmt: skip
    print(json.dumps(found))
    return int(found["followup_first_word_ratio"] > RATIO or found["prefill_stop_s"] > STOP)


if __name__ == "__main__":
    sys.exit(main())
