"""Weights on disk: found, checked against what a network needs, and loaded. safetensors only; nothing ever runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError

DECODERS = {"qwen2": "Qwen2", "llama": "Llama", "opt": "OPT", "phi3": "Phi3"}
"""Kinds of decoder that a folder may name -> the beginning of transformers' own classes for it."""

DECODER_FIELDS = frozenset((
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "hidden_act",
    "ffn_dim", "word_embed_proj_dim", "activation_function", "do_layer_norm_before", "bos_token_id", "eos_token_id",
    "pad_token_id", "original_max_position_embeddings", "sliding_window",
))  # fmt: skip
LARGEST, DEEPEST = 1 << 20, 1000
"""No number of a configuration may exceed the first, no count of layers the second."""

Network = TypeVar("Network", bound=nn.Module)


def read_config(folder: Path, fields: Iterable[str]) -> dict[str, Any]:
    """config.json of a model's folder; ReaderError where it is missing, broken, or has other fields than `fields`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ReaderError(f"'{folder}' is not a model's folder: it has no config.json.") from None
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    if not isinstance(config, dict):
        raise ReaderError(f"'{path}' should hold one JSON object. Get the model again.")
    only(config, fields, f"'{path}'")
    missing = sorted(set(fields) - set(config))
    if missing:
        raise ReaderError(f"'{path}' lacks {', '.join(missing)}. Get the model again.")
    return config


def only(config: Any, allowed: Iterable[str], where: str) -> None:
    """ReaderError where a part of a configuration is no JSON object, has another field, or a number out of bounds."""
    if not isinstance(config, dict):
        raise ReaderError(f"{where} should be a JSON object, not {config!r:.40}. Get the model again.")
    extra = sorted(set(config) - set(allowed))
    if extra:
        raise ReaderError(
            f"{where} has the field '{extra[0]}', which is not allowed there. A configuration names sizes and nothing "
            "that could run; use a model from a source you trust."
        )
    for name, value in config.items():
        most = DEEPEST if name.endswith(("layers", "depth")) else LARGEST
        if isinstance(value, (int, float)) and not -LARGEST <= value <= most:  # not: NaN is caught, too
            raise ReaderError(f"{where} has {name} {value}: not a size that any model has. Get the model again.")


def new_decoder(config: Mapping[str, Any]) -> Any:
    """An untrained causal language model of transformers' own, from plain numbers."""
    only(config, DECODER_FIELDS, "The decoder's configuration")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise ReaderError(f"The decoder is a '{kind}'. Known: {', '.join(sorted(DECODERS))}.")
    numbers = {name: value for name, value in config.items() if name != "model_type"}
    settings = getattr(transformers, f"{DECODERS[kind]}Config")(**numbers)
    return getattr(transformers, f"{DECODERS[kind]}ForCausalLM")(settings)


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of model.safetensors by name, in 32 bits, and the file's revision: a hash of all of it."""
    path = folder / "model.safetensors"
    try:
        revision = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        tensors = load_file(path)
    except FileNotFoundError:
        raise ReaderError(f"'{folder}' has no model.safetensors. Get the model again.") from None
    except (OSError, SafetensorError) as error:
        raise ReaderError(f"'{path}' is damaged ({error}). Get the model again.") from None
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, revision


def read_tokenizer(folder: Path, end: str) -> Any:
    """The tokenizer of tokenizer.json, whose `end` token closes an answer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ReaderError(f"'{folder}' has no tokenizer.json. Get the model again.")
    try:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=end)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    return tokenizer


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with the beginnings of their names translated by a table; a name that no entry fits stays."""
    out = {}
    for name, tensor in tensors.items():
        old = next((old for old in names if name.startswith(old)), "")
        out[names.get(old, "") + name.removeprefix(old)] = tensor
    return out


def filled(build: Callable[[], Network], tensors: Mapping[str, Tensor]) -> Network:
    """The network that `build` makes, with these tensors, ready to read.

    Strict: ReaderError names what is missing, left over or of another shape, before any memory is taken. Of tensors
    that the network ties together, the file has the first.
    """
    try:
        with torch.device("meta"):  # sizes without memory: those of a broken file may be anything
            _check(build(), tensors)
        network = build()
    except ReaderError:
        raise
    except Exception as error:  # torch and transformers each raise their own
        raise ReaderError(f"The sizes in config.json make no network ({error}). Get the model again.") from error
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    for part in network.modules():
        if isinstance(part, transformers.PreTrainedModel):
            part.tie_weights()
    return network.requires_grad_(False).eval()


def _check(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ReaderError where the tensors are not the network's."""
    first = {id(tensor): name for name, tensor in reversed(network.state_dict(keep_vars=True).items())}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wanted = {name: shapes[name] for name in first.values()}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    for what, names in (("lacks", missing), ("has, beyond what the model needs,", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ReaderError(f"The weights file {what} the tensor '{names[0]}'{more}. It belongs to another model.")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ReaderError(
                f"The tensor '{name}' is {tuple(tensors[name].shape)}, the model needs {shape}. "
                "The weights and config.json do not belong together."
            )
