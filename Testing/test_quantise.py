"""Decoders in 8 and 4 bits: close to the full one, the same after saving, and with gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.manifest import FILE, Manifest
from MedVLMReaderLib.memory import Precision
from MedVLMReaderLib.quantise import Int8Linear, Nf4Linear, bitsandbytes, linears, packs, quantised_layers
from MedVLMReaderLib.reader import Options, load
from MedVLMReaderLib.weights import Shards, filled_decoder
from Testing.random_decoder import TINY, write_decoder

pytest.importorskip("bitsandbytes", reason="8 and 4 bits need bitsandbytes")
PROMPT = torch.tensor([[3, 17, 140, 5, 99, 2, 64, 7]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoders") / "tiny"
    write_decoder(folder, TINY, shard=40_000, dtype=torch.float32)
    return folder


def decoder(folder: Path, precision: Precision) -> Any:
    return filled_decoder(TINY, Shards.open(folder), precision)


def scores(model: Any, inputs: Tensor = PROMPT) -> Tensor:
    with torch.no_grad():
        return model(inputs).logits.float()


@pytest.mark.parametrize(("precision", "allowed"), [("bf16", 0.03), ("int8", 0.06), ("nf4", 0.4)])
def test_a_decoder_in_fewer_bits_writes_nearly_the_same(folder, precision, allowed):
    full, small = scores(decoder(folder, "fp32")), scores(decoder(folder, precision))
    assert float((small - full).norm() / full.norm()) < allowed


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_all_linear_layers_but_the_one_that_chooses_words_are_quantised(folder, precision):
    model = decoder(folder, precision)
    assert len(quantised_layers(model)) == 7 * TINY["num_hidden_layers"]
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert not any(tensor.device.type == "meta" for tensor in [*model.parameters(), *model.buffers()])


def test_layers_whose_sizes_do_not_fit_blocks_stay_in_16_bits(tmp_path):
    odd = {**TINY, "intermediate_size": 100}
    write_decoder(tmp_path, odd)
    model = filled_decoder(odd, Shards.open(tmp_path), "nf4")
    assert {name.split(".")[-1] for name in quantised_layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert torch.isfinite(scores(model)).all()


def weight_and_input() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(96, 128, generator=generator), torch.randn(2, 5, 128, generator=generator).bfloat16()


@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
def test_a_layer_multiplies_by_the_weights_that_its_codes_stand_for(kind):
    weight, x = weight_and_input()
    bias = torch.linspace(-1, 1, 96).bfloat16()
    layer = kind.quantised(weight, bias, "cpu")
    close = weight if kind is Int8Linear else layer.dequantised(torch.float32)
    expected = x.float() @ close.T + bias.float()
    assert float((layer(x).float() - expected).norm() / expected.norm()) < 0.015


@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
def test_the_gradient_is_that_of_the_weights_before_and_after_the_first_use(kind):
    """bitsandbytes' product of packed codes has none: relevance would go wrong without a word."""
    weight, x = weight_and_input()
    layer = kind.quantised(weight, None, "cpu")
    close = weight if kind is Int8Linear else layer.dequantised(torch.float32)
    for _ in range(2):
        x = x.detach().requires_grad_()
        out = layer(x)
        ahead = torch.randn(out.shape).bfloat16()
        (found,) = torch.autograd.grad(out, x, ahead)
        expected = ahead.float() @ close
        assert float((found.float() - expected).norm() / expected.norm()) < 0.02


def test_codes_are_those_of_bitsandbytes(folder):
    weight, _ = weight_and_input()
    codes, state = bitsandbytes().functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=False, quant_type="nf4"
    )
    plain = Nf4Linear.quantised(weight, None, "cpu").plain()
    assert torch.equal(plain["nf4"].view(-1), codes.view(-1))
    assert torch.equal(plain["absmax"].view(-1), state.absmax.bfloat16())


def test_what_is_saved_after_the_first_use_is_what_was_loaded(folder):
    """bitsandbytes reorders the codes in place, and a layer saved after that would load back wrong."""
    weight, x = weight_and_input()
    layer = Nf4Linear.quantised(weight, None, "cpu")
    before = layer.plain()
    layer(x)
    assert layer.packed == packs()
    after = layer.plain()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_large_layers_are_quantised_in_pieces_with_the_same_codes(monkeypatch):
    weight, x = weight_and_input()
    whole = {kind: kind.quantised(weight, None, "cpu") for kind in (Int8Linear, Nf4Linear)}
    expected = whole[Nf4Linear](x)
    monkeypatch.setattr("MedVLMReaderLib.quantise.PIECE", 128 * 33)
    for kind, layer in whole.items():
        pieces, plain = kind.quantised(weight, None, "cpu"), layer.plain()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in pieces.plain().items())
    in_groups = Nf4Linear.quantised(weight, None, "cpu")
    assert torch.equal(in_groups(x), expected)
    assert torch.equal(in_groups.plain()["nf4"], whole[Nf4Linear].plain()["nf4"])


def test_without_bitsandbytes_the_way_to_get_it_is_said(monkeypatch, folder):
    bitsandbytes.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ReaderError, match=r"pip install 'medvlmreader\[quantised\]'"):
        decoder(folder, "nf4")


def test_a_package_that_would_download_code_is_not_found_by_bitsandbytes(tmp_path):
    import subprocess
    import sys

    (tmp_path / "kernels.py").write_text("raise SystemExit('downloaded')")
    program = (
        "import sys\nfrom MedVLMReaderLib.quantise import bitsandbytes\n"
        "bitsandbytes()\nassert 'kernels' not in sys.modules"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_linears_leave_out_what_chooses_words(folder):
    model = decoder(folder, "fp32")
    assert "lm_head" in linears(model, None)
    assert "lm_head" not in linears(model, model.lm_head)


# Copies


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model in 4 bits, saved after it has read."""
    reader = load(tiny_model, precision="nf4")
    scores(reader.model.decoder)
    reader.save_quantised(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_saved_copy_computes_the_same_whenever_it_was_saved(tiny_model, tmp_path, precision, when):
    reader = load(tiny_model, precision=precision)
    if when == "after":
        scores(reader.model.decoder)
    reader.save_quantised(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.checkpoint is not None
    assert (again.checkpoint.precision, again.model.name, again.model.revision) == (
        precision, "tiny", reader.model.revision,
    )  # fmt: skip
    assert torch.equal(scores(again.model.decoder), scores(reader.model.decoder))
    ours, theirs = again.model.state_dict(), reader.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_copy_of_a_copy_is_the_copy(copied, tmp_path):
    load(copied).save_quantised(tmp_path / "again")
    first, second = Manifest.load(copied / FILE), Manifest.load(tmp_path / "again" / FILE)
    assert first is not None
    assert first == second


def test_a_copy_is_read_in_the_precision_it_was_saved_in_and_in_no_other(copied, body_ct):
    reader = load(copied)
    reading = reader.report(reader.see(body_ct))
    assert reading.options["precision"] == "nf4"
    with pytest.raises(ReaderError, match="is a copy in nf4"):
        load(copied, precision="bf16")


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_copy_that_is_not_whole_is_refused(copied, how):
    path = copied / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    if how == "missing":
        path.unlink()
    with pytest.raises(ReaderError, match=r"model-00001\.safetensors is missing or of another size"):
        load(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"x.absmax": t["x.absmax"][:-1].clone()}), r"codes or scales of 'model\.layers\.0"),
        (lambda t: t.update({"x.nf4": t["x.nf4"].float()}), r"codes or scales"),
        (lambda t: t.pop("x.absmax"), r"lacks the tensor"),
        (lambda t: t.pop("x.nf4"), r"tensor 'decoder"),
        (lambda t: t.update({"x.more": t["x.nf4"].clone()}), r"x\.more|weight\.more"),
    ],
)
def test_codes_and_scales_that_are_not_the_layers_are_refused_before_anything_reads_them(copied, change, said):
    layer, file = "decoder.model.layers.0.mlp.up_proj.weight", copied / "model-00001.safetensors"
    tensors = {name.replace(layer, "x"): tensor for name, tensor in load_file(file).items()}
    change(tensors)
    tensors = {name.replace("x.", f"{layer}.") if name.startswith("x.") else name: t for name, t in tensors.items()}
    save_file(tensors, file)
    (copied / FILE).unlink()
    index = {"weight_map": dict.fromkeys(tensors, file.name)}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ReaderError, match=said):
        load(copied)


def test_only_a_quantised_model_is_copied_and_never_over_something(tiny_model, copied, tmp_path):
    with pytest.raises(ReaderError, match="Load it in int8 or nf4 first"):
        load(tiny_model).save_quantised(tmp_path / "full")
    with pytest.raises(ReaderError, match="is not empty"):
        load(copied).save_quantised(copied)


def test_a_reader_in_4_bits_says_where_it_looked(copied, body_ct):
    reader = load(copied)
    reading = reader.report(reader.see(body_ct), Options(longest=12))
    weights = reading.traces[0].weights
    assert reading.text
    assert abs(weights).max() > 0


def test_an_encoder_in_16_bits_sees_nearly_the_same(tiny_model, body_ct, monkeypatch):
    """As on CUDA."""
    full = load(tiny_model).see(body_ct).tokens
    monkeypatch.setattr("MedVLMReaderLib.weights.encoder_dtype", lambda _: torch.bfloat16)
    half = load(tiny_model, precision="bf16").see(body_ct).tokens
    assert half.dtype == torch.bfloat16
    assert float((half.float() - full).norm() / full.norm()) < 0.05
