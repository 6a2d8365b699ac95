"""What a heatmap of attention costs: time against writing the answer, memory against eager attention. The CPU, Linux.

A random Qwen2 of half a billion parameters in 32 bits, 512 visual tokens, an answer of 128 words. Writing, looking
and eager attention follow one another in one process. Prints one JSON object, and what is going on to stderr.
`python -m Testing.benchmarks.heatmaps`
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from MedVLMReaderLib.attention import attention, heads_of
from MedVLMReaderLib.prefix import Prefix
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.study import Message, Seen
from Testing.benchmarks import children
from Testing.benchmarks.followup import Model, random_image

WORDS, TIME, MEGABYTES, EAGER = 128, 0.08, 200, 4
ASKED = [Message("user", "Describe the findings.")]


def written(reader: Reader, seen: Seen, words: int) -> list[int]:
    """The first `words` tokens of an answer; what was read before is forgotten."""
    reader.prefix = Prefix()
    tokens: Any = reader._tokens(seen, ASKED, Options())
    ids = [next(tokens) for _ in range(words)]
    tokens.close()  # keeps the cache
    return ids


def looked(reader: Reader, seen: Seen, ids: Sequence[int]) -> None:
    """The attention of every word in the later half of the layers."""
    rows = [(n, n + 1) for n in range(len(ids))]
    lent = reader.prefix.lent(seen.key, reader.model.prompt(seen, ASKED))
    assert lent is not None
    attention(reader.model, seen, ASKED, ids, rows, heads_of(reader.model.decoder), lent)


@torch.no_grad()
def eager(reader: Reader, seen: Seen, words: int) -> Any:
    """The same answer by transformers' own generate, which keeps the whole matrices."""
    decoder, inputs = reader.model.decoder, reader.model.prompt(seen, ASKED).inputs
    decoder.set_attn_implementation("eager")
    return decoder.generate(
        inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long), max_new_tokens=words,
        min_new_tokens=words, do_sample=False, return_dict_in_generate=True, output_attentions=True,
    )  # fmt: skip


def measured(what: str, work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What comes back, CPU seconds, and MB at the peak beyond what was there before."""
    print(f"{what} ...", end=" ", file=sys.stderr, flush=True)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed must not hide what is needed
    children.forget_peak()
    before, began = children.resident(), time.process_time()
    found = work()
    seconds, megabytes = time.process_time() - began, (children.most_resident() - before) / 2**20
    print(f"{seconds:.1f} s of CPU, {megabytes:.0f} MB", file=sys.stderr, flush=True)
    return found, seconds, megabytes


def figures(words: int) -> dict[str, float]:
    """Every figure of one run."""
    torch.manual_seed(0)
    reader, _, _ = measured("A random decoder", lambda: Reader(Model()))  # type: ignore[arg-type]
    seen = random_image()
    looked(reader, seen, written(reader, seen, 2))  # what a first use brings
    ids, answer_s, answer_mb = measured(f"Writing {words} words", lambda: written(reader, seen, words))
    _, heatmap_s, heatmap_mb = measured("Looking", lambda: looked(reader, seen, ids))
    reader.prefix = Prefix()
    _, eager_s, eager_mb = measured("Writing with eager attention", lambda: eager(reader, seen, words))
    return {
        "heatmap_time_overhead": round(heatmap_s / answer_s, 4), "heatmap_extra_mb": round(heatmap_mb, 1),
        "eager_extra_mb": round(eager_mb - answer_mb, 1), "heatmap_s": round(heatmap_s, 2),
        "heatmap_answer_s": round(answer_s, 2), "heatmap_answer_mb": round(answer_mb, 1),
        "eager_answer_s": round(eager_s, 2),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=WORDS)
    found = figures(parser.parse_args().words)
    print(json.dumps(found))
    extra = found["heatmap_extra_mb"]
    kept = found["heatmap_time_overhead"] <= TIME and extra <= MEGABYTES and found["eager_extra_mb"] >= EAGER * extra
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
