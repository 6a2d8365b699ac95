"""The files of a vision-language model from the hub: checked before transformers sees any of them.

Of config.json only what transformers' own class of that family knows is handed on, as an object; nothing that could
name code, a place or a kernel to download.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.families import FAMILIES, Family
from MedVLMReaderLib.weights import DEEPEST, LARGEST, written_config

RUNS = re.compile(r"(^|[._-])(auto_?map|custom|code|scripts?|kernels?|plugins?|modules?|import|exec|command)([._-]|$)")
"""What no field may be called: it names something that could run."""
SIZES = re.compile(r"(size|dim|layers|depth|heads|channels|embeddings|tokens_per_image|factor|width|height|edge)$")
WIDEST = 1e9
"""No other number of a configuration is larger."""
ATTENTION = re.compile(r"attn_implementation")
LARGEST_PIXELS = 4096 * 4096
PARTS = ("text_config", "vision_config")
TEXTS, TOWERS = ("llama", "qwen2", "qwen3"), ("siglip_vision_model",)
"""Kinds of language models and of encoders that a family may take from elsewhere."""
FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")


def checked_config(folder: Path) -> Any:
    """transformers' configuration of a model in a folder; ReaderError where it is not one that this version reads."""
    config = written_config(folder)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ReaderError(
            f"'{folder}' holds a model of the kind '{kind}'. Known: {', '.join(sorted(FAMILIES))}. Choose one of these."
        )
    family = FAMILIES[kind]
    named = config.get("architectures", [family.architecture])
    if named != [family.architecture]:
        raise ReaderError(f"'{folder}' holds a {named} of the kind '{kind}'; only {family.architecture} is read.")
    where = f"'{folder / 'config.json'}'"
    harmless(config, where)
    sensible(config, where)
    for name in FILES:
        harmless(read_json(folder / name), f"'{folder / name}'")
    return _own(config, kind, where)


FLAT = {"qwen2_5_vl": ("text_config",)}
"""Parts whose fields stand beside the others in older configurations."""


def _own(config: dict[str, Any], kind: str, where: str) -> Any:
    """transformers' own object with those fields of a configuration that it knows."""
    settings = transformers.AutoConfig.for_model(kind)
    kept = _known(config, {*settings.to_dict(), *getattr(settings, "attribute_map", {})})
    for part in PARTS:
        inner = config.get(part, config if part in FLAT.get(kind, ()) else None)
        if not isinstance(inner, dict):
            raise ReaderError(f"{where} has no {part}. Get the model again.")
        kept[part] = _known(inner, {*_part(settings, part, inner, where).to_dict(), *OLDER})
    try:
        return type(settings)(**kept)
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise ReaderError(f"{where} does not describe a {kind} ({error}). Get the model again.") from error


def _part(settings: Any, part: str, inner: Mapping[str, Any], where: str) -> Any:
    """An object of the class that reads a part of the configuration."""
    default = getattr(settings, part)
    kind = inner.get("model_type", default.model_type)
    if kind == default.model_type or kind == settings.model_type:
        return default
    if kind not in (TEXTS if part == "text_config" else TOWERS):
        raise ReaderError(f"{where} has a '{kind}' as its {part}, which is not read in a {settings.model_type}.")
    return transformers.AutoConfig.for_model(kind)


OLDER = ("rope_theta", "rope_scaling", "sliding_window_pattern", "rope_local_base_freq", "tie_word_embeddings")
"""Fields of a part that transformers reads though it writes them elsewhere today."""


def _known(config: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    unwanted = {"architectures", "transformers_version", "quantization_config", "dtype", "torch_dtype", *PARTS}
    return {n: v for n, v in config.items() if n in known - unwanted and not n.startswith("_")}


def fields(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration, however deep, with its path."""
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(config, dict):
        items = ((str(name), value) for name, value in config.items())
    elif isinstance(config, list):
        items = ((f"{n}", value) for n, value in enumerate(config))
    for name, value in items:
        here = f"{path}.{name}" if path else name
        yield here, value
        yield from fields(value, here)


def harmless(config: Any, where: str) -> None:
    """ReaderError where a field could make something run, or fetch it."""
    for path, value in fields(config):
        name = path.rpartition(".")[2]
        if "added_tokens" in path or name in ("name_or_path", "_name_or_path", "chat_template"):
            continue
        runs = RUNS.search(name.lower())
        elsewhere = ATTENTION.search(name) and "/" in str(value)
        if runs or elsewhere or (isinstance(value, str) and value.endswith(".py")):
            raise ReaderError(
                f"{where} has the field '{path}', which could run code; it is not allowed there. A configuration names "
                "sizes and nothing that could run; use a model from a source you trust."
            )


def sensible(config: Any, where: str) -> None:
    """ReaderError where a size is none that any model has."""
    for path, value in fields(config):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        most = (DEEPEST if path.endswith(("layers", "depth")) else LARGEST) if SIZES.search(path) else WIDEST
        least = 0 if SIZES.search(path) else -WIDEST
        if not math.isfinite(value) or not least <= value <= most:
            raise ReaderError(f"{where} has {path} {value}: not a size that any model has. Get the model again.")


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings, empty where there is none; ReaderError where it is broken."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    if not isinstance(content, dict):
        raise ReaderError(f"'{path}' should hold one JSON object. Get the model again.")
    return content


def picture_processor(folder: Path, family: Family) -> Any:
    """What turns pictures into numbers as the family's own does; ReaderError where its settings are not there."""
    settings = read_json(folder / "processor_config.json").get("image_processor", {})
    settings = settings or read_json(folder / "preprocessor_config.json")
    if not settings:
        raise ReaderError(f"'{folder}' has no preprocessor_config.json. Get the model again.")
    for path, value in fields(settings):
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_PIXELS:
            raise ReaderError(f"'{folder}': pictures of {path} {value}: no model has that. Get the model again.")
    try:
        made = getattr(transformers, family.processor)
        names = made.valid_kwargs.__annotations__ | transformers.processing_utils.ImagesKwargs.__annotations__
        return made(**{n: v for n, v in settings.items() if n in names and n not in ("device", "return_tensors")})
    except ImportError as error:
        raise ReaderError(
            f"Pictures for {family.architecture} need the package pillow ({error}). Run: pip install pillow"
        ) from error
    except Exception as error:  # transformers raises whatever a wrong setting leads to
        raise ReaderError(f"'{folder}': preprocessor_config.json cannot be used ({error}).") from error


def tokenizer_of(folder: Path, family: Family, image_token_id: int) -> Any:
    """The tokenizer of a folder; ReaderError where it lacks the tokens that stand around and for a picture."""
    if not (folder / "tokenizer.json").is_file():
        raise ReaderError(f"'{folder}' has no tokenizer.json. Get the model again.")
    try:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ReaderError(f"The tokenizer of '{folder}' cannot be read ({error}). Get the model again.") from None
    known = tokenizer.get_vocab()
    for token in (family.token, *family.specials):
        if token not in known:
            raise ReaderError(
                f"The tokenizer of '{folder}' has no token '{token}', without which {family.architecture} cannot be "
                "shown a picture. Get the model again, with its own tokenizer."
            )
    if known[family.token] != image_token_id:
        raise ReaderError(
            f"The tokenizer of '{folder}' has '{family.token}' as number {known[family.token]}, config.json as "
            f"{image_token_id}. They do not belong together; get the model again."
        )
    return tokenizer


def chat_template(folder: Path, tokenizer: Any) -> str:
    """How a chat is written: the processor's template, or else the tokenizer's. ReaderError where there is none."""
    try:
        found = (folder / "chat_template.jinja").read_text()
    except FileNotFoundError:
        found = ""
    for name in ("chat_template.json", "processor_config.json"):
        found = found or read_json(folder / name).get("chat_template") or ""
    found = found or tokenizer.chat_template or ""
    if not isinstance(found, str) or not found:
        raise ReaderError(f"'{folder}' has no chat template (chat_template.jinja): it is no model to talk with.")
    return found


def ends_of(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer."""
    found = read_json(folder / "generation_config.json").get("eos_token_id", [])
    listed = found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(t for t in (*listed, tokenizer.eos_token_id) if isinstance(t, int)))
