"""Memory known before loading, the best precision that fits, and what is said where none does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from MedVLMReaderLib import ReaderError, choice, memory
from MedVLMReaderLib.choice import check_possible, chosen_device, loaded, possible, precisions_of
from MedVLMReaderLib.memory import PRECISIONS, DecoderShape, free_memory, needed
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.weights import Checkpoint, filled_decoder, new_decoder
from Testing.random_decoder import TINY, random_shards

KINDS: list[dict[str, Any]] = [
    TINY, {**TINY, "tie_word_embeddings": True}, {**TINY, "model_type": "llama"}, {**TINY, "model_type": "phi3"},
]  # fmt: skip


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config["model_type"])
def test_parameters_are_counted_from_sizes_alone(config):
    extra = {"pad_token_id": 0} if config["model_type"] == "phi3" else {}
    with torch.device("meta"):
        model = new_decoder({**config, **extra})
    counted = DecoderShape.from_config(config).parameters
    assert abs(counted / sum(p.numel() for p in model.parameters()) - 1) < 0.01


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_take_what_was_foreseen(precision):
    config = {**TINY, "hidden_size": 256, "intermediate_size": 768, "vocab_size": 1000}
    model = filled_decoder(config, random_shards(config), precision)
    kept = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert abs(needed(DecoderShape.from_config(config), precision).weights / kept - 1) < 0.03


def test_fewer_bits_need_less_and_a_longer_chat_needs_more():
    decoder = DecoderShape.from_config(CARDS["med3dvlm"].decoder)
    totals = [needed(decoder, precision).total for precision in PRECISIONS]
    assert totals == sorted(totals, reverse=True)
    assert needed(decoder, "nf4", context=8192).cache == 4 * needed(decoder, "nf4", context=2048).cache


@pytest.mark.parametrize("change", [{"hidden_size": None}, {"num_attention_heads": 0}, {"vocab_size": "many"}])
def test_sizes_that_are_none_are_told(change):
    with pytest.raises(ReaderError, match="sizes"):
        DecoderShape.from_config({**TINY, **change})


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.decoder])
def test_the_decoder_of_every_card_fits_in_the_parameters_that_the_card_names(name):
    card = CARDS[name]
    assert DecoderShape.from_config(card.decoder).parameters < card.parameters


def test_free_memory_is_less_than_all_there_is():
    assert 1 << 20 < free_memory() < 1 << 50


def checkpoint_of(folder: Path) -> Checkpoint:
    return Checkpoint(folder, "tiny", "0")


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(choice, "free_memory", lambda _: int(size))


def test_the_best_that_fits_is_chosen(tiny_model, monkeypatch):
    sizes = choice._bytes(checkpoint_of(tiny_model), PRECISIONS, choice.Shards.open(tiny_model).shapes)
    for precision in ("fp32", "bf16", "int8", "nf4"):
        free(monkeypatch, sizes[precision])
        reader = load(tiny_model)
        assert reader.checkpoint is not None
        assert sizes[reader.checkpoint.precision] <= sizes[precision]
    assert precisions_of(checkpoint_of(tiny_model)) == tuple(p for p in PRECISIONS if sizes[p] <= sizes["nf4"])


def test_memory_too_small_for_any_precision_says_what_would_be_needed(tiny_model, monkeypatch):
    free(monkeypatch, 1000)
    with pytest.raises(ReaderError, match=r"'tiny' needs .* GB in fp32, .* GB in nf4, and the memory of 'cpu' has 0.0"):
        load(tiny_model)


def test_where_memory_runs_out_on_the_way_the_next_precision_is_taken_and_said(tiny_model, body_ct):
    tried = []

    def build(checkpoint: Checkpoint) -> Any:
        tried.append(checkpoint.precision)
        if checkpoint.precision != "int8":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(tiny_model, precision="int8").model

    _, found = loaded(build, checkpoint_of(tiny_model), "auto")
    assert tried == ["fp32", "bf16", "int8"]
    assert found.precision == "int8"
    assert [note.split("; ")[-1] for note in found.notes] == [
        "the decoder is kept in bf16.", "the decoder is kept in int8.",
    ]  # fmt: skip


def test_sizes_that_a_configuration_leaves_out_are_taken_from_the_card_or_guessed(tiny_model, tmp_path, monkeypatch):
    import json
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["decoder"]["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    shapes = choice.Shards.open(folder).shapes
    guessed = choice._bytes(Checkpoint(folder, "tiny", "0"), PRECISIONS, shapes)
    assert sorted(guessed.values(), reverse=True) == list(guessed.values())
    named = choice._bytes(Checkpoint(folder, "medgemma-1.5", "0"), PRECISIONS, shapes)
    assert named["nf4"] > 2e9


def test_where_memory_runs_out_in_every_precision_it_is_an_answer_and_no_crash(tiny_model):
    def build(checkpoint: Checkpoint) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ReaderError, match="in nf4, the smallest that is left"):
        loaded(build, checkpoint_of(tiny_model), "auto")


@pytest.mark.parametrize(
    ("precision", "device", "said"),
    [
        ("fp16", "cpu", "is not offered"), ("int4", "cpu", "is not known"), ("nf4", "mps", "needs a CPU or CUDA"),
        ("", "cpu", "is not known"),
    ],
)  # fmt: skip
def test_a_precision_that_the_machine_cannot_do_is_told_with_those_it_can(precision, device, said):
    with pytest.raises(ReaderError, match=said) as told:
        check_possible(precision, device)
    assert "can do: fp32, bf16" in str(told.value)


def test_8_bits_without_bitsandbytes_say_how_to_get_it(tiny_model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert possible("cpu") == ("fp32", "bf16")
    with pytest.raises(ReaderError, match="bitsandbytes"):
        load(tiny_model, precision="int8")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device):
    with pytest.raises(ReaderError, match=f"device '{device}'"):
        chosen_device(device)


def test_the_first_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert chosen_device(None) == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device(None) == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(None) == "cuda"


def test_a_decoder_of_more_than_a_billion_parameters_is_not_kept_in_32_bits_unless_asked(tiny_model, monkeypatch):
    monkeypatch.setattr(choice, "SMALL", 1000)
    reader = load(tiny_model)
    assert reader.checkpoint is not None
    assert reader.checkpoint.precision == "bf16"


def test_the_gpus_memory_is_read_from_its_drivers_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '1000\\n24000\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert memory.gpu_memory() == [1000 << 20, 24000 << 20]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_a_model_reads_on_the_gpu(tiny_model, body_ct, precision):
    reader = load(tiny_model, device="cuda", precision=precision)
    seen = reader.see(body_ct)
    assert seen.tokens.device.type == "cuda"
    reading = reader.report(seen)
    assert reading.options["device"] == "cuda"
    assert math.isfinite(float(abs(reading.traces[0].weights).max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_the_gpu_writes_what_the_cpu_writes(precision):
    scores = {}
    for device in ("cpu", "cuda"):
        model = filled_decoder(TINY, random_shards(TINY), precision, device)
        with torch.no_grad():
            scores[device] = model(torch.arange(20, device=device)[None]).logits.float().cpu()
    assert float((scores["cuda"] - scores["cpu"]).norm() / scores["cpu"].norm()) < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_the_gpu_is_what_was_foreseen():
    config = {**TINY, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 32000}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = filled_decoder(config, random_shards(config), "bf16", "cuda")
    with torch.no_grad():
        model(torch.arange(256, device="cuda")[None], logits_to_keep=1)
    peak = torch.cuda.max_memory_allocated() - before
    estimate = needed(DecoderShape.from_config(config), "bf16", context=256, prompt=256, device="cuda").total
    assert abs(estimate / peak - 1) < 0.15
