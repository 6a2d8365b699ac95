"""Tokens a second, time to the first word and peak memory of random decoders of 4 B and 7 B parameters on a GPU.

Needs no files: weights are drawn layer by layer while loading. Where there is no CUDA device it says so and exits with
1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "4 B (Phi-3 mini)": {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
    },
    "7 B (Qwen2.5)": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151666,
    },
}  # fmt: skip
PROMPT, ANSWER = 512, 64


def measured(config: dict[str, Any], precision: Any, device: str) -> dict[str, float]:
    """Load, read a prompt, write an answer; what each took."""
    from MedVLMReaderLib.memory import DecoderShape, needed
    from MedVLMReaderLib.weights import filled_decoder
    from Testing.random_decoder import random_shards

    config = {**config, "max_position_embeddings": 4096, "tie_word_embeddings": False}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, began = torch.cuda.memory_allocated(device), time.monotonic()
    model = filled_decoder(config, random_shards(config), precision, device)
    loading = time.monotonic() - began
    ids = torch.arange(PROMPT, device=device)[None]
    _write(model, ids, 2)  # what a first use brings
    first = _write(model, ids, 1)
    whole = _write(model, ids, ANSWER)
    peak = torch.cuda.max_memory_allocated(device) - before
    shape = DecoderShape.from_config(config)
    estimate = needed(shape, precision, context=PROMPT + ANSWER, prompt=PROMPT, device=device).total
    return {
        "load_s": loading, "first_word_s": first, "tokens_per_s": (ANSWER - 1) / (whole - first), "peak_bytes": peak,
        "estimate_bytes": estimate,
    }  # fmt: skip


@torch.no_grad()
def _write(model: Any, ids: torch.Tensor, count: int) -> float:
    torch.cuda.synchronize()
    began = time.monotonic()
    out = model(ids, use_cache=True, logits_to_keep=1)
    for _ in range(count - 1):
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    torch.cuda.synchronize()
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device here, or a torch without CUDA: nothing was measured.", file=sys.stderr)
        return 1
    rows = []
    for size, config in SIZES.items():
        for precision in ("bf16", "int8", "nf4"):
            try:
                one = measured(config, precision, options.device)
            except torch.OutOfMemoryError:
                print(f"{size:<18}{precision:<5} does not fit", file=sys.stderr)
                continue
            rows.append({"size": size, "precision": precision, **one})
            if not options.json:
                print(f"{size:<18}{precision:<5}{one['tokens_per_s']:8.1f} tokens/s, first word after "
                      f"{one['first_word_s']:.3f} s, peak {one['peak_bytes'] / 1e9:.1f} GB (estimate "
                      f"{one['estimate_bytes'] / 1e9:.1f}), loaded in {one['load_s']:.0f} s", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "gpu": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
