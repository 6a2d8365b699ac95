"""Checkpoints of random decoders, sharded as published ones are, for tests and benchmarks; written tensor by tensor."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from MedVLMReaderLib.weights import Shards, new_decoder

TINY: dict[str, Any] = {
    "model_type": "qwen2", "vocab_size": 160, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def qwen2(width: int, layers: int, *, vocabulary: int = 151666, heads: int = 14, tied: bool = True) -> dict[str, Any]:
    """A Qwen2 configuration with the usual proportions."""
    return {
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": width * 38 // 7 // 64 * 64, "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 7), "max_position_embeddings": 32768, "tie_word_embeddings": tied,
    }  # fmt: skip


def write_decoder(
    folder: Path, config: dict[str, Any], *, shard: int = 200 << 20, dtype: torch.dtype = torch.bfloat16
) -> int:
    """config.json, shards of about so many bytes and their index; the count of parameters.

    Never more than a shard in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names: dict[str, str] = {}
    count = 0
    for number, part in enumerate(_parts(config, shard, dtype), start=1):
        file = f"model-{number:05}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        names |= dict.fromkeys(part, file)
        count += sum(tensor.numel() for tensor in part.values())
    index = {"metadata": {"total_size": count * dtype.itemsize}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


@dataclass(frozen=True)
class Made:
    """A random tensor that is made when it is read, as if it were in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        return _random(self.name, torch.Size(self.shape), generator).to(dtype)


def random_shards(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Shards:
    """The tensors of a decoder without any file; the same each time."""
    return Shards({n: Made(n, tuple(shape), dtype) for n, shape in _shapes(config).items()})  # type: ignore[misc]


def _shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in new_decoder(config).state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    return shapes


def _parts(config: dict[str, Any], shard: int, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    part: dict[str, Tensor] = {}
    for name, shape in _shapes(config).items():
        part[name] = _random(name, shape, generator).to(dtype)
        if sum(tensor.nbytes for tensor in part.values()) >= shard:
            yield part
            part = {}
    if part:
        yield part


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
