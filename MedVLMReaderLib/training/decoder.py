"""The decoder that a vision-language model begins with: a language model's folder, made ready to be shown images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.med3dvlm import DECODER
from MedVLMReaderLib.models.one_block import IMAGE, whole_numbers
from MedVLMReaderLib.weights import Shards, filled_decoder, read_tokenizer, written_config

LINEARS = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
"""Every linear layer of a Qwen2 but its head: what LoRA is published to adapt."""
_PLAIN: dict[str, Any] = {
    "attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu", "rope_scaling": None,
}  # fmt: skip
"""Fields that would change the network, with the one value of each that is computed here."""
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "eos_token_id",
)  # fmt: skip


def read_decoder(folder: Path) -> tuple[Any, Any]:
    """A Qwen2 in 32 bits and its tokenizer, with one token more, which stands for the image.

    A Llama without biases is read as the Qwen2 that it equals, with biases of nothing. ReaderError where the folder
    holds another kind. The new token begins as the mean of all others, as published.
    """
    config = written_config(folder)
    numbers = _numbers(config, folder)
    tensors: Mapping[str, Tensor] = Shards.open(folder)
    if config["model_type"] == "llama":
        tensors = {**tensors, **_no_biases(numbers)}
    tokenizer = _tokenizer(folder, numbers)
    decoder = filled_decoder({**numbers, "model_type": "qwen2"}, tensors)
    rows = decoder.get_input_embeddings().weight
    mean = rows[: len(tokenizer)].mean(0)
    is_new = IMAGE not in tokenizer.get_vocab()
    if is_new:
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if is_new:
        with torch.no_grad():
            for layer in {decoder.get_input_embeddings(), decoder.get_output_embeddings()}:
                layer.weight[-1] = mean if layer.weight.shape[1] == len(mean) else 0
    return decoder, tokenizer


def decoder_numbers(config: Any) -> dict[str, Any]:
    """The fields of a published config.json that are the decoder's, from transformers' own object."""
    plain = config.to_dict()
    plain["rope_theta"] = plain.get("rope_theta") or (plain.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    return {name: plain[name] for name in DECODER if plain.get(name) is not None}


def _numbers(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The decoder's sizes; ReaderError where they are not those of a Qwen2 or of its equal."""
    where, kind = f"'{folder / 'config.json'}'", config.get("model_type")
    if kind not in ("qwen2", "llama"):
        raise ReaderError(
            f"{where} holds a '{kind}'. Med3DVLM writes with a Qwen2; a Llama that equals one is read too."
        )
    rope = config.get("rope_parameters") or {}
    for name, value in _PLAIN.items():
        if config.get(name, value) != value:
            raise ReaderError(f"{where} has {name} {config[name]!r}; only {value!r} can be read.")
    if rope.get("rope_type", "default") != "default":
        raise ReaderError(f"{where} has positions of the type {rope['rope_type']!r}; only the plain ones can be read.")
    if missing := [name for name in _SIZES if name not in config]:
        raise ReaderError(f"{where} lacks {', '.join(missing)}. Get the model again.")
    whole_numbers(config, _SIZES, folder)
    numbers = {name: config[name] for name in DECODER if config.get(name) is not None}
    numbers["rope_theta"] = config.get("rope_theta") or rope.get("rope_theta", 10000.0)
    heads, width = numbers["num_attention_heads"], numbers["hidden_size"]
    if (own := config.get("head_dim") or width // max(heads, 1)) * heads != width:
        raise ReaderError(f"{where} has {heads} heads of {own}, which do not make the width {width} as a Qwen2's do.")
    return numbers


def _no_biases(numbers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The biases that a Llama lacks, by name: all nothing."""
    head = numbers["hidden_size"] // numbers["num_attention_heads"]
    keys = numbers.get("num_key_value_heads", numbers["num_attention_heads"])
    widths = {"q_proj": numbers["hidden_size"], "k_proj": head * keys, "v_proj": head * keys}
    return {
        f"model.layers.{n}.self_attn.{name}.bias": torch.zeros(width)
        for n in range(numbers["num_hidden_layers"]) for name, width in widths.items()
    }  # fmt: skip


def _tokenizer(folder: Path, numbers: Mapping[str, Any]) -> Any:
    """The folder's tokenizer, whose answers end as config.json says."""
    tokenizer = read_tokenizer(folder, "")
    end = numbers["eos_token_id"]
    if not 0 <= end < len(tokenizer) <= numbers["vocab_size"]:
        raise ReaderError(
            f"The tokenizer of '{folder}' has {len(tokenizer)} tokens, the model {numbers['vocab_size']}, and answers "
            f"end with token {end}. They do not belong together."
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer
