"""The memory estimate against the peak of loading a random decoder and having it read: three sizes, three precisions.

Prints a line a case, and exits with 1 where one is off by more than 15 %. The machine's CPU, Linux.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from MedVLMReaderLib.memory import DecoderShape, gigabytes, needed
from Testing.benchmarks import children

SIZES = {"0.1 B": (512, 10, 8), "0.3 B": (768, 18, 12), "0.6 B": (1024, 24, 16)}
"""Width, layers and heads of a Qwen2 with its whole vocabulary."""
PRECISIONS = ("fp32", "bf16", "nf4")
PROMPT, ANSWER = 1024, 8
ALLOWED = 0.15


def child(folder: Path, precision: Any) -> dict[str, int]:
    """Load, read a prompt, write a few words; the growth of resident memory at its peak."""
    import torch

    from MedVLMReaderLib.quantise import bitsandbytes
    from MedVLMReaderLib.weights import Shards, filled_decoder, written_config
    from Testing.random_decoder import TINY, random_shards

    if precision in ("int8", "nf4"):
        bitsandbytes()
    tiny = filled_decoder(TINY, random_shards(TINY), precision)
    with torch.no_grad():
        tiny(torch.arange(8)[None], use_cache=True)  # what a first use brings
    del tiny
    children.forget_peak()
    before = children.resident()
    model = filled_decoder(written_config(folder), Shards.open(folder), precision)
    ids = torch.arange(PROMPT)[None] % 1000
    with torch.no_grad():
        out = model(ids, use_cache=True, logits_to_keep=1)
        for _ in range(ANSWER):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return {"peak": children.most_resident() - before}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), options.child[1])))
        return 0
    rows = []
    for size, (width, layers, heads) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            from Testing.random_decoder import qwen2, write_decoder

            config = qwen2(width, layers, heads=heads)
            write_decoder(Path(folder), config)
            for precision in PRECISIONS:
                estimate = needed(
                    DecoderShape.from_config(config), precision, context=PROMPT + ANSWER, prompt=PROMPT
                ).total
                peak = children.figures("Testing.benchmarks.memory", folder, precision)["peak"]
                rows.append({"size": size, "precision": precision, "estimate": estimate, "peak": peak,
                             "off": estimate / peak - 1})  # fmt: skip
                if not options.json:
                    print(f"{size}  {precision:<5} estimate {gigabytes(estimate):>7}  peak {gigabytes(peak):>7}  "
                          f"{rows[-1]['off']:+.1%}", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"memory_estimate": rows}))
    return int(any(abs(row["off"]) > ALLOWED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
