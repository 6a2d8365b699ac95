"""tokenizer.model of Llama-like models (SentencePiece BPE), read without SentencePiece or protobuf being installed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken

from MedVLMReaderLib import ReaderError

PIECES, TRAINER, MODEL_TYPE, BPE = 1, 2, 3, 2
"""Field of the pieces, field of the trainer's settings, in it the field of the kind, and the kind that is read here."""
TEXT, SCORE, TYPE, NORMAL = 1, 2, 3, 1
"""Fields of a piece, and the type of one that is made of smaller ones; others are bytes and control tokens."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""How protobuf says that a field is stored."""


SETTINGS = "bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token", "legacy"
"""What counts of tokenizer_config.json; `add_prefix_space` is SentencePiece's own habit."""


def read_llama_tokenizer(folder: Path) -> Any:
    """The tokenizer of tokenizer.model, with the settings and added tokens of tokenizer_config.json beside it.

    ReaderError where a file is missing, damaged, or adds a token at another number than the next.
    """
    vocabulary, config = read_vocabulary(folder / "tokenizer.model"), _json(folder / "tokenizer_config.json")
    settings = {name: _text(config[name]) for name in SETTINGS if config.get(name) is not None}
    tokenizer = transformers.LlamaTokenizer(vocab=dict(vocabulary.ids), merges=vocabulary.merges, **settings)
    for number, token in _added(folder, config):
        if tokenizer.convert_ids_to_tokens(number) != str(token):
            tokenizer.add_tokens([token])
        if (found := tokenizer.get_vocab().get(str(token))) != number:
            raise ReaderError(f"'{folder}' adds the token '{token}' as {number}; it would become {found}. "
                              "tokenizer.model and tokenizer_config.json do not belong together.")  # fmt: skip
    return tokenizer


def _added(folder: Path, config: dict[str, Any]) -> list[tuple[int, AddedToken]]:
    """Tokens beside those of the vocabulary, by number."""
    if (table := config.get("added_tokens_decoder")) is None:
        plain = folder / "added_tokens.json"
        table = {n: {"content": text} for text, n in _json(plain).items()} if plain.is_file() else {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        found = [
            (int(number), AddedToken(one["content"], **{f: bool(one[f]) for f in flags if f in one}))
            for number, one in table.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReaderError(f"The added tokens of '{folder}' cannot be read ({error}). Get the model again.") from None
    return sorted(found, key=lambda pair: pair[0])


def _text(value: Any) -> Any:
    """A setting as it is; of a token with flags its text."""
    return value["content"] if isinstance(value, dict) else value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ReaderError(f"'{path.parent}' has no {path.name}. Get the model again.") from None
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    if not isinstance(content, dict):
        raise ReaderError(f"'{path}' should hold one JSON object. Get the model again.")
    return content


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in order of their numbers, and the pairs that are joined, first come first joined."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.model; ReaderError where it is missing, damaged, or none of BPE."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == PIECES]
        kinds = [dict(_fields(_bytes(value))).get(MODEL_TYPE) for number, value in fields if number == TRAINER]
    except FileNotFoundError:
        raise ReaderError(f"'{path.parent}' has neither tokenizer.json nor {path.name}. Get the model again.") from None
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}). Get the model again.") from None
    except (ValueError, IndexError, struct.error) as error:
        raise ReaderError(f"'{path}' is damaged ({error}). Get the model again.") from None
    if not pieces or kinds != [BPE]:
        raise ReaderError(f"'{path}' is not a SentencePiece vocabulary of byte pairs. Get the model again.")
    ids = {text: number for number, (text, _, _) in enumerate(pieces)}
    return Vocabulary(ids, _merges(ids, {text: score for text, score, kind in pieces if kind == NORMAL}))


def _merges(ids: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces of `scores` to a third, best score of the whole first.

    SentencePiece joins the neighbours whose whole scores best; a table of pairs in that order does the same.
    """
    found = []
    for whole, score in scores.items():
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in scores and right in scores:
                found.append((-score, ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _piece(content: int | bytes) -> tuple[str, float, int]:
    """Text, score and type of a piece."""
    parts = dict(_fields(_bytes(content)))
    (score,) = struct.unpack("<f", _bytes(parts.get(SCORE, b"\0\0\0\0")))
    kind = parts.get(TYPE, NORMAL)
    return _bytes(parts.get(TEXT, 0)).decode(), float(score), kind if isinstance(kind, int) else 0


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text should be")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message: whole numbers as int, anything else as its bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = _varint(content, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at + size > len(content):
            raise ValueError(f"cut short at byte {len(content)}")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = shift = 0
    while shift < 64:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError(f"a number too long at byte {at}")
