"""`models`: the table of models, and what of it is on this machine."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib.commands.terminal import arriving, say, say_json

if TYPE_CHECKING:
    from MedVLMReaderLib.models import Card


def show(arguments: Namespace) -> None:
    """Print the table, or do with the models on this machine what was asked."""
    if arguments.remove:
        _remove(arguments)
    elif arguments.get:
        _get(arguments)
    elif arguments.installed:
        _installed(arguments)
    else:
        _table(arguments)


def _table(arguments: Namespace) -> None:
    from MedVLMReaderLib.hub import installed
    from MedVLMReaderLib.memory import free_memory, gigabytes, gpu_memory
    from MedVLMReaderLib.models import CARDS

    device = "cuda" if gpu_memory() else "cpu"
    free, here = free_memory(device), {one.name for one in installed() if one.whole}
    rows = [row(card, device, free, here) for card in CARDS.values()]
    if arguments.json:
        say_json({"device": device, "free_bytes": free, "models": rows})
        return
    say(f"Free memory of this machine ({device}): {gigabytes(free)}. Needed for a study, by the decoder's precision:\n")
    say(f"{'':<18}{'fp32':>8}{'bf16':>8}{'int8':>8}{'nf4':>8}  fits")
    for one in rows:
        sizes = "".join(f"{one['memory_bytes'][p] / 1e9:>8.1f}" for p in one["memory_bytes"])
        say(f"{one['name']:<18}{sizes:<32}  {('yes, ' + one['fits']) if one['fits'] else 'no'}")
        what = (_parameters(one["parameters"]), " and ".join(one["modalities"]), ", ".join(one["can"]))
        say(f"{'':<4}{one['title']}: {'; '.join(what)}. {one['summary']}")
        say(f"{'':<4}{'; '.join(_status(one))}")
    say("\nGB, from sizes alone. Marked ?: from memory, on no page that could be looked up.")


def row(card: Card, device: str, free: int, here: set[str]) -> dict[str, Any]:
    """All that is known of a model, with the memory it needs and the best precision that fits."""
    from MedVLMReaderLib.memory import PRECISIONS, SMALL, DecoderShape, needed
    from MedVLMReaderLib.resources import resources_folder

    sizes: dict[str, int] = {}
    if card.decoder:
        decoder = DecoderShape.from_config(card.decoder)
        encoder = max(0, card.parameters - decoder.parameters)
        for one in PRECISIONS:
            need = needed(decoder, one, encoder, context=card.context, device=device, seeing=card.seeing_bytes)
            sizes[one] = need.total
    else:
        sizes["fp32"] = 4 * card.parameters + card.seeing_bytes
    full = not card.decoder or (device == "cpu" and card.parameters <= SMALL)
    fits = next((one for one, size in sizes.items() if size <= free and (full or one != "fp32")), None)
    is_here = (resources_folder() / card.source).is_dir() if card.shipped else card.source in here
    return {**asdict(card), "here": is_here, "memory_bytes": sizes, "fits": fits}


def _status(one: dict[str, Any]) -> list[str]:
    doubt = "?" if "licence" in one["unsure"] else ""
    where = "comes with the reader" if one["source"].startswith("models/") else one["source"]
    return [
        f"{where}{'' if one['here'] else ' (not installed)'}",
        f"licence {one['licence']}{doubt}" + (", gated" if one["gated"] else ""),
        "tried" if one["tried"] else "never tried with the published weights here",
    ]


def _parameters(count: int) -> str:
    billions = count >= 1e9
    return f"{count / (1e9 if billions else 1e6):.1f} {'billion' if billions else 'million'} parameters"


def _installed(arguments: Namespace) -> None:
    from MedVLMReaderLib.hub import cache_folder, installed
    from MedVLMReaderLib.memory import gigabytes

    found = installed()
    if arguments.json:
        say_json({"cache": cache_folder(), "models": [asdict(one) for one in found]})
        return
    for one in found:
        state = f"revision {one.revision[:12]}" if one.whole else "not whole; --get completes it"
        say(f"{one.name:<44}{gigabytes(one.size):>9}  {state}")
    say(f"{'Nothing of the hub is' if not found else 'All'} in {cache_folder()}.")


def _get(arguments: Namespace) -> None:
    from MedVLMReaderLib.hub import get

    with arriving(arguments.get) as progress:
        found = get(arguments.get, arguments.revision, progress)
    if arguments.json:
        say_json({"name": found.name, "revision": found.revision, "folder": found.folder, "notes": found.notes})
        return
    say(f"{arguments.get} is here and whole" + (f", revision {found.revision}." if found.revision else "."))
    for note in found.notes:
        say(f"Note: {note}")


def _remove(arguments: Namespace) -> None:
    from MedVLMReaderLib.hub import remove
    from MedVLMReaderLib.memory import gigabytes

    freed = remove(arguments.remove)
    if arguments.json:
        say_json({"removed": arguments.remove, "freed_bytes": freed})
    else:
        say(f"{arguments.remove} was removed: {gigabytes(freed)} freed.")
