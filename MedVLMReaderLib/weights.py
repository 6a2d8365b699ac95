"""Weights on disk: found, checked against what a network needs, and loaded. safetensors only; nothing ever runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.memory import Precision
from MedVLMReaderLib.models import SYSTEMS
from MedVLMReaderLib.quantise import KINDS, check_parts, linears, stored_precision, whole_shapes
from MedVLMReaderLib.shards import SINGLE, damaged, translated, weight_files
from MedVLMReaderLib.shards import Shards as Shards

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

WHOLE, SAMPLES, SAMPLE = 1 << 30, 64, 1 << 16
"""Bytes up to which a file is hashed whole; else so many parts of so many bytes."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, found and checked, and how they are to be loaded."""

    folder: Path
    name: str
    """Shown to the user."""
    revision: str
    """The commit of the hub, or a hash of the content."""
    precision: Precision = "fp32"
    """Of the decoder alone."""
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    """What the user must know of how it was found and loaded."""


def read_config(folder: Path, fields: Iterable[str]) -> dict[str, Any]:
    """config.json of a model's folder; ReaderError where it is missing, broken, or has other fields than `fields`."""
    config = written_config(folder)
    only(config, fields, f"'{folder / 'config.json'}'")
    missing = sorted(set(fields) - set(config))
    if missing:
        raise ReaderError(f"'{folder / 'config.json'}' lacks {', '.join(missing)}. Get the model again.")
    return config


def written_config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder as it stands there; ReaderError where it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ReaderError(f"'{folder}' is not a model's folder: it has no config.json.") from None
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    if not isinstance(config, dict):
        raise ReaderError(f"'{path}' should hold one JSON object. Get the model again.")
    return config


def system_of(folder: Path) -> str:
    """The file in models/ that computes the model of a folder: told by `system`, or by a published `model_type`."""
    config = written_config(folder)
    known = {*SYSTEMS.values(), "ms_vlm", "huggingface"}
    system = config.get("system", SYSTEMS.get(str(config.get("model_type")), "huggingface"))
    if system not in known:
        raise ReaderError(f"'{folder}' holds a '{system}'. Known: {', '.join(sorted(known))}.")
    return str(system)


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


def fingerprint(folder: Path) -> str:
    """Twelve characters that change with the weights of a folder.

    One file of less than a gigabyte is hashed whole; larger ones, and several, by size, header and evenly spaced parts.
    """
    files = weight_files(folder)
    if not files:
        raise ReaderError(f"'{folder}' has no {SINGLE}. Get the model again.")
    digest = hashlib.sha256()
    try:
        for path in files:
            size = path.stat().st_size
            if len(files) == 1 and size < WHOLE:
                return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for n in range(SAMPLES):
                    file.seek(n * max(size - SAMPLE, 0) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
    except OSError as error:
        raise damaged(path, error.strerror) from error
    return digest.hexdigest()[:12]


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
    return {translated(name, names): tensor for name, tensor in tensors.items()}


def filled(
    build: Callable[[], Network], tensors: Mapping[str, Tensor], *, given: str = "", device: str = "cpu"
) -> Network:
    """The network that `build` makes, with these tensors, ready to read: 32 bits on a CPU, bfloat16 on CUDA.

    Strict: ReaderError names what is missing, left over or of another shape, before any memory is taken. Of tensors
    that the network ties together, the file has the first. What lies below `given` in the network is filled already.
    """
    network = built(build, tensors, given=given)
    placed(network, tensors, encoder_dtype(device), device, given=given)
    for part in network.modules():
        if isinstance(part, transformers.PreTrainedModel) and not given:
            part.tie_weights()
    return network.requires_grad_(False).eval()


def filled_decoder(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    precision: Precision = "fp32",
    device: str = "cpu",
    *,
    below: str = "",
) -> Any:
    """A causal language model with these tensors, in this precision, on this device; as strict as `filled`.

    Layers are quantised one by one while they are read. `below` is where the names stand in the file, for messages.
    """
    stored = stored_precision(tensors)
    if stored and stored != precision:
        raise ReaderError(f"This copy holds its decoder in {stored}; {precision} needs the model it was made from.")
    decoder = built(lambda: new_decoder(config), tensors, below=below)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    taken: set[str] = set()
    if precision in KINDS:
        taken = place_quantised(decoder, tensors, precision, device, decoder.get_output_embeddings())
    placed(decoder, tensors, dtype, device, names=[name for name in tensors if name not in taken])
    decoder.tie_weights()
    decoder.config.dtype = dtype
    decoder.origins = {name: tensors.origin(name) for name in tensors} if isinstance(tensors, Shards) else {}
    return decoder.requires_grad_(False).eval()


def place_quantised(
    network: nn.Module, tensors: Mapping[str, Tensor], precision: Precision, device: str, kept: nn.Module | None
) -> set[str]:
    """Put quantised layers in place of the network's linear ones, all but `kept`, reading one tensor at a time.

    The names of the tensors that were used. A copy saved quantised has the codes; else they are made here.
    """
    kind, taken = KINDS[precision], set()
    for name, layer in linears(network, kept).items():
        parts = [f"{name}.weight.{suffix}" for suffix in kind.suffixes]
        own = [f"{name}.bias"] if layer.bias is not None else []
        bias = read(tensors, own[0], torch.bfloat16, device) if own else None
        if parts[0] in tensors:
            if missing := [part for part in parts if part not in tensors]:
                raise ReaderError(f"The copy lacks the tensor '{missing[0]}'. Make it again.")
            codes, scales = (tensors[part].to(device) for part in parts)
            check_parts(precision, codes, scales, layer, name)
            new: nn.Module = kind(codes, scales, bias)
        else:
            parts = [f"{name}.weight"]
            new = kind.quantised(tensors[parts[0]], bias, device)
        network.set_submodule(name, new)
        taken |= {*parts, *own}
    return taken


def encoder_dtype(device: str) -> torch.dtype:
    """What encoders and projectors compute in."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


class Weightless(TorchFunctionMode):
    """Layers made inside have weights without memory; small tables that the layers compute themselves are real."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def built(build: Callable[[], Network], tensors: Mapping[str, Tensor], *, given: str = "", below: str = "") -> Network:
    """The network without its weights, once it is clear that the tensors are its own."""
    try:
        with torch.device("meta"):  # sizes without memory: those of a broken file may be anything
            _check(build(), tensors, given, below)
        with Weightless():
            return build()
    except ReaderError:
        raise
    except Exception as error:  # torch and transformers each raise their own
        raise ReaderError(f"The sizes in config.json make no network ({error}). Get the model again.") from error


def placed(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str,
    *,
    given: str = "",
    names: Iterable[str] | None = None,
) -> None:
    """Give the network these of its tensors (all), one by one, and put what it computed itself beside them."""
    wanted = tensors if names is None else names
    network.load_state_dict({n: read(tensors, n, dtype, device) for n in wanted}, strict=False, assign=True)
    for name, part in network.named_modules():
        for own, buffer in part.named_buffers(recurse=False):
            if not (given and f"{name}.".startswith(given)) and buffer.device.type != "meta":
                part._buffers[own] = buffer.to(device)


def read(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """A tensor on its device; numbers with a fraction in `dtype`, others as they are."""
    if isinstance(tensors, Shards):
        stored = tensors.dtypes[name]
        return tensors.read(name, dtype if stored.is_floating_point else stored).to(device)
    tensor = tensors[name]
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading what has not been read."""
    return tensors.shapes if isinstance(tensors, Shards) else {n: tuple(t.shape) for n, t in tensors.items()}


def _check(network: nn.Module, tensors: Mapping[str, Tensor], given: str, below: str) -> None:
    """ReaderError where the tensors are not the network's."""
    first = {id(tensor): name for name, tensor in reversed(network.state_dict(keep_vars=True).items())}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wanted = {name: shapes[name] for name in first.values() if not (given and name.startswith(given))}
    found = whole_shapes(shapes_of(tensors))
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    for what, names in (("lacks", missing), ("has, beyond what the model needs,", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ReaderError(
                f"The weights file {what} the tensor '{below}{names[0]}'{more}. It belongs to another model."
            )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ReaderError(
                f"The tensor '{below}{name}' is {found[name]}, the model needs {shape}. "
                "The weights and config.json do not belong together."
            )
