"""Model folders: what is wrong with one is said by name before anything of it runs or takes memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.ms_vlm import NAMES
from MedVLMReaderLib.weights import renamed
from Testing.model_folders import load


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoiled."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def config_with(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def tensors_with(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder: Path) -> str:
    """What the user is told."""
    with pytest.raises(ReaderError) as told:
        load(folder, "spoiled")
    return str(told.value)


def test_a_missing_tensor_is_named(folder):
    tensors_with(folder, lambda tensors: tensors.pop("bridge.to_decoder.bias"))
    assert "lacks the tensor 'bridge.to_decoder.bias'" in refused(folder)


def test_a_tensor_too_many_is_named(folder):
    tensors_with(folder, lambda tensors: tensors.update({"bridge.adapter": torch.zeros(2)}))
    assert "'bridge.adapter'" in refused(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    tensors_with(folder, lambda tensors: tensors.update({"bridge.to_decoder.bias": torch.zeros(63)}))
    told = refused(folder)
    assert "'bridge.to_decoder.bias'" in told
    assert "(63,)" in told
    assert "(64,)" in told


@pytest.mark.parametrize("where", ["", "decoder", "sizes", "zformer", "recipe", "template"])
def test_a_field_that_is_not_allowed_is_named(folder, where):
    def change(config: dict[str, Any]) -> None:
        place = config["sizes"]["zformer"] if where == "zformer" else config[where] if where else config
        place["auto_map"] = {"AutoModel": "model.py--Model"}

    config_with(folder, change)
    told = refused(folder)
    assert "auto_map" in told
    assert "not allowed" in told


@pytest.mark.parametrize("where", ["sizes", "recipe", "template", "decoder", "reads"])
def test_a_part_of_the_configuration_that_is_missing_is_named(folder, where):
    config_with(folder, lambda config: config.pop(where))
    assert where in refused(folder)


@pytest.mark.parametrize(("where", "field"), [("recipe", "windows_ct"), ("recipe", "size"), ("template", "turn")])
def test_a_field_that_is_missing_is_named(folder, where, field):
    config_with(folder, lambda config: config[where].pop(field))
    assert field in refused(folder)


@pytest.mark.parametrize("kind", ["gpt2", None, 7, ["qwen2"]])
def test_a_decoder_that_is_not_known_is_refused_and_the_known_are_listed(folder, kind):
    config_with(folder, lambda config: config["decoder"].update(model_type=kind))
    assert "llama, opt, phi3, qwen2" in refused(folder)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("decoder", "hidden_size", 1 << 40),
        ("decoder", "vocab_size", 1 << 20),  # below the limit, yet terabytes if it were built
        ("decoder", "intermediate_size", 1 << 20),
        ("decoder", "num_hidden_layers", 1_000_000),
        ("decoder", "hidden_size", -64),
        ("decoder", "hidden_size", "64"),
        ("decoder", "hidden_size", float("nan")),
        ("decoder", "num_attention_heads", 0),
        ("decoder", "num_key_value_heads", 5),
        ("decoder", "hidden_act", "__import__"),
        ("decoder", "vocab_size", None),
        ("sizes", "slice_width", 1 << 20),
        ("sizes", "perceiver_width", 1 << 19),
        ("sizes", "slice_depth", 1 << 19),
        ("sizes", "slice_heads", 0),
        ("sizes", "latents", -1),
        ("sizes", "patch", 0),
        ("sizes", "patch", 7),
        ("sizes", "table", 33),
        ("sizes", "channels", 4),
        ("sizes", "context", 1),
        ("sizes", "stem", [8, 8, 8, 8]),
        ("sizes", "stem", "wide"),
        ("sizes", "zformer", 3),
        ("recipe", "size", 36),
        ("recipe", "size", 1 << 20),
        ("recipe", "slice_mm", [1e-9, 20.0, 20.0]),
        ("recipe", "windows_ct", [[0.0, 1.0]]),
        ("template", "turn", "no place for a question"),
        ("template", "start", "{image}{image}"),
        ("template", "end", 3),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_memory_is_taken(folder, where, field, value):
    config_with(folder, lambda config: config[where].update({field: value}))
    told = refused(folder)
    assert len(told) < 600
    assert told.endswith((".", "!"))


def test_zformer_sizes_that_no_model_has_are_refused(folder):
    config_with(folder, lambda config: config["sizes"]["zformer"].update(num_hidden_layers=1 << 19))
    assert "num_hidden_layers" in refused(folder)


@pytest.mark.parametrize("part", ["decoder", "sizes", "recipe", "template"])
@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_a_part_that_is_no_object_is_refused(folder, part, value):
    config_with(folder, lambda config: config.update({part: value}))
    refused(folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"system": "m3d"}])
def test_a_folder_of_another_format_or_system_is_refused(folder, change):
    config_with(folder, lambda config: config.update(change))
    assert "not an MS-VLM of format 1" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", '"model"', "", "\x00\x01"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"no {name}" in refused(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_weights_file_is_told(folder, share):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    told = refused(folder)
    assert "model.safetensors" in told
    assert "damaged" in told


def test_another_kind_of_file_for_weights_is_never_opened_as_python(folder):
    torch.save({"bridge.to_decoder.bias": torch.zeros(64)}, folder / "model.safetensors")
    assert "damaged" in refused(folder)


def test_a_broken_tokenizer_is_told(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "tokenizer.json" in refused(folder)


def test_a_tokenizer_with_more_tokens_than_the_decoder_is_told(folder):
    config_with(folder, lambda config: config["template"].update(end="<|never seen|>"))
    assert "tokenizer" in refused(folder)


def test_the_weights_are_frozen_and_ready_to_read(tiny_model):
    model = load(tiny_model, "tiny")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    stored = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_sixteen_bits_on_disk_are_thirty_two_in_memory(folder):
    tensors_with(
        folder,
        lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if t.is_floating_point()}),
    )
    assert {parameter.dtype for parameter in load(folder, "half").parameters()} == {torch.float32}


def test_tied_embeddings_are_stored_once_and_stay_tied(folder):
    config_with(folder, lambda config: config["decoder"].update(tie_word_embeddings=True))
    assert "decoder.lm_head.weight" in refused(folder)
    tensors_with(folder, lambda tensors: tensors.pop("decoder.lm_head.weight"))
    decoder = load(folder, "tied").decoder
    stored = load_file(folder / "model.safetensors")["decoder.model.embed_tokens.weight"]
    assert decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    assert torch.equal(decoder.get_output_embeddings().weight, stored)


def test_a_tied_decoder_that_does_not_say_so_lacks_its_last_tensor(folder):
    tensors_with(folder, lambda tensors: tensors.pop("decoder.lm_head.weight"))
    assert "lacks the tensor 'decoder.lm_head.weight'" in refused(folder)


def test_published_names_are_translated(folder):
    theirs = {ours: published for published, ours in NAMES.items()}
    plain = load(folder, "ours")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        named = renamed(tensors, theirs)
        tensors.clear()
        tensors.update(named)

    tensors_with(folder, change)
    assert any(name.startswith("llama_proj_chz.") for name in load_file(folder / "model.safetensors"))
    published = load(folder, "theirs").state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in plain.state_dict().items())


def test_the_revision_tells_other_weights_apart(folder, tiny_model):
    first = load(tiny_model, "tiny").revision
    assert load(folder, "copy").revision == first
    tensors_with(folder, lambda tensors: tensors["bridge.to_decoder.bias"].add_(1))
    assert load(folder, "changed").revision != first
