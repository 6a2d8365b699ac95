"""What a heatmap of attention costs: time against writing the answer, memory against eager attention. The CPU, Linux.

A random Qwen2 of half a billion parameters, 512 visual tokens, an answer of 128 words. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from MedVLMReaderLib.attention import attention, heads_of
from MedVLMReaderLib.study import Prompt
from MedVLMReaderLib.weights import filled_decoder
from Testing.benchmarks import children
from Testing.random_decoder import qwen2, random_shards

VISUAL, QUESTION, WORDS = 512, 24, 128


@dataclass
class Bare:
    """A decoder and the embeddings of its prompt."""

    decoder: Any
    inputs: Tensor

    @property
    def tokens(self) -> Tensor:
        return self.inputs[0, :VISUAL]

    def prompt(self, _seen: Any, _messages: Any) -> Prompt:
        return Prompt(self.inputs, tuple(range(VISUAL)))


def made() -> Bare:
    """The decoder in 32 bits, which needs no special instructions of the processor."""
    decoder = filled_decoder(qwen2(896, 24), random_shards(qwen2(896, 24)), "fp32")
    torch.manual_seed(0)
    return Bare(decoder, torch.randn(1, VISUAL + QUESTION, decoder.config.hidden_size) * 0.02)


@torch.no_grad()
def written(one: Bare, **more: Any) -> Any:
    """What transformers' own generate writes."""
    mask = torch.ones(one.inputs.shape[:2], dtype=torch.long)
    return one.decoder.generate(
        inputs_embeds=one.inputs, attention_mask=mask, max_new_tokens=WORDS, min_new_tokens=WORDS, do_sample=False,
        return_dict_in_generate=True, **more,
    )  # fmt: skip


def looked(one: Bare, ids: list[int]) -> Tensor:
    """The attention of every word in the later half of the layers."""
    rows = [(n, n + 1) for n in range(len(ids))]
    return attention(one, one, (), ids, rows, heads_of(one.decoder)).weights  # type: ignore[arg-type]


def child(what: str) -> dict[str, float]:
    """Seconds and the growth of resident memory at its peak, beyond what writing had taken already, of one way."""
    one = made()
    written(one)  # what a first use brings
    children.forget_peak()
    before = children.resident()
    began = time.process_time()
    if what == "eager":
        one.decoder.set_attn_implementation("eager")
        written(one, output_attentions=True)
        return {"seconds": time.process_time() - began, "peak": children.most_resident() - before}
    ids = written(one).sequences[0].tolist()
    seconds, plain = time.process_time() - began, children.most_resident() - before
    if what == "plain":
        return {"seconds": seconds, "peak": plain}
    children.forget_peak()
    before, began = children.resident(), time.process_time()
    looked(one, ids[-WORDS:])
    return {"seconds": seconds, "peak": children.most_resident() - before, "looking": time.process_time() - began}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=["plain", "looked", "eager"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return 0
    plain, found, eager = (children.figures("Testing.benchmarks.heatmaps", one) for one in ("plain", "looked", "eager"))
    heatmap_mb, eager_mb = found["peak"] / 2**20, (eager["peak"] - plain["peak"]) / 2**20
    figures = {
        "heatmap_time_overhead": round(found["looking"] / found["seconds"], 4),
        "heatmap_extra_mb": round(heatmap_mb, 1), "eager_extra_mb": round(eager_mb, 1),
        "heatmap_s": round(found["looking"], 2), "answer_s": round(found["seconds"], 2),
        "eager_answer_s": round(eager["seconds"], 2),
    }  # fmt: skip
    print(json.dumps(figures))
    return int(figures["heatmap_time_overhead"] > 0.08 or heatmap_mb > 200 or eager_mb < 4 * heatmap_mb)


if __name__ == "__main__":
    sys.exit(main())
