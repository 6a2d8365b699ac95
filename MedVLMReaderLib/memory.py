"""Memory that a model needs, from its sizes alone, before anything of it is loaded. No torch here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib import ReaderError

Precision = Literal["fp32", "bf16", "int8", "nf4"]
"""In how many bits the decoder's weights are kept, best first."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "nf4")

CONTEXT = 2048
"""Tokens of prompt and answer together that a study with its chat is taken to need."""
SMALL = 10**9
"""Up to so many parameters the decoder is kept in 32 bits on a CPU: it costs little, and nothing is lost."""
WORKSPACE = 32 << 20
"""What matrix products and quantising keep for themselves on a CPU, about; measured."""
BLOCK = 64
"""Weights that share a scale in NF4."""


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a causal language model that its memory follows from."""

    width: int
    inner: int
    """Width of the feed-forward layers."""
    layers: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    gated: bool = True
    """Three matrices in the feed-forward layers, as in Llama, and not two, as in OPT."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DecoderShape:
        """From a configuration as transformers writes it. ReaderError where a size is missing or none."""
        try:
            width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            shape = cls(
                width,
                int(config["ffn_dim"] if "ffn_dim" in config else config["intermediate_size"]),
                int(config["num_hidden_layers"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or width // heads),
                int(config["vocab_size"]),
                bool(config.get("tie_word_embeddings", False)),
                "ffn_dim" not in config,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ReaderError(
                f"The decoder's sizes in config.json are missing or no numbers ({error!r}). Get the model again."
            ) from None
        return shape

    @property
    def linear(self) -> int:
        """Weights of the layers that are quantised."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_heads)
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.inner)

    @property
    def kept(self) -> int:
        """Weights that are never quantised: embeddings, what chooses words, norms and biases."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.layers * 4 * self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear + self.kept


@dataclass(frozen=True)
class Needed:
    """Bytes that a model needs while it reads."""

    weights: int
    cache: int
    """What the decoder keeps of the prompt and the answer."""
    activations: int
    """What passes through while the prompt, or the study, goes in."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def needed(
    decoder: DecoderShape,
    precision: Precision,
    encoder: int = 0,
    *,
    context: int = CONTEXT,
    prompt: int | None = None,
    device: str = "cpu",
    seeing: int = 0,
) -> Needed:
    """What a model needs whose encoder and projector have so many parameters.

    `prompt` tokens of the context go in at once (half of it); `seeing` is what the encoder's activations take.
    """
    cuda = device.startswith("cuda")
    tokens = context // 2 if prompt is None else prompt
    size = 4 if precision == "fp32" else 2
    weights = weight_bytes(decoder, precision) + encoder * (2 if cuda else 4)
    cache = 2 * decoder.layers * decoder.key_heads * decoder.head_width * context * size
    return Needed(weights, cache, max(seeing, activation_bytes(decoder, precision, tokens, device=device)))


def weight_bytes(decoder: DecoderShape, precision: Precision) -> int:
    """Of the decoder's weights: codes and scales of the quantised layers, the rest in 16 or 32 bits."""
    if precision == "fp32":
        return 4 * decoder.parameters
    if precision == "bf16":
        return 2 * decoder.parameters
    scales = 4 * decoder.linear // decoder.width if precision == "int8" else 2 * decoder.linear // BLOCK
    codes = decoder.linear if precision == "int8" else decoder.linear // 2
    return codes + scales + 2 * decoder.kept


def activation_bytes(decoder: DecoderShape, precision: Precision, tokens: int, *, device: str = "cpu") -> int:
    """Of a prompt of so many tokens on its way through a layer, or out of the last."""
    size = 4 if precision == "fp32" else 2
    attention = decoder.head_width * (2 * decoder.heads + 2 * decoder.key_heads)
    passing = tokens * (2 * decoder.width + attention + 3 * decoder.inner) * size
    if precision == "int8":  # 8-bit inputs and 32-bit sums beside them
        passing += tokens * (decoder.inner * 6)
    if device.startswith("cuda"):
        return passing
    # to score the next word in 16 bits, a CPU puts the vocabulary's matrix into another order first; what the layers
    # freed before that stays with the program
    return passing + WORKSPACE + (0 if precision == "fp32" else decoder.vocabulary * decoder.width * size)


def free_memory(device: str = "cpu") -> int:
    """Bytes that a program could take now, of the machine's memory or of a CUDA device's."""
    if device.startswith("cuda"):
        return _free_on_gpu(int(device.partition(":")[2] or 0))
    return min(_available(), _limit())


def _free_on_gpu(number: int) -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(number)[0])
    found = gpu_memory()
    return found[number] if number < len(found) else 0


def gpu_memory() -> list[int]:
    """Free bytes of each CUDA device, as its driver's tool says; none where there is no such tool."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    asked = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
        return [int(line) << 20 for line in said.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _available() -> int:
    """What the system says is free, or can be freed at once."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    if sys.platform == "win32":
        return _windows_available()
    pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES")
    share = 1.0 if "SC_AVPHYS_PAGES" in os.sysconf_names else 0.7  # macOS tells only how much there is
    return int(pages * os.sysconf("SC_PAGE_SIZE") * share)


def _windows_available() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "total_page", "page", "total_virtual", "virtual", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.available)


def _limit() -> int:
    """What a container's limit leaves."""
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return sys.maxsize


def gigabytes(size: int) -> str:
    """As it is written for people."""
    return f"{size / 1e9:.1f} GB"
