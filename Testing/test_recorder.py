"""The attention recorder: the rows of eager attention for any decoder, at no change to it, sinks left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.attention import Attended, attended, attention, heads_of, relative
from MedVLMReaderLib.quantise import bitsandbytes
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.study import Prompt
from MedVLMReaderLib.weights import new_decoder
from Testing.tiny_m3d import write_tiny_m3d

WIDTH, VISUAL, IDS = 32, (3, 4, 5, 6, 7, 8, 9, 10, 11), [3, 7, 9, 11, 2]
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "qwen2": {},
    "llama": {},
    "phi3": {"sliding_window": 17, "original_max_position_embeddings": 128},
    "gemma3": {
        "head_dim": 8, "sliding_window": 17, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
    },
}  # fmt: skip


@dataclass
class Bare:
    """A decoder with a prompt that is at hand."""

    decoder: Any
    inputs: Tensor
    visual: tuple[int, ...] = VISUAL

    def prompt(self, _seen: Any, _messages: Any) -> Prompt:
        return Prompt(self.inputs, self.visual)

    @property
    def tokens(self) -> Tensor:
        return self.inputs[0, list(self.visual)]


def decoder_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, **FAMILIES[kind], **changes}
    if kind == "gemma3":
        decoder: Any = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))
    else:
        decoder = new_decoder({"model_type": kind, "tie_word_embeddings": False, **sizes})
    for weight in decoder.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)
    return decoder.eval()


def bare(kind: str, **changes: Any) -> Bare:
    decoder = decoder_of(kind, **changes)
    return Bare(decoder, torch.randn(1, 20, decoder.config.hidden_size))


def eager(one: Bare) -> Tensor:
    """(layers, heads, tokens, visual tokens) of the answer, from whole matrices."""
    one.decoder.set_attn_implementation("eager")
    told = one.decoder.get_input_embeddings()(torch.tensor(IDS))[None]
    with torch.no_grad():
        out = one.decoder(inputs_embeds=torch.cat([one.inputs, told], 1), output_attentions=True)
    first = one.inputs.shape[1] - 1
    return torch.stack([part[0, :, first : first + len(IDS), list(one.visual)] for part in out.attentions])


def each() -> list[tuple[int, int]]:
    return [(n, n + 1) for n in range(len(IDS))]


def look(one: Bare, rows: list[tuple[int, int]] | None = None) -> Attended:
    return attended(one, one, (), IDS, rows or each())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_are_those_of_eager_attention_while_fused_kernels_stay(kind):
    one = bare(kind)
    assert one.decoder.config._attn_implementation == "sdpa"
    found = look(one)
    assert one.decoder.config._attn_implementation == "sdpa"
    assert found.weights.max() > 0.03
    torch.testing.assert_close(found.weights, eager(one), atol=1e-3, rtol=0)


def test_the_decoder_answers_as_before_and_keeps_no_hook():
    one = bare("qwen2")
    with torch.no_grad():
        before = one.decoder(inputs_embeds=one.inputs).logits
        look(one)
        torch.testing.assert_close(one.decoder(inputs_embeds=one.inputs).logits, before, atol=0, rtol=0)
    assert not any(module._forward_pre_hooks for module in one.decoder.modules())


def test_it_is_left_as_it_was_even_when_the_pass_fails():
    one = bare("llama")
    one.inputs = torch.randn(1, 20, WIDTH + 1)
    with pytest.raises(RuntimeError):
        look(one)
    assert one.decoder.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in one.decoder.modules())


def test_a_row_of_several_tokens_is_their_mean():
    one = bare("qwen2")
    single, joined = look(one).weights, look(one, [(1, 4), (0, 5)]).weights
    torch.testing.assert_close(joined[:, :, 0], single[:, :, 1:4].mean(2))
    torch.testing.assert_close(joined[:, :, 1], single.mean(2))


def test_long_answers_are_looked_up_piece_by_piece(monkeypatch):
    one = bare("gemma3")
    whole = look(one, [(0, 3), (2, 5)]).weights
    monkeypatch.setattr("MedVLMReaderLib.attention.CHUNK", 1)
    torch.testing.assert_close(look(one, [(0, 3), (2, 5)]).weights, whole)


def test_chosen_heads_are_averaged_as_they_come():
    one = bare("llama")
    every, heads = look(one), [(0, 1), (2, 3), (2, 0)]
    some = attention(one, one, (), IDS, each(), heads)  # type: ignore[arg-type]
    torch.testing.assert_close(some.weights, every.mean(heads))
    torch.testing.assert_close(some.share, torch.stack([every.share[head] for head in heads]).mean(0))
    assert ((every.share > 0) & (every.share <= 1 + 1e-6)).all()


def test_in_16_bits_the_rows_are_nearly_the_same():
    one = bare("qwen2")
    full = look(one).weights
    one.decoder, one.inputs = one.decoder.bfloat16(), one.inputs.bfloat16()
    small = look(one).weights
    assert small.dtype == torch.float32
    assert (small - full).abs().mean() < 0.01


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_with_fewer_bits_the_rows_are_those_of_its_own_eager_attention(precision, tmp_path):
    pytest.importorskip("bitsandbytes", reason="8 and 4 bits need bitsandbytes")
    bitsandbytes()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    reader = load(write_tiny_m3d(tmp_path / "tiny", **sizes), precision=precision, device="cpu")
    torch.manual_seed(0)
    one = Bare(reader.model.decoder, torch.randn(1, 20, 128, dtype=torch.bfloat16))
    assert {type(part).__name__ for part in one.decoder.modules()} & {"Int8Linear", "Nf4Linear"}
    torch.testing.assert_close(look(one).weights, eager(one).float(), atol=1e-2, rtol=0)


def test_tokens_count_as_much_as_they_are_told_to():
    one = bare("qwen2")
    single, rows = look(one).weights, [(1, 4), (0, 5), (0, 2)]
    counts = torch.tensor([0.0, 0.0, 3.0, 1.0, 0.0])
    joined = attended(one, one, (), IDS, rows, counts=counts).weights  # type: ignore[arg-type]
    wanted = 0.75 * single[:, :, 2] + 0.25 * single[:, :, 3]
    torch.testing.assert_close(joined[:, :, 0], wanted)
    torch.testing.assert_close(joined[:, :, 1], wanted)
    torch.testing.assert_close(joined[:, :, 2], single[:, :, :2].mean(2))  # none of these counts: all alike


def test_a_token_with_the_massive_numbers_of_the_first_one_is_a_sink():
    one = bare("qwen2", hidden_size=512)
    plain = look(one)
    assert not plain.sinks.any()
    one.inputs[0, 0, 77] = one.inputs[0, 5, 77] = 2000.0  # position 5 is the third visual token
    one.inputs[0, 8, 78] = 2000.0  # massive too, but in a dimension of its own
    found = look(one)
    assert found.sinks[0].tolist() == [n == 2 for n in range(len(VISUAL))]
    assert (found.without_sinks()[0, :, :, 2] == 0).all()
    torch.testing.assert_close(found.share, found.weights.sum(-1))
    first = [(0, head) for head in range(4)]
    assert attention(one, one, (), IDS, each(), first).weights[:, 2].sum() == 0  # type: ignore[arg-type]


def test_where_all_tokens_are_sinks_none_is_left_out():
    sinks = torch.ones(2, 3, dtype=torch.bool)
    weights = torch.rand(2, 4, 5, 3)
    torch.testing.assert_close(Attended(weights, sinks).without_sinks(), weights)


def test_layers_and_heads_are_chosen_by_number_and_others_are_refused():
    decoder = decoder_of("qwen2")
    assert heads_of(decoder) == tuple((layer, head) for layer in (1, 2) for head in range(4))
    assert heads_of(decoder, slice(2, None), [1]) == ((2, 1),)
    assert heads_of(decoder, [0, 2], [3]) == ((0, 3), (2, 3))
    for layers, heads in (([3], None), (None, [4]), ([-1], [0]), (slice(5, 9), None), ([], None)):
        with pytest.raises(ReaderError, match="layers 0 to 2 with heads 0 to 3"):
            heads_of(decoder, layers, heads)


def test_relative_attention_is_a_multiple_of_the_generic_one():
    generic = torch.tensor([[0.4, 0.1, 0.0, 0.1]])
    found = relative(torch.tensor([[0.4, 0.2, 0.0, 0.1]]), generic)
    assert found.argmax() == 1
    assert found.isfinite().all()
    assert found[0, 2] == 0
