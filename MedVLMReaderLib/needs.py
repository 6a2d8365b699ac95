"""What a model needs and what the machine has, said before anything is loaded; and what must be fetched first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from MedVLMReaderLib.gpu import Gpu
from MedVLMReaderLib.memory import PRECISIONS, DecoderShape, Precision, free_memory, gigabytes, needed
from MedVLMReaderLib.models import CARDS, Card


def memory_line(name: str, precision: str, gpus: Sequence[Gpu] = ()) -> str:
    """What a model of the table takes and what is free, on the GPU where there is one; "" for one that is not in it."""
    card = CARDS.get(name)
    if card is None or not card.decoder:
        return ""
    gpu = next(iter(gpus), None)
    sizes, free = sizes_of(card, gpu is not None), gpu.free if gpu else free_memory()
    named = precision if precision in sizes else _automatic(card, sizes, free, gpu is not None)
    need = sizes[next(one for one in PRECISIONS if one == named)]
    return _line(need, named, free, gpu.name if gpu else "")


def own_line(
    sizes: Mapping[str, int], chosen: str, free: int, device: str, precision: str, gpus: Sequence[Gpu] = ()
) -> str:
    """The same of a model of the user's own, with what the reader's program says of it (`worker.events.Needs`)."""
    smallest = list(sizes)[-1] if sizes else ""
    named = precision if precision in sizes else chosen or smallest
    gpu = next((one.name for one in gpus), "the GPU") if device.startswith("cuda") else ""
    return _line(sizes[named], named, free, gpu) if named else ""


def _line(need: int, named: str, free: int, gpu: str) -> str:
    where = f"free on {gpu}" if gpu else "of memory free"
    verdict = "" if need <= free else " It will not fit: close other programs, or choose a smaller precision or model."
    return f"Needs {gigabytes(need)} ({named}); you have {gigabytes(free)} {where}.{verdict}"


def loaded_line(precision: str, device: str, gpus: Sequence[Gpu] = ()) -> str:
    """The same once the model is in memory."""
    gpu = next(iter(gpus), None) if device.startswith("cuda") else None
    free, where = (gpu.free, gpu.name) if gpu else (free_memory(), "the CPU" if device == "cpu" else device)
    left = f"; {gigabytes(free)} left there" if gpu or device == "cpu" else ""
    return f"In memory: {precision} on {where}{left}."


def _automatic(card: Card, sizes: dict[Precision, int], free: int, on_gpu: bool) -> str:
    """What `auto` takes, as near as can be told without the model's files."""
    usual = [one for one in sizes if one != "fp32" or (card.shipped and not on_gpu)]
    return next((one for one in usual if sizes[one] <= free), PRECISIONS[-1])


def sizes_of(card: Card, on_gpu: bool = False) -> dict[Precision, int]:
    """Bytes in each precision."""
    decoder = DecoderShape.from_config(card.decoder)
    encoder, device = max(0, card.parameters - decoder.parameters), "cuda" if on_gpu else "cpu"
    return {
        one: needed(decoder, one, encoder, context=card.context, device=device, seeing=card.seeing_bytes).total
        for one in PRECISIONS
    }


def to_fetch(name: str) -> str:
    """What must be agreed to before a model that is not here is fetched; "" where nothing is."""
    from MedVLMReaderLib.hub import installed

    card = CARDS.get(name)
    if card is None or card.shipped or any(one.whole and one.name == card.source for one in installed()):
        return ""
    size, doubt = gigabytes(2 * card.parameters), "?" if "licence" in card.unsure else ""
    gated = (
        " It is gated: its makers give it to people who have accepted their terms on that page. Below 'Set-up and "
        "models', 'Models' says how, and takes the token that they give you."
    ) if card.gated else ""  # fmt: skip
    return (
        f"{card.title} is not on this machine. About {size} will be fetched from huggingface.co/{card.source} "
        f"(licence: {card.licence}{doubt}).{gated} Nothing of your scans is sent. Fetch it?"
    )
