"""M3D-LaMed: the published network number by number, a published folder as it stands, and every token where it lies."""

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
from MedVLMReaderLib.models.m3d_lamed import NAMES, REPORT, M3DLaMed, Sizes, SpatialPooling
from MedVLMReaderLib.models.one_block import IMAGE, spliced, written
from MedVLMReaderLib.models.vit3d import Vit3d, Vit3dSizes
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.reader import load as load_reader
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.relevance import relevance
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import new_decoder, renamed
from Testing.made_scans import oblique_grid
from Testing.parity import compared
from Testing.parity_m3d import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes
from Testing.tiny_m3d import ADDED, TINY_VISION, write_tiny_m3d, write_tokenizer

# ---- The published numbers ------------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize(
    "fixture", ["m3d_vit_tiny", "m3d_spp_tiny", pytest.param("m3d_lamed_tiny_phi3", marks=pytest.mark.slow)]
)
def test_it_computes_what_was_published(fixture):
    entry = json.loads((PARITY / "configs.json").read_text())[fixture]
    result = compared(PARITY, fixture, entry, KINDS)
    assert result.right, result


@needs_parity
@pytest.mark.parametrize(
    ("kind", "projector", "width"),
    [("phi3", "m3d_spp_projector_phi3_4b", 3072), ("llama", "m3d_spp_projector_llama2_7b", 4096)],
)
def test_the_published_sizes_have_exactly_the_published_tensors(kind, projector, width):
    with torch.device("meta"):
        decoder = new_decoder({"model_type": kind, "hidden_size": width, "num_hidden_layers": 1, "vocab_size": 64,
                               "pad_token_id": 0})  # fmt: skip
        model = M3DLaMed(Sizes(), decoder)
    theirs = {f"model.vision_tower.vision_tower.{name}": shape for name, shape in listed("m3d_vit3d").items()}
    theirs |= {f"model.mm_projector.{name}": shape for name, shape in listed(projector).items()}
    theirs |= shapes(decoder)
    named = renamed({name: torch.empty(shape, device="meta") for name, shape in theirs.items()}, NAMES)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == shapes(model)


def test_sizes_that_make_no_network_are_refused_with_their_values():
    for wrong, said in (
        (lambda: Vit3dSizes(image=(30, 256, 256)), r"\[30, 256, 256\].*\[4, 16, 16\]"),
        (lambda: Vit3dSizes(width=100), r"width 100 with 12 heads"),
        (lambda: Sizes(pooling=0), r"pooling 0"),
        (lambda: Sizes(pooling=9), r"pooling 9 of \[8, 16, 16\] patches"),
        (lambda: Vit3dSizes.found({}, (32, 256, 256), (4, 16, 16)), "no 3D vision transformer"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


# ---- A published folder ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_m3d(tmp_path_factory.mktemp("m3d") / "tiny-lamed")


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return load_reader(folder)


def scan(axes: tuple[int, int, int] = (2, 1, 0), signs: tuple[int, int, int] = (-1, 1, -1)) -> Volume:
    grid = oblique_grid((13, 24, 31), (13.0, 7.0, 6.0), axes=axes, signs=signs)
    values = np.random.default_rng(4).normal(40, 15, grid.shape).astype(np.float32)
    values[0, 0, 0], values[-1, -1, -1] = -1000, 3000  # black and white are there whatever else changes
    return Volume(values, grid, "CT", "made")


def test_a_folder_as_published_loads_and_answers_without_its_segmentation(reader):
    seen = reader.see(scan())
    assert seen.tokens.shape == (6, 32)
    *words, reading = reader.ask(seen, "What is normal?", options=Options(longest=5))
    assert isinstance(reading, Reading)
    assert "".join(str(word) for word in words) == reading.text
    assert reading.model == "tiny-lamed"
    assert any("8 x 64 x 96" in note for note in reading.notes)


def test_a_llama_decoder_loads_too(tmp_path):
    reader = load_reader(write_tiny_m3d(tmp_path / "llama", model_type="lamed_llama"))
    assert reader.model.decoder.config.model_type == "llama"
    assert reader.report(reader.see(scan()), Options(longest=3, heatmaps=False)).question == REPORT


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_it_answers_in_fewer_bits_with_its_eyes_in_full(folder, precision):
    pytest.importorskip("bitsandbytes")
    reader = load_reader(folder, precision=precision, device="cpu")
    seen = reader.see(scan())
    assert seen.tokens.dtype == torch.float32
    *_, reading = reader.ask(seen, "What is normal?", options=Options(longest=4))
    assert isinstance(reading, Reading)
    assert reader.checkpoint is not None
    assert reader.checkpoint.precision == precision


def test_answers_end_at_the_token_that_the_configuration_names(reader):
    assert reader.model.tokenizer.eos_token == "<|endoftext|>"


Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def shard(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def changed(folder: Path) -> None:
        path, index = folder / "model-00001-of-00002.safetensors", folder / "model.safetensors.index.json"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        kept = {name: file for name, file in json.loads(index.read_text())["weight_map"].items() if file != path.name}
        index.write_text(json.dumps({"weight_map": {**kept, **dict.fromkeys(tensors, path.name)}}))

    return changed


def tokens(*added: str) -> Change:
    return lambda folder: write_tokenizer(folder, added) and None


def moved_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"356"', '"400"'))


WRONG: dict[str, tuple[Change, str]] = {
    "image tokens": (config(proj_out_num=256), r"proj_out_num 256; its sizes and weights make 6"),
    "image size": (config(image_size=[8, 64, 90]), r"\[8, 64, 90\] cannot be cut into patches"),
    "image shape": (config(image_size=[64, 96]), "makes no model"),
    "table of positions": (config(image_size=[16, 64, 96]), r"position_embeddings' is \(1, 48, 64\).*\(1, 96, 64\)"),
    "width": (config(mm_hidden_size=768), r"mm_hidden_size 768; its sizes and weights make 64"),
    "another projector": (config(mm_projector_type="perceiver"), r"mm_projector_type 'perceiver'; only 'spp'"),
    "another layer": (config(vision_select_layer=-2), r"vision_select_layer -2; only -1"),
    "code": (config(custom_pipelines={"run": "me"}), "field 'custom_pipelines', which is not allowed"),
    "absurd": (config(proj_layer_num=10**6), "1000000 layers of the projector"),
    "no number": (config(hidden_size="32"), "hidden_size '32', which is no whole number"),
    "another system": (config(model_type="lamed_gpt", system="m3d_lamed"), "field 'system'"),
    "no end": (config(eos_token_id=5000), r"token 5000; its tokenizer has \d+ tokens"),
    "left over": (shard(lambda t: t.update({"model.head.weight": torch.ones(2)})), "beyond what .*'decoder.model.head"),
    "left over beside": (shard(lambda t: t.update({"value_head": torch.ones(2)})), "beyond what .*'value_head'"),
    "missing": (shard(lambda t: t.pop("lm_head.weight") is None), r"lacks the tensor .decoder.lm_head"),
    "no image token": (tokens("<|endoftext|>", "<a>", "<b>", "<c>", "<d>"), f"no '{IMAGE}'"),
    "more tokens": (tokens(*ADDED, "one", "two"), r"has \d+ tokens, the model \d+"),
    "moved token": (moved_token, r"adds the token '\S+' as 400; it would become"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "neither tokenizer.json nor"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_not_what_it_should_be_is_refused_with_what_is_wrong(what, tmp_path):
    change, said = WRONG[what]
    write_tiny_m3d(tmp_path / "m3d")
    change(tmp_path / "m3d")
    with pytest.raises(ReaderError, match=said):
        load_reader(tmp_path / "m3d")


# ---- What the decoder is given --------------------------------------------------------------------------------------


def test_visual_tokens_stand_after_the_token_that_begins_a_text(reader):
    seen, model = reader.see(scan()), reader.model
    prompt = model.prompt(seen, [Message("user", "What is the liver")])
    assert prompt.visual_positions == (1, 2, 3, 4, 5, 6)
    torch.testing.assert_close(prompt.inputs[0, 1:7], seen.tokens)
    table = model.decoder.get_input_embeddings().weight
    begin, words = model.tokenizer.bos_token_id, ["▁What", "▁is", "▁the", "▁liver"]
    told = [begin, *(model.tokenizer.convert_tokens_to_ids(word) for word in words)]
    torch.testing.assert_close(prompt.inputs[0, [0, 7, 8, 9, 10]], table[told])


def test_without_such_a_token_the_published_model_loses_the_first_word_and_so_do_we():
    told = torch.arange(8.0)[None, :, None]
    visual = torch.full((1, 3, 1), -1.0)
    assert spliced(told, visual)[0, :, 0].tolist() == [0, -1, -1, -1, 4, 5, 6, 7]


def test_a_request_for_a_report_follows_the_image_at_once_a_question_after_a_space(reader):
    end = reader.model.tokenizer.eos_token
    assert written([Message("user", REPORT)], REPORT, end) == REPORT
    turns = [Message("user", "Is it?"), Message("assistant", "No."), Message("user", "Why?")]
    assert written(turns, REPORT, end) == " Is it? No.<|endoftext|> Why?"
    assert reader.model.report_request() == REPORT


def test_the_image_token_in_a_question_is_refused(reader):
    with pytest.raises(ReaderError, match=r"1 times the word '<im_patch>'"):
        reader.model.prompt(reader.see(scan()), [Message("user", f"What is {IMAGE}")])


@pytest.mark.parametrize(("volumes", "said"), [([], "No volume"), ([scan(), scan()], "2 volumes were given")])
def test_it_reads_one_volume(reader, volumes, said):
    with pytest.raises(ReaderError, match=said):
        reader.see(volumes)


# ---- Where tokens lie -----------------------------------------------------------------------------------------------


def one_cell(volume: Volume, reader: Reader, cell: tuple[int, int, int]) -> Volume:
    """The volume with the voxels of one declared cell brighter."""
    grid = reader.see(volume).token_map.grids[0]
    places = volume.grid.to_world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))
    inside = (np.rint(grid.to_index(places)) == cell).all(-1)
    assert inside.any()
    return replace(volume, values=np.where(inside, np.float32(200), volume.values))


@pytest.mark.parametrize(
    ("axes", "signs"), [((2, 1, 0), (1, 1, 1)), ((1, 0, 2), (-1, 1, -1)), ((0, 2, 1), (1, -1, -1))], ids=str
)
@pytest.mark.parametrize("cell", [(0, 0, 0), (1, 1, 4), (0, 3, 2)])
def test_what_a_change_moves_most_is_declared_there(reader, axes, signs, cell):
    volume = scan(axes, signs)
    before, after = reader.see(volume), reader.see(one_cell(volume, reader, cell))
    grid = before.token_map.grids[0]
    patches = (after.features[0] - before.features[0]).norm(dim=1)
    assert np.unravel_index(int(patches.argmax()), grid.shape) == cell
    moved = (after.tokens - before.tokens).norm(dim=1)
    declared = before.token_map.spread(np.eye(6)[int(moved.argmax())]).reshape(grid.shape)  # type: ignore[misc]
    assert declared[cell] > 0


def test_a_tokens_weight_is_shared_by_the_patches_that_it_averages(reader):
    token_map = reader.see(scan()).token_map
    weights = np.random.default_rng(0).random((3, 6))
    cells = token_map.spread(weights)
    assert cells.shape == (3, token_map.cells)
    np.testing.assert_allclose(cells.sum(1), weights.sum(1))
    first = cells[0].reshape(2, 4, 6)
    assert (first[:, :2, :2] == weights[0, 0] / 8).all()
    assert (first[:, 2:, 4:] == weights[0, 5] / 8).all()


def test_patches_beyond_the_last_whole_token_have_no_share():
    sizes = Sizes(Vit3dSizes((8, 48, 80), (4, 16, 16), 64, 96, 1, 1))
    decoder = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "intermediate_size": 16, "vocab_size": 20}  # fmt: skip
    model = M3DLaMed(sizes, new_decoder(decoder))
    assert model.projector(torch.rand(1, 2 * 3 * 5, 64)).shape == (1, 2, 16)
    cells = model.spread(np.array([8.0, 16.0])).reshape(2, 3, 5)
    assert cells[1].tolist() == [[1, 1, 2, 2, 0], [1, 1, 2, 2, 0], [0, 0, 0, 0, 0]]


def test_pooling_averages_neighbours_along_the_arrays_own_axes():
    sizes = Sizes(TINY_VISION, layers=1)
    pool = SpatialPooling(sizes, 64)
    torch.nn.init.eye_(pool.projector[0].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(pool.projector[0].bias)  # type: ignore[arg-type]
    patches = torch.rand(1, *TINY_VISION.grid, 64)
    expected = patches.unflatten(1, (1, 2)).unflatten(3, (2, 2)).unflatten(5, (3, 2)).mean((2, 4, 6)).flatten(1, 3)
    torch.testing.assert_close(pool(patches.flatten(1, 3)), expected)


def test_tokens_are_made_of_features_and_relevance_reaches_every_cell(reader):
    seen, model = reader.see(scan()), reader.model
    torch.testing.assert_close(model.tokens(seen.features, seen), seen.tokens)
    assert model.cells(seen)[0].tolist() == list(range(48))
    rows = relevance(model, seen, [Message("user", "What?")], range(5, 11), [(n, n + 1) for n in range(6)])
    assert rows.shape == (6, 48)
    assert (rows.sum(1) > 0).sum() >= 2


def test_the_window_on_the_screen_is_what_the_model_sees_and_changes_the_key(reader):
    volume = scan()
    narrow = View(40.0, 40.0, tuple(volume.grid.centre))  # type: ignore[arg-type]
    plain, windowed = reader.see(volume), reader.see(volume, narrow)
    assert plain.key != windowed.key
    assert reader.see(volume).key == plain.key
    (shown,) = reader.model.prepared([volume], narrow)
    assert shown.grid.shape == (8, 64, 96)
    assert shown.values.std() > 2 * reader.model.prepared([volume])[0].values.std()


def test_the_whole_is_the_same_for_any_batch():
    torch.manual_seed(0)
    encoder = Vit3d(TINY_VISION).eval()
    two = torch.rand(2, 1, 8, 64, 96)
    torch.testing.assert_close(encoder(two)[1:], encoder(two[1:]), atol=1e-5, rtol=1e-5)
