"""Stopping: within a word, and in the midst of reading the prompt and of encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.stopping import stoppable
from MedVLMReaderLib.study import Stopped


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return load(tiny_model)


def after(count: int) -> Callable[[], bool]:
    """Says stop once it was asked so many times."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def test_encoding_is_stopped_between_parts_and_can_be_done_again(reader, body_ct):
    for count in (0, 1, 30):
        with pytest.raises(Stopped):
            reader.see(body_ct, stopped=after(count))
    calls = []
    reader.see(body_ct, stopped=lambda: bool(calls.append(0)))
    assert len(calls) > 60  # three planes, each through every layer
    assert not any(part._forward_pre_hooks for part in reader.model.modules())


def test_a_prompt_is_stopped_between_layers_and_the_reading_is_empty(reader, body_ct):
    seen = reader.see(body_ct)
    entered = []
    (layer,) = reader.model.decoder.model.layers
    handle = layer.register_forward_pre_hook(lambda *_: entered.append(0))
    (reading,) = reader.ask(seen, "Is there a nodule?", stopped=after(2))
    handle.remove()
    assert isinstance(reading, Reading)
    assert (reading.text, reading.complete, reading.traces) == ("", False, ())
    assert not entered


def test_no_word_comes_after_the_stop(reader, body_ct):
    seen, words = reader.see(body_ct), []
    for part in reader.ask(seen, "Is there a nodule?", stopped=lambda: len(words) >= 2):
        words.append(part)
    assert [type(part) for part in words] == [str, str, Reading]
    assert not words[-1].complete


def test_heatmaps_are_stopped_and_the_text_is_whole(reader, body_ct):
    seen, words = reader.see(body_ct), []
    calls = []

    def late() -> bool:
        calls.append(0)
        return len(words) == len(written) and len(calls) > looked + 3

    written = list(reader.ask(seen, "Is there a nodule?", options=Options(heatmaps=False)))[:-1]
    looked = 10**9
    for part in reader.ask(seen, "Is there a nodule?", stopped=late):
        words.append(part)
        if len(words) == len(written):
            looked = len(calls)
    reading = words[-1]
    assert isinstance(reading, Reading)
    assert reading.complete
    assert reading.traces == ()


def test_what_is_no_network_is_left_alone():
    with stoppable(object(), lambda: True):
        pass
    with pytest.raises(Stopped), stoppable(nn.Linear(1, 1), lambda: True) as _:
        raise Stopped
