"""On which device a model computes and in which precision its decoder is kept: what is asked for, or the best that
fits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, Literal

import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.memory import CONTEXT, PRECISIONS, SMALL, DecoderShape, Precision, free_memory, gigabytes, needed
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.quantise import stored_precision
from MedVLMReaderLib.study import Model
from MedVLMReaderLib.weights import Checkpoint, Shards, system_of, written_config

ROUGHLY = {"fp32": 4.0, "bf16": 2.0, "int8": 1.3, "nf4": 0.9}
"""Bytes a parameter where nothing but their number is known: embeddings stay in 16 bits."""


def chosen_device(wanted: str | None) -> str:
    """cuda, mps or cpu. ReaderError where the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is None:
        return next(name for name, is_there in there.items() if is_there)
    kind, _, number = wanted.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in there or (number and not (number.isdigit() and kind == "cuda")):
        raise ReaderError(f"No device '{wanted}'. Known: cuda, cuda:1, mps, cpu.")
    if not there[kind] or int(number or 0) >= count:
        here = ", ".join(name for name, is_there in there.items() if is_there)
        raise ReaderError(f"This machine, or the installed torch, has no device '{wanted}'. It has: {here}.")
    return wanted


def possible(device: str) -> tuple[Precision, ...]:
    """Precisions that a device computes in, best first. ReaderError is left to who asks for another."""
    kind = device.partition(":")[0]
    quantised = kind != "mps" and importlib.util.find_spec("bitsandbytes") is not None
    best: tuple[Precision, ...] = ("bf16",) if kind == "cuda" else ("fp32", "bf16")
    return (*best, "int8", "nf4") if quantised else best


def check_possible(precision: str, device: str) -> None:
    """ReaderError where this machine cannot do it, with what it can."""
    can = possible(device) if not device.startswith("cuda") else ("fp32", *possible(device))
    if precision in can:
        return
    why = "is not known"
    if precision == "fp16":
        why = "is not offered: on a CPU it is very slow, and elsewhere bf16 is as small and safer"
    elif precision in PRECISIONS:
        why = (
            "needs a CPU or CUDA"
            if device.startswith("mps")
            else "needs bitsandbytes: pip install 'medvlmreader[quantised]'"
        )
    raise ReaderError(f"Precision {precision} {why}. This machine can do: {', '.join(can)}.")


def loaded(
    build: Callable[[Checkpoint], Model], checkpoint: Checkpoint, wanted: Precision | Literal["auto"]
) -> tuple[Model, Checkpoint]:
    """The model, and how it was loaded in the end.

    Where memory runs out on the way, the next smaller precision is tried, and a note says so.
    """
    shards = Shards.open(checkpoint.folder)
    checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *shards.notes))
    order = _order(checkpoint, wanted, shards)
    for n, precision in enumerate(order):
        trying = replace(checkpoint, precision=precision)
        try:
            return build(trying), trying
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            _free(checkpoint.device)
            if n + 1 == len(order):
                raise ReaderError(
                    f"The memory of '{checkpoint.device}' ran out while '{checkpoint.name}' was loaded in {precision}, "
                    "the smallest that is left. Close other programs, or use another device: --device cpu."
                ) from None
            note = f"The memory of '{checkpoint.device}' ran out in {precision}; the decoder is kept in {order[n + 1]}."
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, note))
    raise AssertionError("no precision")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def precisions_of(checkpoint: Checkpoint, wanted: str = "auto") -> tuple[Precision, ...]:
    """Precisions in which a model fits this machine, fullest first; down to `wanted`, where that is named."""
    fitting = _order(checkpoint, "auto", Shards.open(checkpoint.folder), full=True)
    if wanted == "auto":
        return fitting
    check_possible(wanted, checkpoint.device)
    return tuple(dict.fromkeys((fitting[0], *(one for one in fitting if one == wanted))))


def needs_of(checkpoint: Checkpoint) -> tuple[dict[Precision, int], Precision | Literal[""]]:
    """Bytes that a model needs in each precision that its device computes in, and the one `auto` takes; "" for none."""
    shards = Shards.open(checkpoint.folder)
    stored = stored_precision(shards.shapes)
    can = tuple(one for one in possible(checkpoint.device) if stored in (None, "", one))
    try:
        chosen: Precision | Literal[""] = _order(checkpoint, "auto", shards)[0]
    except ReaderError:
        chosen = ""
    return _bytes(checkpoint, can, shards.shapes), chosen


def _free(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _order(
    checkpoint: Checkpoint, wanted: Precision | Literal["auto"], shards: Shards, *, full: bool = False
) -> tuple[Precision, ...]:
    """What is tried, in order; `full`: 32 bits, too, where they are rarely worth it. ReaderError where nothing fits."""
    stored = stored_precision(shards.shapes)
    if stored:
        if wanted not in ("auto", stored):
            raise ReaderError(
                f"'{checkpoint.name}' is a copy in {stored}. Choose {stored} or auto, or load the model it was made of."
            )
        wanted = next(one for one in PRECISIONS if one == stored)
    if wanted != "auto":
        check_possible(wanted, checkpoint.device)
        return (wanted,)
    can = possible(checkpoint.device)
    sizes = _bytes(checkpoint, can, shards.shapes)
    if can[0] == "fp32" and not full and sum(prod(shape) for shape in shards.shapes.values()) > SMALL:
        can = can[1:]
    free = free_memory(checkpoint.device)
    fitting = tuple(one for one in can if sizes[one] <= free)
    if not fitting:
        listed = ", ".join(f"{gigabytes(sizes[one])} in {one}" for one in can)
        raise ReaderError(
            f"'{checkpoint.name}' needs {listed}, and the memory of '{checkpoint.device}' has {gigabytes(free)} free. "
            "Close other programs, choose a smaller model ('medvlmreader models'), or use another machine."
        )
    return fitting


def _bytes(
    checkpoint: Checkpoint, precisions: tuple[Precision, ...], shapes: Mapping[str, tuple[int, ...]]
) -> dict[Precision, int]:
    """What the model needs in each precision, by its shapes."""
    total, card = sum(prod(shape) for shape in shapes.values()), CARDS.get(checkpoint.name)
    tokens = 0
    try:
        part, tokens = _decoder(checkpoint)
        decoder = DecoderShape.from_config(part)
    except ReaderError:  # some published configurations leave out what is transformers' default
        if card is None or not card.decoder:
            return {one: int(total * ROUGHLY[one]) + (1 << 30) for one in precisions}
        decoder = DecoderShape.from_config(card.decoder)
    encoder = max(0, total - decoder.parameters)
    context, seeing = (card.context, card.seeing_bytes) if card else (CONTEXT, 0)
    context, prompt = (tokens, tokens) if tokens else (context, None)  # pictures of slices all go in at once
    return {
        one: needed(
            decoder, one, encoder, context=context, prompt=prompt, device=checkpoint.device, seeing=seeing
        ).total
        for one in precisions
    }  # fmt: skip


def _decoder(checkpoint: Checkpoint) -> tuple[dict[str, Any], int]:
    """The decoder's sizes, and the tokens that a study with its chat takes where pictures take most of them, else 0.

    Configurations from the hub leave out what their class knows by itself: for those, the file of the system is asked.
    """
    if system_of(checkpoint.folder) != "huggingface":
        return decoder_part(written_config(checkpoint.folder)), 0
    from MedVLMReaderLib.models.huggingface import sizes_of  # imported when it is wanted: it needs much of transformers

    return sizes_of(checkpoint.folder)


def decoder_part(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's configuration that gives its decoder's sizes."""
    for name in ("decoder", "text_config", "llm_config"):
        if isinstance(config.get(name), dict):
            return dict(config[name])
    return config
