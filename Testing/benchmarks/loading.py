"""Loading a sharded random decoder: memory at the peak against what stays, and a saved 4-bit copy against quantising.

Prints a line a case; `nf4_load_speedup` is CPU time of quantising at load over that of loading the saved copy.
Exits with 1 where a target is missed. Linux: anonymous memory is read while another thread watches it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from MedVLMReaderLib.memory import gigabytes
from Testing.benchmarks import children

PEAK = {"fp32": 1.2, "bf16": 1.2, "int8": 1.5, "nf4": 1.5}
SPEEDUP = 3.0
EVERY = 0.01
"""Seconds between two looks at the memory."""


class Watched:
    """The most anonymous memory there was while it is entered."""

    def __enter__(self) -> Watched:
        self.most, self.over = children.anonymous(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(EVERY):
            self.most = max(self.most, children.anonymous())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def child(folder: Path, precision: Any, copy: str) -> dict[str, float]:
    """Load once; with a name for it, write the quantised copy afterwards."""
    from MedVLMReaderLib.copies import save_quantised
    from MedVLMReaderLib.quantise import bitsandbytes
    from MedVLMReaderLib.weights import Checkpoint, Shards, filled_decoder, written_config
    from Testing.random_decoder import TINY, random_shards

    if precision in ("int8", "nf4"):
        bitsandbytes()
    filled_decoder(TINY, random_shards(TINY), precision)  # what a first use brings
    before, began = children.anonymous(), time.process_time()
    with Watched() as watched:
        model = filled_decoder(written_config(folder), Shards.open(folder), precision)
    seconds, stays = time.process_time() - began, children.anonymous() - before
    if copy != "-":
        save_quantised(model, Checkpoint(folder, "random", "0", precision), Path(copy))
    return {"seconds": seconds, "stays": stays, "peak": watched.most - before}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), *options.child[1:])))
        return 0
    from Testing.random_decoder import qwen2, write_decoder

    wrong, found = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, copy = Path(scratch) / "random", Path(scratch) / "copy"
        write_decoder(folder, qwen2(896, 24))
        for precision, allowed in PEAK.items():
            saved = str(copy) if precision == "nf4" else "-"
            one = children.figures("Testing.benchmarks.loading", folder, precision, saved)
            found[precision] = one
            ratio = one["peak"] / one["stays"]
            wrong += ratio > allowed
            print(f"0.5 B  {precision:<5} {one['seconds']:6.2f} s CPU, stays {gigabytes(one['stays'])}, at the peak "
                  f"{ratio:.2f} times that (<= {allowed:g})", file=sys.stderr, flush=True)  # fmt: skip
        found["nf4 copy"] = children.figures("Testing.benchmarks.loading", copy, "nf4", "-")
    found["nf4_load_speedup"] = found["nf4"]["seconds"] / found["nf4 copy"]["seconds"]
    wrong += found["nf4_load_speedup"] < SPEEDUP
    if options.json:
        print(json.dumps(found))
    else:
        print(f"nf4_load_speedup {found['nf4_load_speedup']:.1f} (>= {SPEEDUP:g}): {found['nf4']['seconds']:.2f} s to "
              f"quantise at load, {found['nf4 copy']['seconds']:.2f} s from the saved copy")  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
