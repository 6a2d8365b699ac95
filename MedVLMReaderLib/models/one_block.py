"""What the models share that read a scan as one block of voxels: Med3DVLM, M3D-LaMed and the pairs they come from.

Their authors splice the visual tokens into a text in the same way, and write the same kind of folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.study import Message, Prompt, Seen
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.weights import only, written_config

IMAGE = "<im_patch>"
"""Stands in a text where a visual token will be."""


def one(volumes: Sequence[Volume], title: str) -> Volume:
    """The only volume; ReaderError where there is none, or another."""
    if not volumes:
        raise ReaderError("No volume was given. Choose a scan first.")
    if len(volumes) > 1:
        raise ReaderError(f"{len(volumes)} volumes were given; {title} reads one at a time. Choose one series.")
    return volumes[0]


# ---- Text -----------------------------------------------------------------------------------------------------------


def written(messages: Sequence[Message], report: str, end: str) -> str:
    """The turns of a chat as text. No template: the models were trained on one question and its answer.

    `report` is the model's own request for a report: it stood right after the image in training, questions after a
    space. `end` is the token that ends an answer.
    """
    turns = []
    for message in messages:
        if message.role == "assistant":
            turns.append(f" {message.text}{end}")
        else:
            turns.append(message.text if message.text == report else f" {message.text}")
    return "".join(turns)


def prompt(decoder: Any, tokenizer: Any, seen: Seen, text: str) -> Prompt:
    """The visual tokens of a study and a text after them; ReaderError where the text has image tokens of its own."""
    count = len(seen.tokens)
    ids = tokenizer(IMAGE * count + text)["input_ids"]
    if (found := ids.count(tokenizer.convert_tokens_to_ids(IMAGE))) != count:
        raise ReaderError(
            f"The question has {found - count} times the word '{IMAGE}', which stands for the image. Ask without it."
        )
    told = decoder.get_input_embeddings()(torch.tensor([ids], device=decoder.device))
    return Prompt(spliced(told, seen.tokens[None]), tuple(range(1, 1 + count)))


def spliced(told: Tensor, visual: Tensor) -> Tensor:
    """(batch, length, width) embeddings of a text with the visual tokens from position 1 on.

    Position 0 is for the token that begins a text. Where a tokenizer writes none, as Qwen2.5's, the first image token
    keeps its embedding there, and the first token after the image is lost. Trained so; with the image where the text
    has it, the answers would be those of another model.
    """
    return torch.cat([told[:, :1], visual.to(told), told[:, visual.shape[1] + 1 :]], 1)


# ---- A published folder ---------------------------------------------------------------------------------------------


def checked_config(
    folder: Path, needed: Iterable[str], fixed: Mapping[str, Any], others: Iterable[str]
) -> dict[str, Any]:
    """config.json of a folder, once it has all `needed` fields and none but these, `fixed` and `others`.

    A field of `fixed` would change the network and may be left out or have the one value that is computed here.
    """
    config, where, wanted = written_config(folder), f"'{folder / 'config.json'}'", set(needed)
    for name, value in fixed.items():  # first, as one of another system has other fields too
        if config.get(name, value) != value:
            raise ReaderError(f"{where} has {name} {config[name]!r}; only {value!r} can be read.")
    only(config, (*wanted, *fixed, *others), where)
    if missing := sorted(wanted - set(config)):
        raise ReaderError(f"{where} lacks {', '.join(missing)}. Get the model again.")
    return config


def whole_numbers(config: Mapping[str, Any], names: Iterable[str], folder: Path) -> None:
    """ReaderError where one of these fields is no whole number."""
    for name in names:
        if type(config[name]) is not int:
            raise ReaderError(
                f"'{folder / 'config.json'}' has {name} {config[name]!r}, which is no whole number. "
                "Get the model again."
            )


def fitting(tokenizer: Any, rows: int, folder: Path) -> Any:
    """The tokenizer, once it is known to have no more tokens than the model has rows."""
    if len(tokenizer) > rows:
        raise ReaderError(
            f"The tokenizer of '{folder}' has {len(tokenizer)} tokens, the model {rows}. "
            "They do not belong together. Use the tokenizer that came with the model."
        )
    return tokenizer


def ending(tokenizer: Any, config: Mapping[str, Any], folder: Path) -> Any:
    """The tokenizer of a model that writes, once it has the image token and the one that ends an answer."""
    if IMAGE not in tokenizer.get_vocab():
        raise ReaderError(
            f"The tokenizer of '{folder}' has no '{IMAGE}', where the image would stand. "
            "Use the tokenizer that came with the model."
        )
    fitting(tokenizer, config["vocab_size"], folder)
    end = config["eos_token_id"]
    if not isinstance(end, int) or not 0 <= end < len(tokenizer):
        raise ReaderError(
            f"config.json of '{folder}' ends answers with token {end!r}; its tokenizer has {len(tokenizer)} tokens. "
            "They do not belong together."
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer
