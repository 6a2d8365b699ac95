"""Med3DVLM: the published network number by number, a published folder as it stands, and every cell where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.med3dvlm import NAMES, REPORT, Med3DVLM, Mixer, Sizes
from MedVLMReaderLib.models.one_block import IMAGE, spliced, written
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.reader import load as load_reader
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.relevance import relevance
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import new_decoder, renamed
from Testing.made_scans import oblique_grid
from Testing.parity import results
from Testing.parity_med3dvlm import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes
from Testing.tiny_med3dvlm import TINY, qwen_tokenizer, write_tiny_med3dvlm

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "Tiny-Med3DVLM"
    write_tiny_med3dvlm(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Med3DVLM:
    return load_reader(folder).model  # type: ignore[return-value]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder to be spoilt."""
    write_tiny_med3dvlm(tmp_path / "copy")
    return tmp_path / "copy"


def scan(seed: int = 0) -> Volume:
    """Turned, flipped, not cubic; soft tissue to its corners, so that nothing is cut off; some black, some white."""
    grid = oblique_grid((24, 36, 30), (5.0, 4.0, 3.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(seed).integers(-20, 100, grid.shape).astype(np.int16)
    values[9:11, 9:11, 9:11], values[13:15, 13:15, 13:15] = -160, 240
    return Volume(values, grid, "CT", "made")


# ---- The published numbers ------------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize("fixture", ["mixer_tiny", "vlm_tiny_qwen2"])
def test_it_computes_what_was_published(fixture):
    (result,) = results(PARITY, KINDS, fixture)
    assert result.right, result


@needs_parity
def test_the_published_size_has_exactly_the_published_tensors():
    with torch.device("meta"):
        decoder = new_decoder({"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 1, "vocab_size": 64,
                               "num_attention_heads": 28, "num_key_value_heads": 4})  # fmt: skip
        model = Med3DVLM(Sizes(), decoder)
    theirs = {f"model.vision_tower.vision_tower.{n}": s for n, s in listed("med3dvlm_dcformer_small").items()}
    theirs |= {f"model.mm_projector.{n}": s for n, s in listed("med3dvlm_mixer_projector_qwen7b").items()}
    theirs |= shapes(decoder)
    assert published_as(theirs) == shapes(model)


@needs_parity
def test_a_small_whole_has_exactly_the_published_names_beside_its_encoder():
    with torch.device("meta"):
        decoder = new_decoder({"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 300,
                               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2})  # fmt: skip
        ours = shapes(Med3DVLM(Sizes(), decoder))
    theirs = published_as(listed("med3dvlm_vlm_keys_tiny_nonvision"))
    assert theirs == {name: shape for name, shape in ours.items() if not name.startswith("encoder.")}


def published_as(theirs: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A published list after the table of names."""
    named = renamed({name: torch.empty(shape, device="meta") for name, shape in theirs.items()}, NAMES)
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def test_visual_tokens_stand_from_1_on_and_the_first_word_is_lost_as_published():
    told = torch.arange(9.0)[None, :, None].expand(1, 9, 2)
    out = spliced(told, torch.full((1, 4, 2), -1.0))[0, :, 0]
    assert out.tolist() == [0, -1, -1, -1, -1, 5, 6, 7, 8]  # 4, the first word after 4 image tokens, is gone


def test_a_mixer_of_three_layers_doubles_its_way_to_the_decoders_width():
    mixer = Mixer((10, 6), [9, 8, 7], (3, 4), [5, 5, 5], 32, 2)
    assert mixer(torch.randn(2, 10, 6), torch.randn(2, 3, 4)).shape == (2, 12, 32)
    assert [layer.mlp2.mm_projector[0].out_features for layer in mixer.low_mixer] == [8, 16, 32]


# ---- From scan to words ---------------------------------------------------------------------------------------------


def test_a_published_folder_is_loaded_and_asked(folder, model):
    seen = model.see([scan()])
    assert seen.tokens.shape == (TINY.tokens, 32)
    assert [len(part) for part in seen.features] == [2 * 4 * 6, 1 * 2 * 3]
    *words, reading = Reader(model).ask(seen, "Is there a stone?", options=Options(longest=6))
    assert isinstance(reading, Reading)
    assert "".join(str(word) for word in words) == reading.text
    assert reading.model == "Tiny-Med3DVLM"
    assert reading.preparation["shape"] == (64, 128, 192)
    assert any("64 x 128 x 192" in note for note in reading.notes)


def test_sizes_come_from_the_folder(model):
    assert model.sizes == TINY
    assert model.tokenizer.eos_token == "<|im_end|>"


def test_a_tokenizer_in_the_authors_own_layout_reads_the_same(tmp_path, model):
    write_tiny_med3dvlm(tmp_path / "slow", slow_tokenizer=True)
    other: Any = load_reader(tmp_path / "slow").model
    text = IMAGE * 3 + " Is there a 5 mm stone?<|im_end|> No."
    assert other.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert other.tokenizer.decode([257, 40, 256], skip_special_tokens=True) == model.tokenizer.decode([40])


def test_a_question_is_written_as_in_training(model):
    assert written([Message("user", REPORT)], REPORT, model.tokenizer.eos_token) == REPORT
    assert written([Message("user", "Where?")], REPORT, model.tokenizer.eos_token) == " Where?"
    chat = [Message("user", "Where?"), Message("assistant", "Left."), Message("user", "How large?")]
    assert written(chat, REPORT, model.tokenizer.eos_token) == " Where? Left.<|im_end|> How large?"
    assert model.report_request() == REPORT


def test_the_decoder_is_given_the_visual_tokens_where_it_says(model):
    seen = model.see([scan()])
    prompt = model.prompt(seen, [Message("user", "Where?")])
    assert prompt.visual_positions == tuple(range(1, 9))
    torch.testing.assert_close(prompt.inputs[0, 1:9], seen.tokens)
    ids = model.tokenizer(IMAGE * 8 + " Where?")["input_ids"]
    assert prompt.inputs.shape[1] == len(ids)
    embedded = model.decoder.get_input_embeddings()(torch.tensor(ids))
    torch.testing.assert_close(prompt.inputs[0, 9:], embedded[9:])


def test_the_word_for_the_image_cannot_be_asked(model):
    with pytest.raises(ReaderError, match=f"2 times the word '{IMAGE}'"):
        model.prompt(model.see([scan()]), [Message("user", f"What is {IMAGE}{IMAGE}?")])


@pytest.mark.parametrize(("volumes", "said"), [(0, "No volume"), (2, "2 volumes were given")])
def test_one_volume_is_read(model, volumes, said):
    with pytest.raises(ReaderError, match=said):
        model.see([scan()] * volumes)


def test_what_the_encoder_is_shown_can_be_looked_at_and_follows_the_window_of_the_screen(model):
    (shown,) = model.prepared([scan()])
    assert shown.grid.shape == (64, 128, 192)
    assert (shown.values.min(), shown.values.max()) == (0, 1)
    view = View(1500.0, -600.0, (0.0, 0.0, 0.0))
    seen, lung = model.see([scan()]), model.see([scan()], view)
    assert lung.preparation["window_ct"] == (-1350, 150)
    assert any("-1350 to 150 HU" in note for note in lung.notes)
    assert (lung.tokens - seen.tokens).abs().max() > 1e-4


def test_the_key_changes_with_the_voxels_the_window_the_plane_and_the_weights(model):
    other = Med3DVLM(TINY, model.decoder, model.tokenizer, revision="another").eval()
    other.encoder, other.projector = model.encoder, model.projector
    sagittal = Med3DVLM(TINY, model.decoder, model.tokenizer, revision=model.revision).eval()
    sagittal.encoder, sagittal.projector = model.encoder, model.projector
    sagittal.recipe = replace(model.recipe, plane="sagittal")
    view = View(1500.0, -600.0, (0.0, 0.0, 0.0))
    keys = [model.see([scan()]), model.see([scan(1)]), model.see([scan()], view), other.see([scan()])]
    assert model.see([scan()]).key == keys[0].key
    assert len({seen.key for seen in [*keys, sagittal.see([scan()])]}) == 5


# ---- Where things lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "cell"), [(0, (0, 0, 0)), (0, (1, 2, 4)), (0, (0, 3, 5)), (1, (0, 1, 1)), (1, (0, 0, 2))]
)
def test_the_features_of_the_cell_whose_voxels_changed_move_most(model, grid, cell):
    volume = scan()
    seen = model.see([volume])
    where = seen.token_map.grids[grid]
    places = volume.grid.to_world(np.stack(np.indices(volume.grid.shape), -1))
    inside = (np.rint(where.to_index(places)) == cell).all(-1)
    assert inside.sum() > 50
    values = volume.values.copy()
    values[inside] = 239
    moved = model.see([replace(volume, values=values)])
    change = (moved.features[grid] - seen.features[grid]).norm(dim=1) / seen.features[grid].norm(dim=1).mean()
    assert np.unravel_index(int(change.argmax()), where.shape) == cell


def test_cells_lie_around_the_first_voxel_of_their_share_of_the_block(model):
    """As everything with a stride in the encoder does; in the middle of the share would be half a cell off."""
    volume = scan()
    (shown,), seen = model.prepared([volume]), model.see([volume])
    for grid, side in zip(seen.token_map.grids, (32, 64), strict=True):
        np.testing.assert_allclose(grid.spacing, side * shown.grid.spacing)
        index = np.stack(np.indices(grid.shape), -1)
        np.testing.assert_allclose(shown.grid.to_index(grid.to_world(index)), side * index + 0.5, atol=1e-6)
    assert seen.token_map.inside(seen.boxes).all()


def test_tokens_are_the_features_through_the_mixer_with_gradients(model):
    seen = model.see([scan()])
    torch.testing.assert_close(model.tokens(seen.features, seen), seen.tokens)
    features = [part.clone().requires_grad_() for part in seen.features]
    model.tokens(features, seen)[5].sum().backward()  # of the coarse grid's tokens, which know nothing of the fine one
    low, high = features
    assert low.grad is not None
    assert high.grad is not None
    assert not low.grad.any()
    assert (high.grad.abs().sum(1) > 0).all()


def test_weights_of_tokens_are_spread_over_the_cells_of_their_own_grid(model):
    seen = model.see([scan()])
    weights = np.zeros((2, 2, TINY.tokens), np.float32)
    weights[0, 0, 3], weights[0, 1, 6], weights[1, 1] = 0.7, 0.2, 0.125
    assert seen.token_map.spread is not None
    found = seen.token_map.spread(weights)
    assert found.shape == (2, 2, seen.token_map.cells)
    np.testing.assert_allclose(found.sum(-1), weights.sum(-1), atol=1e-6)
    assert (found >= 0).all()
    assert not found[0, 0, 48:].any()
    assert not found[0, 1, :48].any()
    assert not found[1, 0].any()


def test_an_answer_says_where_it_came_from(model):
    seen = model.see([scan()])
    rows = relevance(model, seen, [Message("user", "Is there a stone?")], range(5, 9), [(0, 2), (2, 4)])
    assert rows.shape == (2, 54)
    assert (rows.sum(1) > 0).all()


# ---- What is not as it should be ------------------------------------------------------------------------------------


def changed(**fields: Any) -> Callable[[Path], None]:
    """config.json with other fields; None takes one away."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({n: v for n, v in config.items() if v is not None}))

    return change


def another_tokenizer(folder: Path) -> None:
    qwen_tokenizer("<image>").backend_tokenizer.save(str(folder / "tokenizer.json"))


def retensored(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    """A tensor more or less in its shard, and in the index."""

    def change(folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        shard = index["weight_map"].setdefault(name, SHARD)
        tensors = load_file(folder / shard)
        if tensor is None:
            del tensors[name], index["weight_map"][name]
        else:
            tensors[name] = tensor
        save_file(tensors, folder / shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed(proj_out_num=9), r"proj_out_num 9; its sizes and weights make 8"),
        (changed(low_input_size=[256, 128]), r"low_input_size \[256, 128\].*make \[48, 128\]"),
        (changed(low_output_size=[7, 6], proj_out_num=9), r"'projector.low_mixer.1.* the model needs"),
        (another_tokenizer, f"no '{IMAGE}', where the image would stand"),
        (changed(vocab_size=200), r"tokenizer .* has 258 tokens, the model 200"),
        (changed(eos_token_id=999), r"ends answers with token 999"),
        (changed(mm_projector_type="mhsa"), r"mm_projector_type 'mhsa'; only 'mixer' can be read"),
        (changed(vision_select_layer=-1), r"vision_select_layer -1; only -2"),
        (changed(use_sliding_window=True), r"use_sliding_window True"),
        (changed(low_output_size=None), r"lacks low_output_size"),
        (changed(high_output_size=[3]), r"makes no model: mixers of"),
        (changed(input_size=[100, 192, 64]), r"makes no model: a block of"),
        (changed(hidden_size=10**9), r"not a size that any model has|needs .* GB .* and the memory of"),
        (changed(quantization_config={"load": "code"}), r"the field 'quantization_config', which is not allowed"),
        (retensored("model.extra.weight", torch.zeros(3)), r"beyond what the model needs, the tensor 'decoder"),
        (retensored("lm_head.weight", None), r"lacks the tensor 'decoder.lm_head.weight'"),
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD}.*Get the model again"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "neither tokenizer.json nor vocab.json"),
    ],
)
def test_a_folder_that_is_not_a_whole_model_is_told(copy, spoil, said):
    spoil(copy)
    with pytest.raises(ReaderError, match=said):
        load_reader(copy)
