"""Our networks against published numbers: `python Testing/parity.py DIR`.

Reads DIR/configs.json and, of each fixture in it, DIR/NAME.safetensors; builds our module from the fixture's `kind` and
`args`, fills it with weights made from the published names of its tensors (DIR/README.md), runs it, and prints a line
for each fixture: the largest error of each output beside what is allowed. Exit code 0 where all are within tolerance,
else 1: also for a kind that we do not have. A fixture that fails does not keep the others from being tried.

KINDS, here and in the files that add to it, is kind -> function(args, tensors, entry), which gives our outputs by name:

- `args`: sizes, as configs.json has them;
- `tensors`: what the file holds, and the inputs that are made from `rand_seed` and `shape`;
- `entry`: the whole entry of configs.json, for the rare kind that needs more than its `args`;
- returned: a tensor for each output of the entry. Where an entry describes an output as a slice ("logits[:, -14:]"),
  the tensor of that name ("logits") is returned whole and the slice is taken here. Integers must be equal.

A function makes its network with `filled_by_name(network, names, entry)`, `names` being the table published -> ours.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Kind = Callable[[dict[str, Any], Tensors, dict[str, Any]], Tensors]
Network = TypeVar("Network", bound=nn.Module)

SLICE = re.compile(r"(\w+)\[([\d:,\s-]+)\]")
FOR_THE_RECORD = "for the record"
"""What the description of an output says that is not to be reproduced."""


# ---- Weights from names ---------------------------------------------------------------------------------------------


def published_name(name: str, names: Mapping[str, str]) -> str:
    """The published name of one of our tensors, by a table of beginnings, published -> ours; the longest that fits."""
    fits = [(old, new) for old, new in names.items() if name.startswith(new)]
    old, new = max(fits, key=lambda pair: len(pair[1]), default=("", ""))
    return old + name.removeprefix(new)


def made(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weights that the fixtures' README makes from a published name."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    n = np.asarray(random.standard_normal(shape), np.float32)
    if name.endswith("running_var"):
        n = 1 + np.float32(0.1) * np.abs(n)
    elif name.endswith(".scale"):
        n = np.float32(0.5) + np.float32(0.1) * n
    elif name.endswith("weight") and len(shape) == 1:
        n = 1 + np.float32(0.1) * n
    elif name.endswith(("bias", "running_mean")) or len(shape) < 2:
        n = np.float32(0.02) * n
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(n, np.float32))


def filled_by_name(network: Network, names: Mapping[str, str], entry: Mapping[str, Any]) -> Network:
    """The network with the weights of its published names, ready to read; those of `keep_initial` as the entry says."""
    kept = entry.get("keep_initial", {})
    state = network.state_dict()
    for ours, tensor in state.items():
        name = published_name(ours, names)
        if name in kept:
            state[ours] = torch.full_like(tensor, kept[name])
        elif tensor.is_floating_point():
            state[ours] = made(name, tuple(tensor.shape))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def greedy(decoder: Any, inputs: Tensor, count: int) -> Tensor:
    """(1, count) likeliest tokens after embeddings (1, length, width), none of which ends it."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(decoder(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax()))
        inputs = torch.cat([inputs, decoder.get_input_embeddings()(torch.tensor([ids[-1:]]))], 1)
    return torch.tensor([ids])


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(1,) mean negative log-likelihood of the labels, each from the tokens before it; -100 is left out."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())[None]


def written(decoder: Any, inputs: Tensor, tensors: Tensors) -> Tensors:
    """What a decoder makes of embeddings (1, length, width): scores, and loss and likeliest tokens where a fixture has
    them."""
    out = {"inputs_embeds": inputs, "logits": decoder(inputs_embeds=inputs, use_cache=False).logits}
    if "labels" in tensors:
        out["loss"] = loss(out["logits"], tensors["labels"])
    if "greedy" in tensors:
        out["greedy"] = greedy(decoder, inputs, tensors["greedy"].shape[-1])
    return out


# ---- Comparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one fixture."""

    name: str
    right: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.right else 'FAILS':<6} {self.name:<36} {self.said}"


def results(folder: Path, kinds: Mapping[str, Kind], only: str = "") -> Iterator[Result]:
    """Each fixture of a folder in turn, or the one named."""
    for name, entry in json.loads((folder / "configs.json").read_text()).items():
        if only in ("", name):
            yield compared(folder, name, entry, kinds)


def compared(folder: Path, name: str, entry: dict[str, Any], kinds: Mapping[str, Kind]) -> Result:
    """One fixture; whatever goes wrong in it is its result."""
    if (kind := entry.get("kind")) not in kinds:
        return Result(name, False, f"unknown kind '{kind}'; known: {', '.join(sorted(kinds))}")
    try:
        stored = load_file(folder / f"{name}.safetensors")
        with torch.no_grad():
            ours = kinds[kind](entry["args"], {**stored, **_drawn(entry)}, entry)
        parts = [_output(output, str(told), stored, ours, entry) for output, told in entry["outputs"].items()]
    except (
        Exception
    ) as error:  # torch, transformers and files of any content raise anything; the others are to be tried
        return Result(name, False, f"{type(error).__name__}: {error}".splitlines()[0])
    allowed = f"atol {entry['atol']:g}, rtol {entry['rtol']:g}"
    return Result(name, all(right for right, _ in parts), f"{'; '.join(said for _, said in parts)} ({allowed})")


def _drawn(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs that are made from a seed."""
    seeded = {name: told for name, told in entry["inputs"].items() if isinstance(told, dict) and "rand_seed" in told}
    return {
        name: torch.from_numpy(np.random.RandomState(told["rand_seed"]).rand(*told["shape"]).astype(np.float32))
        for name, told in seeded.items()
    }


def _output(name: str, told: str, stored: Tensors, ours: Tensors, entry: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether an output is right, and its largest error."""
    if name not in ours and FOR_THE_RECORD in told:
        return True, f"{name} not compared"
    theirs, found = stored[name].squeeze(), _sliced(name, told, ours).squeeze()  # one loss may be () or (1,)
    if found.shape != theirs.shape:
        return False, f"{name} is {tuple(found.shape)}, published {tuple(theirs.shape)}"
    if not theirs.is_floating_point():
        differ = int((found != theirs).sum())
        return differ == 0, f"{name} {'equal' if not differ else f'differs in {differ} of {theirs.numel()}'}"
    error = (found.double() - theirs.double()).abs()
    excess = error - entry["rtol"] * theirs.double().abs()
    return bool((excess <= entry["atol"]).all()), f"{name} {float(error.max()) if error.numel() else 0:.1e}"


def _sliced(name: str, told: str, ours: Tensors) -> Tensor:
    """Our output of a name, and of it the slice that its description gives."""
    found = SLICE.search(told)
    whole = ours[found[1]] if found and found[1] in ours else ours[name]
    if not found:
        return whole
    return whole[tuple(_index(part.strip()) for part in found[2].split(","))]


def _index(part: str) -> slice | int:
    if ":" not in part:
        return int(part)
    return slice(*(int(number) if number.strip() else None for number in part.split(":")))


def all_kinds() -> dict[str, Kind]:
    """Every kind of module that we have."""
    from Testing import parity_m3d, parity_med3d_insight, parity_med3dvlm, parity_ms_vlm

    return {**parity_m3d.KINDS, **parity_med3d_insight.KINDS, **parity_med3dvlm.KINDS, **parity_ms_vlm.KINDS}


def main(arguments: list[str]) -> int:
    """Print a line for each fixture of the folder; the exit code."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "configs.json").is_file():
        print("usage: parity.py DIR, a folder with configs.json and a .safetensors for each entry", file=sys.stderr)
        return 2
    wrong = 0
    for result in results(Path(arguments[0]), all_kinds()):
        print(result, flush=True)
        wrong += not result.right
    print(f"{wrong} out of tolerance or unknown" if wrong else "all within tolerance")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
