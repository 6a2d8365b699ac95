"""Decoder layers in 8 and 4 bits, by bitsandbytes, on a CPU and on CUDA.

The layers keep their numbers in one plain order that is the same on every machine: codes row by row, and a scale a row
(int8) or a block of 64 (NF4). bitsandbytes wants 4-bit codes in another order on some CPUs; they are put into it at the
first use and back whenever they are saved, both exactly.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError

BLOCK = 64
"""Neighbouring weights that share a scale in NF4."""
ROWS = 32
"""bitsandbytes orders 4-bit codes on a CPU in groups of so many rows."""
PIECE = 1 << 20
"""Weights that are quantised at a time: bounds memory, changes nothing."""
OUTLIER = 6.0
"""Activations beyond this are multiplied in 16 bits beside the 8-bit product (LLM.int8(), arXiv 2208.07339)."""


@cache
def bitsandbytes() -> Any:
    """The package; ReaderError where it is not installed.

    Where it finds `kernels`, it downloads code with it and runs that: it is kept from finding it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ReaderError(
            "8 and 4 bits need the package bitsandbytes, which is not installed. "
            "Run: pip install 'medvlmreader[quantised]'"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    before, absent = sys.modules.get("kernels"), "kernels" not in sys.modules
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if not absent:
            sys.modules["kernels"] = cast(Any, before)
    return found


class Int8Linear(nn.Module):
    """A linear layer with a byte a weight and a scale a row."""

    suffixes = ("int8", "scale")
    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def quantised(cls, weight: Tensor, bias: Tensor | None, device: str) -> Int8Linear:
        """From weights (rows, columns) in 16 or 32 bits."""
        pieces = [_int8(part.to(device)) for part in weight.split(max(1, PIECE // weight.shape[1]))]
        return cls(torch.cat([codes for codes, _ in pieces]), torch.cat([scale for _, scale in pieces]), bias)

    def forward(self, x: Tensor) -> Tensor:
        state = bitsandbytes().MatmulLtState()
        state.CB, state.SCB, state.has_fp16_weights, state.threshold = self.codes, self.scale, False, OUTLIER
        return bitsandbytes().matmul(x, self.codes, state=state, bias=self.bias)

    def plain(self) -> dict[str, Tensor]:
        """Its weights as they are saved, by suffix."""
        return {"int8": self.codes, "scale": self.scale}


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and float32 scales: 127 stands for the largest of a row."""
    scale = weight.abs().amax(1).float()
    return (weight.float() * (127 / scale.clamp(min=1e-30))[:, None]).round().to(torch.int8), scale


class Nf4Linear(nn.Module):
    """A linear layer with half a byte a weight (NF4, arXiv 2305.14314) and a scale for 64."""

    suffixes = ("nf4", "absmax")
    codes: Tensor
    absmax: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape[0], 2 * codes.shape[1]
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", bias)
        self.packed = False
        """Whether the codes stand in the order that bitsandbytes wants on this CPU."""

    @classmethod
    def quantised(cls, weight: Tensor, bias: Tensor | None, device: str) -> Nf4Linear:
        """From weights (rows, columns) in 16 or 32 bits."""
        pieces = [_nf4(part.to(device)) for part in weight.split(max(1, PIECE // weight.shape[1]))]
        return cls(torch.cat([codes for codes, _ in pieces]), torch.cat([absmax for _, absmax in pieces]), bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not self.packed and packs():
            self._pack()
        if not self.packed:  # differentiable by itself
            return bitsandbytes().matmul_4bit(x, self.codes, self._state(self.absmax), bias=self.bias)
        if torch.is_grad_enabled() and x.requires_grad:
            return _ThroughPacked.apply(x, self)  # type: ignore[no-untyped-call]
        return self.packed_product(x)

    def packed_product(self, x: Tensor) -> Tensor:
        """The product by the packed codes. bitsandbytes' own has no gradient: it would be lost without a word."""
        state = self._state(self.absmax)
        state.packing_format_for_cpu = True
        return bitsandbytes().matmul_4bit(x, self.codes, state, bias=self.bias)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(rows, columns) the weights that the codes stand for."""
        plain = self.plain()
        state = self._state(plain["absmax"])
        return bitsandbytes().functional.dequantize_4bit(plain["nf4"].view(-1, 1), state).to(dtype)

    def plain(self) -> dict[str, Tensor]:
        """Its weights as they are saved, by suffix, in the order that no machine changes."""
        codes, absmax = self.codes, self.absmax
        if self.packed:
            codes, absmax = torch.cat([*self._unpacked()]), absmax.T.contiguous()
        else:
            codes = codes.clone()  # the first use reorders them in place
        return {"nf4": codes, "absmax": absmax.to(torch.bfloat16)}

    def _state(self, absmax: Any) -> Any:
        shape = torch.Size((self.out_features, self.in_features))
        absmax = absmax if self.packed and absmax is self.absmax else absmax.float().view(-1)
        values = _nf4_values(str(absmax.device))
        return bitsandbytes().functional.QuantState(absmax, shape, values, BLOCK, "nf4", torch.bfloat16)

    def _pack(self) -> None:
        pack = bitsandbytes().functional._convert_weight_packed_for_cpu
        for start in self._groups():  # in place, group by group
            part = self.codes[start : start + self._group]
            state = self._state_of_rows(len(part))
            self.codes[start : start + self._group] = pack(part.reshape(-1, 1), state)[0]
        self.absmax = self.absmax.to(torch.bfloat16).T.contiguous()
        self.packed = True

    def _unpacked(self) -> Iterator[Tensor]:
        unpack = bitsandbytes().functional._convert_weight_packed_for_cpu_inverse
        for start in self._groups():
            part = self.codes[start : start + self._group]
            state = self._state_of_rows(len(part))
            state.packing_format_for_cpu, state.original_nested = True, False
            state.original_dtype, state.original_qshape = torch.bfloat16, part.shape
            yield unpack(part, state)[0]

    @property
    def _group(self) -> int:
        return max(ROWS, PIECE // self.in_features // ROWS * ROWS)

    def _groups(self) -> range:
        return range(0, self.out_features, self._group)

    def _state_of_rows(self, rows: int) -> Any:
        absmax, shape = torch.ones(rows * self.in_features // BLOCK), torch.Size((rows, self.in_features))
        return bitsandbytes().functional.QuantState(absmax, shape, _nf4_values("cpu"), BLOCK, "nf4", torch.bfloat16)


class _ThroughPacked(torch.autograd.Function):
    """The product by packed codes with the gradient of the product by the weights that they stand for."""

    @staticmethod
    def forward(context: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        context.layer = layer
        return layer.packed_product(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ context.layer.dequantised(gradient.dtype), None


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes (rows, columns / 2) and bfloat16 scales (rows, columns / 64)."""
    codes, state = bitsandbytes().functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
    )
    rows, columns = weight.shape
    return codes.view(rows, columns // 2), state.absmax.view(rows, columns // BLOCK).to(torch.bfloat16)


@cache
def _nf4_values(device: str) -> Tensor:
    return cast(Tensor, bitsandbytes().functional.get_4bit_type("nf4", device=device))


@cache
def packs() -> bool:
    """Whether bitsandbytes has a product of its own for 4-bit codes on this CPU."""
    functional = bitsandbytes().functional
    return bool(functional.has_avx512bf16()) and hasattr(functional, "_convert_weight_packed_for_cpu")


KINDS: dict[str, type[Int8Linear] | type[Nf4Linear]] = {"int8": Int8Linear, "nf4": Nf4Linear}


def divisible(layer: nn.Linear) -> bool:
    """Whether a layer's sizes fit blocks and groups; one that does not stays in 16 bits."""
    return layer.in_features % BLOCK == 0 and layer.out_features % ROWS == 0


def linears(network: nn.Module, kept: nn.Module | None) -> dict[str, nn.Linear]:
    """The layers that are quantised, by name: all linear ones but `kept`, the one that chooses words."""
    found = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    return {name: part for name, part in found.items() if part is not kept and divisible(part)}


def stored_precision(names: Mapping[str, Any]) -> str | None:
    """Of a copy that was saved quantised: int8 or nf4; None for other weights."""
    return next((kind for kind in KINDS if any(name.endswith(f".weight.{kind}") for name in names)), None)


def quantised_layers(network: nn.Module) -> dict[str, Int8Linear | Nf4Linear]:
    """The layers in 8 or 4 bits, by name."""
    return {name: part for name, part in network.named_modules() if isinstance(part, (Int8Linear, Nf4Linear))}


def whole_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes as if nothing were quantised: for a strict check against the network."""
    out = {}
    for name, shape in shapes.items():
        base, _, suffix = name.rpartition(".")
        scales = {kind.suffixes[1]: of for of, kind in KINDS.items()}
        if not base.endswith(".weight") or suffix not in KINDS.keys() | scales.keys():
            out[name] = shape
        elif suffix in KINDS:
            out[base] = shape if suffix == "int8" or not shape else (*shape[:-1], 2 * shape[-1])
        elif f"{base}.{scales[suffix]}" not in shapes:
            out[name] = shape  # scales of nothing
    return out


def check_parts(kind: str, codes: Tensor, scales: Tensor, layer: nn.Linear, name: str) -> None:
    """ReaderError where stored codes and scales are not those of a layer: bitsandbytes would read beyond them."""
    rows, columns = layer.out_features, layer.in_features
    wanted = {
        "int8": ((torch.int8, (rows, columns)), (torch.float32, (rows,))),
        "nf4": ((torch.uint8, (rows, columns // 2)), (torch.bfloat16, (rows, columns // BLOCK))),
    }[kind]
    for tensor, (dtype, shape) in zip((codes, scales), wanted, strict=True):
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise ReaderError(
                f"The codes or scales of '{name}' are {tensor.dtype} {tuple(tensor.shape)}, the model needs {dtype} "
                f"{shape}. Make the copy again."
            )
