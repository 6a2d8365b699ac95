"""What the decoder remembers from one question to the next: the same answers, less to read, never another image's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from MedVLMReaderLib.attention import attended
from MedVLMReaderLib.models import huggingface, m3d_lamed
from MedVLMReaderLib.prefix import READ_AGAIN, Prefix, cut, cuttable, size
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint
from Testing.made_scans import oblique_grid
from Testing.models.tiny_vlms import write_vlm
from Testing.tiny_m3d import write_tiny_m3d

QUESTIONS = ("Is there a nodule?", "Is the lung clear?", "Is there a nodule in the lung?")
KINDS = ("qwen2", "phi3", "llama", "gemma3", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
WORDS = 12


def scan_of(seed: int) -> Volume:
    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))
    return Volume(np.random.default_rng(seed).integers(-120, 220, grid.shape).astype(np.int16), grid, "CT", "made")


@dataclass
class Lengths:
    """How many positions each call of a decoder reads."""

    read: list[int] = field(default_factory=list)

    def __call__(self, _module: nn.Module, _given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = named.get("inputs_embeds")
        self.read.append(1 if inputs is None else inputs.shape[1])


@pytest.fixture(scope="module", params=KINDS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A tiny model of each kind, whose random weights write something lively."""
    folder = tmp_path_factory.mktemp("prefix") / request.param
    if request.param == "qwen2":
        made = load(request.getfixturevalue("tiny_model"))
        return livelier(made)
    if request.param in ("phi3", "llama"):
        write_tiny_m3d(folder, model_type=f"lamed_{request.param}", max_position_embeddings=2048)
        return livelier(Reader(m3d_lamed.load(Checkpoint(folder, "tiny", "0"))))
    write_vlm(folder, request.param)
    model = huggingface.load(Checkpoint(folder, "tiny", "0"))
    model.recipe = replace(model.recipe, most=4)
    return Reader(model)


def livelier(reader: Reader) -> Reader:
    """The reader with random weights under which each question has an answer of its own."""
    torch.manual_seed(5)
    for part in reader.model.decoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1.5 * part.in_features**-0.5)
    return reader


@pytest.fixture(scope="module")
def seen(reader: Reader) -> Seen:
    scan = scan_of(1)
    r, a, s = (float(x) for x in scan.grid.centre)
    return reader.see(scan, View(400.0, 40.0, (r, a, s)))


@pytest.fixture
def lengths(reader: Reader) -> Iterator[Lengths]:
    found = Lengths()
    reader.prefix = Prefix()
    handle = reader.model.decoder.register_forward_pre_hook(found, with_kwargs=True)
    yield found
    handle.remove()


def tokens(reader: Reader, seen: Seen, messages: list[Message], count: int = WORDS) -> list[int]:
    return list(islice(reader._tokens(seen, messages, Options()), count))


def chat(reader: Reader, seen: Seen, *, forget: bool) -> list[list[int]]:
    """The tokens of each answer of a chat of three questions; the second is then asked anew, and the first."""
    messages: list[Message] = []
    found = []
    for question in QUESTIONS:
        messages.append(Message("user", question))
        if forget:
            reader.prefix = Prefix()
        found.append(tokens(reader, seen, messages))
        messages.append(Message("assistant", reader.model.tokenizer.decode(found[-1], skip_special_tokens=True)))
    for again in (messages[:3], messages[:1]):
        if forget:
            reader.prefix = Prefix()
        found.append(tokens(reader, seen, list(again)))
    return found


def test_what_is_remembered_changes_no_token(reader: Reader, seen: Seen, lengths: Lengths) -> None:
    fresh = chat(reader, seen, forget=True)
    before, lengths.read = sum(lengths.read), []
    kept = chat(reader, seen, forget=False)
    assert kept == fresh
    assert len({tuple(one) for one in fresh}) > 1
    assert sum(lengths.read) < before - 4 * len(seen.tokens) + 1


def test_of_another_image_nothing_is_taken(reader: Reader, seen: Seen, lengths: Lengths) -> None:
    ask = [Message("user", QUESTIONS[0])]
    tokens(reader, seen, ask)
    lengths.read.clear()
    tokens(reader, replace(seen, key="another"), ask, 1)  # the same numbers under another key
    tokens(reader, seen, ask, 1)
    tokens(reader, replace(seen, tokens=seen.tokens + 0.01), ask, 1)  # other numbers under the same key
    whole = reader.model.prompt(seen, ask).inputs.shape[1]
    assert [length for length in lengths.read if length > 1] == [whole] * 3


def test_another_scan_answers_as_if_nothing_had_been_kept(reader: Reader, seen: Seen, lengths: Lengths) -> None:
    scan, ask = scan_of(2), [Message("user", QUESTIONS[0])]
    r, a, s = (float(x) for x in scan.grid.centre)
    other = reader.see(scan, View(400.0, 40.0, (r, a, s)))
    assert other.key != seen.key
    whole = reader.model.prompt(other, ask).inputs.shape[1]
    fresh = tokens(reader, other, ask)
    tokens(reader, seen, ask)
    lengths.read.clear()
    assert tokens(reader, other, ask) == fresh
    assert lengths.read[0] == whole
    with torch.no_grad():
        assert reader.prefix.lent(seen.key, reader.model.prompt(seen, ask)) is None


def eager(reader: Reader, seen: Seen, messages: list[Message], ids: list[int]) -> torch.Tensor:
    """(layers, heads, tokens, visual tokens) of an answer, from whole matrices."""
    prompt, decoder = reader.model.prompt(seen, messages), reader.model.decoder
    told = decoder.get_input_embeddings()(torch.tensor(ids[:-1], dtype=torch.long))
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        out = decoder(
            inputs_embeds=torch.cat([prompt.inputs, told[None].to(prompt.inputs)], 1), output_attentions=True,
            use_cache=False, **prompt.with_answer(len(told)),
        )  # fmt: skip
    decoder.set_attn_implementation(before)
    first = prompt.inputs.shape[1] - 1
    return torch.stack([one[0, :, first : first + len(ids), list(prompt.visual_positions)] for one in out.attentions])


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read anew"])
def test_rows_of_readers_decoders_are_those_of_eager_attention(reader: Reader, seen: Seen, kept: bool) -> None:
    messages = [Message("user", QUESTIONS[0])]
    ids = tokens(reader, seen, messages)
    with torch.no_grad():
        lent = reader.prefix.lent(seen.key, reader.model.prompt(seen, messages)) if kept else None
    found = attended(reader.model, seen, messages, ids, [(n, n + 1) for n in range(len(ids))], lent)
    torch.testing.assert_close(found.weights, eager(reader, seen, messages, ids), atol=1e-3, rtol=0)


def test_the_same_question_again_reads_one_position(reader: Reader, seen: Seen, lengths: Lengths) -> None:
    ask = [Message("user", QUESTIONS[0])]
    first = tokens(reader, seen, ask)
    lengths.read.clear()
    assert tokens(reader, seen, ask) == first
    assert lengths.read[0] == 1


def test_attention_is_looked_up_on_top_of_what_is_kept_and_takes_nothing_of_it(
    reader: Reader, seen: Seen, lengths: Lengths
) -> None:
    messages = [Message("user", QUESTIONS[0])]
    ids = tokens(reader, seen, messages)
    rows = [(0, 1), (2, len(ids))]
    with torch.no_grad():
        lent = reader.prefix.lent(seen.key, reader.model.prompt(seen, messages))
    assert lent is not None
    lengths.read.clear()
    short = attended(reader.model, seen, messages, ids, rows, lent)
    assert lengths.read == [len(ids)]
    whole = attended(reader.model, seen, messages, ids, rows)
    torch.testing.assert_close(short.weights, whole.weights, atol=1e-4, rtol=0)
    assert torch.equal(short.sinks, whole.sinks)
    lengths.read.clear()
    assert tokens(reader, seen, messages) == ids
    assert lengths.read[0] == 1


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Reader:
    return load(tiny_model)


def answer(reader: Reader, seen: Seen, **more: Any) -> Reading:
    *_, reading = reader.ask(seen, QUESTIONS[0], **more)
    assert isinstance(reading, Reading)
    return reading


def test_where_memory_is_short_nothing_is_kept_and_the_next_answer_says_so(tiny: Reader, body_ct: Volume) -> None:
    tiny.prefix = Prefix(free=lambda _device: 10)
    seen = tiny.see(body_ct)
    first = answer(tiny, seen)
    assert tiny.prefix.held is None
    again = answer(tiny, seen)
    assert READ_AGAIN not in first.notes
    assert again.notes == (*seen.notes, READ_AGAIN)
    assert again.text == first.text


def test_memory_that_runs_out_while_reading_gives_up_what_was_kept(tiny: Reader, body_ct: Volume) -> None:
    tiny.prefix = Prefix()
    seen = tiny.see(body_ct)
    first = answer(tiny, seen)
    shared = len(seen.tokens)

    def full(_module: nn.Module, _given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = named.get("inputs_embeds")
        if inputs is not None and inputs.shape[1] < shared:  # on top of the kept cache
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = tiny.model.decoder.register_forward_pre_hook(full, with_kwargs=True)
    again = answer(tiny, seen)
    handle.remove()
    assert again.text == first.text
    assert READ_AGAIN in again.notes


def test_an_error_that_is_not_about_memory_is_told_as_it_is(tiny: Reader, body_ct: Volume) -> None:
    seen = tiny.see(body_ct)
    answer(tiny, seen)

    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    handle = tiny.model.decoder.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        answer(tiny, seen)
    handle.remove()
    assert answer(tiny, seen).complete


def test_a_stopped_prompt_leaves_a_memory_that_answers_as_before(tiny: Reader, body_ct: Volume) -> None:
    seen = tiny.see(body_ct)
    tiny.prefix = Prefix()
    whole = answer(tiny, seen).text
    for parts in (1, 3, 9):  # looked at so many times before it stops, in the middle of a layer's work
        asked = iter(range(parts))
        cut_off = answer(tiny, seen, stopped=lambda asked=asked: next(asked, None) is None)
        assert (cut_off.text, cut_off.complete) == ("", False)
        assert answer(tiny, seen).text == whole


def test_a_cache_is_cut_layer_by_layer_to_one_length(tiny: Reader, body_ct: Volume) -> None:
    tiny.prefix = Prefix()
    answer(tiny, tiny.see(body_ct))
    assert tiny.prefix.held is not None
    cache = tiny.prefix.held.cache
    before = size(cache)
    cut(cache, 5)
    cut(cache, 9)
    assert {layer.get_seq_length() for layer in cache.layers} == {5}
    assert size(cache) < before


def test_positions_that_change_as_a_text_grows_are_not_kept(tiny: Reader) -> None:
    cache, config = Prefix().taken("", tiny_prompt(tiny)).cache, tiny.model.decoder.config
    assert cuttable(cache, config)
    for kind in ("dynamic", "longrope"):
        changed = copy.deepcopy(config)
        changed.rope_parameters = {"rope_type": kind, "rope_theta": 1e4}
        assert not cuttable(cache, changed)


def tiny_prompt(reader: Reader) -> Any:
    return reader.model.prompt(reader.see(scan_of(1)), [Message("user", "x")])
