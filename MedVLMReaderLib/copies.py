"""Copies of models with quantised decoders, that load again without being quantised again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.download import LARGEST_SETTING, SETTINGS
from MedVLMReaderLib.manifest import FILE, Manifest, marks
from MedVLMReaderLib.quantise import quantised_layers
from MedVLMReaderLib.shards import INDEX, PICKLED, Shards
from MedVLMReaderLib.weights import Checkpoint

SHARD = 1 << 30
"""Bytes after which a file of weights ends: bounds memory while writing."""


def save_quantised(decoder: Any, checkpoint: Checkpoint, folder: Path) -> Manifest:
    """Write the model of `checkpoint`, whose loaded decoder this is, with that decoder's weights as they are.

    In the layout of the original, so that the same code reads it; a list with hashes is written last. It may be called
    at any time: codes are saved in the order that no machine changes. ReaderError where nothing is quantised, the
    folder is taken, or the disk refuses.
    """
    layers = quantised_layers(decoder)
    if not layers:
        raise ReaderError(f"'{checkpoint.name}' was loaded in {checkpoint.precision}. Load it in int8 or nf4 first.")
    if folder.exists() and any(folder.iterdir()):
        raise ReaderError(f"'{folder}' is not empty. Name a new folder for the copy.")
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _settings(checkpoint.folder, part)
        _weights(_tensors(decoder, Shards.open(checkpoint.folder)), part)
        made = Manifest(checkpoint.name, checkpoint.revision, marks(part), checkpoint.precision, checkpoint.notes)
        made.save(part / FILE)
        if folder.exists():
            folder.rmdir()
        part.replace(folder)
    except OSError as error:
        raise ReaderError(f"'{folder}' cannot be written ({error.strerror or error}). Choose another place.") from error
    return made


def _settings(source: Path, folder: Path) -> None:
    """The small files: configuration, tokenizer, templates."""
    unwanted = (INDEX, PICKLED[1], FILE)
    for path in sorted(source.iterdir()):
        if path.name.endswith(SETTINGS) and path.name not in unwanted and path.stat().st_size <= LARGEST_SETTING:
            shutil.copyfile(path, folder / path.name)


def _tensors(decoder: Any, stored: Shards) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the copy under its name in the files: codes for the quantised layers, the rest of the decoder in
    the 16 bits that it is used in, everything else as it was stored."""
    origins: dict[str, str] = decoder.origins
    of_decoder, taken = set(origins.values()), set()
    for name, layer in quantised_layers(decoder).items():
        names = [f"{name}.weight", *(f"{name}.weight.{suffix}" for suffix in layer.suffixes)]
        found = [origins[one] for one in names if one in origins]
        taken |= {*found}
        whole = found[0] if len(found) == 1 else found[0].rpartition(".")[0]
        for suffix, tensor in layer.plain().items():
            yield f"{whole}.{suffix}", tensor.cpu()
    for name, dtype in stored.dtypes.items():
        if name not in taken:
            yield name, stored.read(name, torch.bfloat16 if name in of_decoder and dtype.is_floating_point else dtype)


def _weights(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    table: dict[str, str] = {}
    part: dict[str, Tensor] = {}

    def write() -> None:
        file = f"model-{len(set(table.values())) + 1:05}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, folder / file, {"format": "pt"})
        table.update(dict.fromkeys(part, file))
        part.clear()

    for name, tensor in tensors:
        part[name] = tensor
        if sum(one.nbytes for one in part.values()) >= SHARD:
            write()
    if part:
        write()
    content = {"metadata": {}, "weight_map": dict(sorted(table.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
