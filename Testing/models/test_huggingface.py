"""Vision-language models of transformers' own: the same numbers as transformers, tokens where they say they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.memory import DecoderShape
from MedVLMReaderLib.models.families import FAMILIES, cell_grid, picture_inputs
from MedVLMReaderLib.models.huggingface import PictureReader, load, sizes_of
from MedVLMReaderLib.models.published import checked_config, picture_processor
from MedVLMReaderLib.pages import PageRecipe
from MedVLMReaderLib.quantise import quantised_layers
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.reader import load as reader_load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.relevance import log_likelihood, relevance
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint
from Testing.models.tiny_vlms import CONFIGS, write_vlm

KINDS = sorted(CONFIGS)
CHAT = [Message("user", "Is there a nodule?"), Message("assistant", "No."), Message("user", "Is the lung clear?")]


@dataclass(frozen=True)
class Tiny:
    """A tiny model in its folder, and a study that it has seen."""

    kind: str
    folder: Path
    model: PictureReader
    seen: Any


@pytest.fixture(scope="module")
def scan() -> Volume:
    """Turned and flipped, as large as a patient, wider than high."""
    from Testing.made_scans import oblique_grid

    grid = oblique_grid((11, 17, 14), (21.0, 16.0, 19.0), axes=(1, 2, 0), signs=(1, -1, 1))
    values = np.random.default_rng(1).integers(-120, 220, grid.shape).astype(np.int16)
    return Volume(values, grid, "CT", "made")


@pytest.fixture(scope="module")
def view(scan) -> View:
    r, a, s = (float(x) for x in scan.grid.centre)
    return View(400.0, 40.0, (r, a, s))


@pytest.fixture(scope="module", params=KINDS)
def tiny(request, tmp_path_factory, scan, view) -> Tiny:
    folder = tmp_path_factory.mktemp("vlms") / request.param
    write_vlm(folder, request.param)
    model = load(checkpoint(folder))
    model.recipe = replace(model.recipe, most=6)
    return Tiny(request.param, folder, model, model.see([scan], view))


@pytest.fixture
def changed(tmp_path) -> Callable[..., Path]:
    """A folder of a family in which a file's fields were changed, or a file removed."""

    def make(kind: str, file: str = "config.json", remove: bool = False, **fields: Any) -> Path:
        folder = tmp_path / kind
        if not folder.exists():
            write_vlm(folder, kind)
        if remove:
            (folder / file).unlink()
            return folder
        content = json.loads((folder / file).read_text())
        for path, value in fields.items():
            *above, last = path.split("__")
            part = content
            for name in above:
                part = part[name]
            part[last] = value
        (folder / file).write_text(json.dumps(content))
        return folder

    return make


def checkpoint(folder: Path, **more: Any) -> Checkpoint:
    return Checkpoint(folder, folder.name, "rev", **more)


# ---- The same numbers as transformers -------------------------------------------------------------------------------


def theirs(tiny: Tiny, chat: list[Message]) -> dict[str, Tensor]:
    """What transformers' `generate` is given for the same pages and chat, pictures made in one batch."""
    ids = tiny.model._ids(tiny.model.written(tiny.seen, chat))[None]
    pictures = [page.pixels for page in tiny.seen.pages]
    batch = pictures if tiny.kind.startswith("qwen") else [pictures]
    made = dict(tiny.model.processor(images=batch, return_tensors="pt", **tiny.model.family.plain))
    made.pop("num_crops", None)
    marks = (ids == tiny.model.network.config.image_token_id).long()
    if tiny.kind == "gemma3":
        made["token_type_ids"] = marks
    if tiny.kind.startswith("qwen"):
        made["mm_token_type_ids"] = marks
    return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("chat", [CHAT[:1], CHAT], ids=["first question", "follow-up"])
def test_tokens_and_scores_are_those_of_transformers_own_generate(tiny, chat):
    published = transformers.AutoModelForImageTextToText.from_pretrained(tiny.folder, local_files_only=True).eval()
    given = theirs(tiny, chat)
    out = published.generate(
        **given, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    ids = out.sequences[0, given["input_ids"].shape[1] :].tolist()
    scores = torch.cat(out.logits).log_softmax(-1)
    stepped = zip(Reader(tiny.model)._tokens(tiny.seen, chat, Options()), ids, strict=False)
    assert [ours for ours, _ in stepped] == ids
    with torch.no_grad():
        said = log_likelihood(tiny.model, tiny.seen, chat, ids)
    torch.testing.assert_close(said, scores.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=2e-4, rtol=1e-4)


def test_step_by_step_scores_are_those_of_one_call(tiny):
    """The rule for what later calls are told, for each family: positions go on, marks are 0."""
    prompt = tiny.model.prompt(tiny.seen, CHAT)
    answer, cache = [40, 41, 42, 43], transformers.DynamicCache()
    told = tiny.model.decoder.get_input_embeddings()(torch.tensor([answer]))
    with torch.no_grad():
        whole = tiny.model.decoder(
            inputs_embeds=torch.cat([prompt.inputs, told], 1), use_cache=False, **prompt.with_answer(4)
        ).logits[0, prompt.inputs.shape[1] - 1 :]
        steps = [
            tiny.model.decoder(inputs_embeds=prompt.inputs, past_key_values=cache, use_cache=True, **prompt.extras)
        ]
        for n, token in enumerate(answer):
            ids = torch.tensor([[token]])
            steps.append(tiny.model.decoder(input_ids=ids, past_key_values=cache, use_cache=True, **prompt.after(n)))
    torch.testing.assert_close(torch.cat([step.logits[0, -1:] for step in steps]), whole, atol=1e-4, rtol=1e-4)


def test_features_through_the_projector_are_the_published_image_features(tiny):
    given = theirs(tiny, CHAT)
    network = tiny.model.network.model
    names = {"pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "batch_num_images"}
    with torch.no_grad():
        made = network.get_image_features(**{name: given[name] for name in names & given.keys()}).pooler_output
    published = torch.cat([part.reshape(-1, part.shape[-1]) for part in made])
    if tiny.kind == "llava_onevision":  # theirs end with the newline
        keep = torch.arange(len(published)) % 37 != 36
        published = published[keep]
    again = tiny.model.tokens(tiny.seen.features, tiny.seen)
    torch.testing.assert_close(again, tiny.seen.tokens)
    torch.testing.assert_close(again[:, : published.shape[1]], published, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("gemma3", "Gemma3Processor"), ("idefics3", "Idefics3Processor")])
def test_a_chat_is_tokenised_as_by_the_familys_own_processor(kind, name, tmp_path, scan, view):
    write_vlm(tmp_path / kind, kind)
    model = load(checkpoint(tmp_path / kind))
    model.recipe = replace(model.recipe, most=3)
    seen = model.see([scan], view)
    length = {"gemma3": {"image_seq_length": 16}, "idefics3": {"image_seq_len": 16}}[kind]
    processor = getattr(transformers, name)(model.processor, model.tokenizer, chat_template=model.template, **length)
    chat = [{"role": "user", "content": model._shown(seen, CHAT[0].text)}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    pictures = [[page.pixels for page in seen.pages]]
    begun = text.startswith(model.tokenizer.bos_token)
    made = processor(
        images=pictures, text=[text], return_tensors="pt", add_special_tokens=not begun, **model.family.plain
    )
    ours = model._ids(model.written(seen, CHAT[:1]))
    assert ours.tolist() == made["input_ids"][0].tolist()


# ---- What is shown, and in which order ------------------------------------------------------------------------------


def test_the_instruction_comes_first_then_each_picture_before_its_label_and_the_question_last(tiny):
    text = tiny.model.written(tiny.seen, CHAT[:1])
    token = tiny.model.family.token
    places = [text.index("You are helping a radiologist")]
    for page, size in zip(tiny.seen.pages, tiny.seen.sizes, strict=True):
        places.append(text.index(token, places[-1]))
        places.append(text.index(page.label, places[-1]))
        assert text[places[-2] : places[-1]].count(token) == np.prod(size) + tiny.model.family.closing
    places.append(text.index(CHAT[0].text, places[-1]))
    assert places == sorted(places)
    assert text.count(token) == sum(r * c + tiny.model.family.closing for r, c in tiny.seen.sizes)
    assert [page.label for page in tiny.seen.pages[-3:]] == [
        "DISPLAYED AXIAL PLANE", "DISPLAYED CORONAL PLANE", "DISPLAYED SAGITTAL PLANE",
    ]  # fmt: skip


def test_visual_tokens_stand_where_the_prompt_says(tiny):
    prompt = tiny.model.prompt(tiny.seen, CHAT)
    width = prompt.inputs.shape[2]
    assert len(prompt.visual_positions) == len(tiny.seen.tokens) == tiny.seen.token_map.cells
    torch.testing.assert_close(prompt.inputs[0, list(prompt.visual_positions)], tiny.seen.tokens[:, :width])


def test_without_a_view_there_are_slices_alone_and_more_than_there_are_is_no_error(tiny, scan):
    few = scan.crop((0, 0, 0), (11, 3, 14))
    seen = tiny.model.see([few])
    assert [page.label for page in seen.pages] == ["SLICE 1", "SLICE 2", "SLICE 3"]
    assert tiny.model.prompt(seen, CHAT).inputs.shape[0] == 1
    single = scan.crop((0, 0, 0), (11, 1, 14))
    assert len(tiny.model.see([single]).pages) == 1


def test_a_study_has_another_key_where_anything_differs(tiny, scan, view):
    keys = {
        tiny.seen.key,
        tiny.model.see([scan]).key,
        tiny.model.see([scan], replace(view, window=300.0)).key,
        tiny.model.see([replace(scan, values=scan.values + 1)], view).key,
    }
    assert len(keys) == 4
    assert tiny.model.see([scan], view).key == tiny.seen.key


def test_what_was_shown_can_be_previewed(tiny, scan, view):
    shown = tiny.model.prepared([scan], view)
    assert len(shown) == len(tiny.seen.pages)
    for stack, page in zip(shown, tiny.seen.pages, strict=True):
        assert stack.grid.same_as(page.grid)
        assert 0 <= stack.values.min() <= stack.values.max() <= 1


# ---- Where a token lies ---------------------------------------------------------------------------------------------


def test_the_voxels_of_a_cell_move_that_cells_features_most(tiny, scan):
    """Design's contract: wrong axes, flips, tokens that are no cell or an off-by-one would break it."""
    before = tiny.model.see([scan])
    rng = np.random.default_rng(3)
    hits, asked = 0, 0
    for _ in range(8):
        page = int(rng.integers(len(before.pages)))
        grid = before.token_map.grids[page]
        cell = tuple(int(rng.integers(n)) for n in grid.shape)
        inside = np.floor(grid.to_index(places_of(scan)) + 0.5).astype(int)
        touched = (inside == cell).all(-1)
        if touched.sum() < 4:
            continue
        asked += 1
        values = scan.values.copy()
        values[touched] = np.where(values[touched] > 40, -1000, 1000)
        after = tiny.model.see([replace(scan, values=values)])
        moved = [(a - b).norm(dim=1) for a, b in zip(after.features, before.features, strict=True)]
        flat = torch.cat(moved).argmax().item()
        start = sum(int(np.prod(g.shape)) for g in before.token_map.grids[:page])
        hits += flat == start + int(np.ravel_multi_index(cell, grid.shape))
    assert asked >= 3
    assert hits >= asked - 1


def places_of(scan: Volume) -> np.ndarray:
    """(k, j, i, 3) where each voxel lies."""
    return scan.grid.to_world(np.stack(np.indices(scan.grid.shape), -1))


def test_every_slice_has_a_grid_of_its_own_in_its_own_place(tiny, scan):
    for page, grid, size in zip(tiny.seen.pages, tiny.seen.token_map.grids, tiny.seen.sizes, strict=True):
        assert grid.shape == (1, *size)
        assert grid.spacing[0] == pytest.approx(page.grid.spacing[0])
        seen = np.array(grid.shape[1:]) * grid.spacing[1:]
        whole = np.array(page.grid.shape[1:]) * page.grid.spacing[1:]
        assert (seen <= whole + 1e-6).all()
        assert (seen >= whole * 0.9).all()
        np.testing.assert_allclose(grid.to_world((0, -0.5, -0.5)), page.grid.to_world((0, -0.5, -0.5)), atol=1e-6)


def test_the_grid_of_tokens_leaves_out_pixels_that_make_no_whole_cell():
    """SigLIP at 384 pixels with patches of 14: 27 a side, and six pixels that no patch sees."""
    from MedVLMReaderLib.geometry import Grid

    grid = cell_grid(Grid((1, 512, 512), np.eye(4)), 384, 384, 14)
    assert grid.shape == (1, 27, 27)
    assert grid.spacing[1:] == pytest.approx(14 * 512 / 384)
    np.testing.assert_allclose(grid.to_world((0, -0.5, -0.5)), (0, -0.5, -0.5), atol=1e-9)


def test_relevance_reaches_most_pages_and_nothing_but_the_scan(tiny, scan):
    found = relevance(tiny.model, tiny.seen, CHAT, [40, 41, 42], [(0, 1), (1, 3)])
    assert found.shape == (2, tiny.seen.token_map.cells)
    parts = tiny.seen.token_map.split(found[0])
    assert sum(part.any() for part in parts) >= len(parts) * 2 // 3  # on others, all speaks against these words
    assert not found[:, ~tiny.seen.token_map.inside(tiny.seen.boxes)].any()


def test_an_answer_and_its_heatmap(tiny, scan):
    reader = Reader(tiny.model)
    *_, reading = reader.ask(tiny.seen, "Is there a nodule?", options=Options(longest=8))
    assert isinstance(reading, Reading)
    assert reading.preparation == tiny.seen.preparation
    assert PageRecipe.from_json(reading.preparation).most == 6
    assert any("nobody has tried" in note for note in reading.notes)
    if reading.traces:
        assert scan.grid.contains(reading.heatmap(None).peak())


def test_an_answer_ends_at_any_of_the_tokens_that_end_it(tiny, monkeypatch):
    first = next(iter(Reader(tiny.model)._tokens(tiny.seen, CHAT, Options())))
    monkeypatch.setattr(tiny.model, "ends", (first,))
    (reading,) = Reader(tiny.model).ask(tiny.seen, CHAT[-1].text, history=CHAT[:-1], options=Options(longest=5))
    assert isinstance(reading, Reading)
    assert (reading.text, reading.complete) == ("", True)


# ---- Pictures as numbers --------------------------------------------------------------------------------------------


def test_gemmas_numbers_are_those_of_its_published_settings():
    """0 to 255 becomes -1 to 1; a grey picture stays grey whatever its size."""
    processor = transformers.Gemma3ImageProcessorPil(
        size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    for grey, number in ((0, -1.0), (255, 1.0), (51, -0.6)):
        made = picture_inputs(processor, np.full((40, 40, 3), grey, np.uint8), FAMILIES["gemma3"])
        assert made["pixel_values"].shape == (1, 3, 56, 56)
        torch.testing.assert_close(made["pixel_values"], torch.full((1, 3, 56, 56), number), atol=1e-5, rtol=0)


def test_each_picture_is_one_crop_though_the_settings_split_it(tiny):
    """Crops of a crop would put tokens where the map has none."""
    made = tiny.model._inputs(tiny.seen.pages[0])
    assert made["pixel_values"].shape[0] == 1 or tiny.kind.startswith("qwen")
    rows, columns, cell = tiny.model.parts.size(made)
    assert (rows // cell, columns // cell) == tiny.seen.sizes[0]


def test_qwens_grids_follow_the_aspect_of_the_picture(tmp_path, scan):
    write_vlm(tmp_path / "q", "qwen2_5_vl")
    seen = load(checkpoint(tmp_path / "q")).see([scan])
    rows, columns = seen.sizes[0]
    assert seen.pages[0].pixels.shape[0] != seen.pages[0].pixels.shape[1]
    assert rows != columns
    assert (rows < columns) == (seen.pages[0].pixels.shape[0] < seen.pages[0].pixels.shape[1])


# ---- Loading ---------------------------------------------------------------------------------------------------------


def test_a_folder_from_the_hub_is_read_by_its_name(tmp_path, scan):
    write_vlm(tmp_path / "tiny-gemma", "gemma3")
    reader = reader_load(tmp_path / "tiny-gemma")
    assert reader.model.name == "tiny-gemma"
    assert len(reader.see(scan).pages) == 17


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl"])
def test_in_16_bits_the_encoder_keeps_its_32(kind, tmp_path, scan):
    write_vlm(tmp_path / kind, kind)
    whole, half = load(checkpoint(tmp_path / kind)), load(checkpoint(tmp_path / kind, precision="bf16"))
    assert {p.dtype for p in half.decoder.words.parameters()} == {torch.bfloat16}
    encoder = half.network.model.get_submodule(half.family.encoder[0])
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    seen = half.see([scan])
    torch.testing.assert_close(seen.features[0], whole.see([scan]).features[0])
    assert next(iter(Reader(half)._tokens(seen, CHAT, Options()))) >= 0


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_in_8_and_4_bits_the_language_model_alone_is_quantised_and_a_copy_loads_as_it_was(tmp_path, scan, precision):
    pytest.importorskip("bitsandbytes", reason="8 and 4 bits need bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "query_pre_attn_scalar": 16}
    write_vlm(tmp_path / "g", "gemma3", text_config={**CONFIGS["gemma3"]["text_config"], **wide})
    reader = reader_load(tmp_path / "g", precision=precision, device="cpu")
    layers = quantised_layers(reader.model.decoder)
    assert len(layers) == 14
    assert all(name.startswith("words.") for name in layers)
    encoder = reader.model.network.model.vision_tower
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    seen = reader.see(scan)
    with torch.no_grad():
        said = log_likelihood(reader.model, seen, CHAT, [40, 41, 42])
    assert torch.isfinite(said).all()
    assert relevance(reader.model, seen, CHAT, [40], [(0, 1)]).any()
    reader.save_quantised(tmp_path / "copy")
    copy = reader_load(tmp_path / "copy", device="cpu")
    assert copy.checkpoint.precision == precision
    with torch.no_grad():
        torch.testing.assert_close(log_likelihood(copy.model, copy.see(scan), CHAT, [40, 41, 42]), said)


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_configuration_transformers_sees_what_its_own_reading_would_find(kind, tmp_path):
    write_vlm(tmp_path / kind, kind)
    ours = json.loads(checked_config(tmp_path / kind).to_json_string(use_diff=False))
    published = transformers.AutoConfig.from_pretrained(tmp_path / kind, local_files_only=True)
    for name, value in json.loads(published.to_json_string(use_diff=False)).items():
        if isinstance(value, dict):
            told = {n: v for n, v in value.items() if not n.startswith("_") and n not in UNREAD}
            assert {n: ours[name].get(n) for n in told} == told
        elif name not in UNREAD:
            assert ours[name] == value, name


UNREAD = {
    "architectures", "dtype", "transformers_version", "_name_or_path",
    "pixel_shuffle_factor", "in_chans", "spatial_patch_size",  # in published files, read by nothing
}  # fmt: skip


# ---- Bad input -------------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ReaderError, match=match):
        load(checkpoint(folder))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"model_type": "mystery"}, r"kind 'mystery'.*gemma3"),
        ({"model_type": ["gemma3"]}, "Known"),
        ({"architectures": ["Evil"]}, "Gemma3ForConditionalGeneration"),
        ({"auto_map": {"AutoModel": "evil--model.Evil"}}, "'auto_map'"),
        ({"vision_config__auto_map": {"AutoModel": "model.Evil"}}, "'vision_config.auto_map'"),
        ({"custom_pipelines": {"x": {"impl": "x.X"}}}, "custom_pipelines"),
        ({"text_config___attn_implementation": "somebody/kernel"}, "_attn_implementation"),
        ({"text_config__kernel_config": {"a": "b"}}, "kernel_config"),
        ({"text_config__activation_file": "evil.py"}, "activation_file"),
        ({"text_config__hidden_size": 1 << 40}, "hidden_size"),
        ({"text_config__num_hidden_layers": 100000}, "num_hidden_layers"),
        ({"vision_config__image_size": float("inf")}, "image_size"),
        ({"text_config__vocab_size": -5}, "vocab_size"),
        ({"text_config": "llama"}, "text_config"),
        ({"text_config__model_type": "bert"}, "'bert'"),
        ({"text_config__hidden_size": "many"}, "does not describe"),
        ({"text_config__hidden_size": 64}, "tensor"),
        ({"vision_config__num_hidden_layers": 3}, "lacks the tensor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_not_a_familys_is_refused(changed, fields, match):
    refused(changed("gemma3", **fields), match)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "preprocessor_config.json", "processor_config.json"])
def test_no_file_may_name_code(changed, file):
    refused(changed("gemma3", file, auto_map={"AutoProcessor": "evil.Evil"}), "auto_map")


def test_a_configuration_with_absurd_sizes_takes_no_memory(changed):
    """32768 layers' worth would be 100 GB; the file has two."""
    refused(changed("qwen2_5_vl", num_hidden_layers=900, hidden_size=65536), "tensor|network|describe")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_the_image_token_is_refused(kind, tmp_path):
    write_vlm(tmp_path / kind, kind)
    path, token = tmp_path / kind / "tokenizer.json", FAMILIES[kind].token
    path.write_text(path.read_text().replace(json.dumps(token), json.dumps("<nothing>")))
    settings = tmp_path / kind / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace(json.dumps(token), json.dumps("<nothing>")))
    refused(tmp_path / kind, f"no token '{token}'".replace("|", r"\|"))


def test_a_tokenizer_with_another_number_for_the_image_token_is_refused(changed):
    refused(changed("smolvlm", image_token_id=7), r"number \d+, config\.json as 7")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("gemma3", "image_seq_length", 256),
        ("idefics3", "image_seq_len", 64),
        ("llava_onevision", "num_image_tokens", 729),
    ],
)
def test_another_number_of_image_tokens_than_the_projector_makes_is_refused_with_both(changed, kind, name, said):
    made = {"gemma3": 16, "idefics3": 16, "llava_onevision": 36}[kind]
    refused(changed(kind, "processor_config.json", **{name: said}), f"makes {made} tokens.*says {said}")


def test_pictures_of_another_size_than_the_encoder_reads_are_refused(changed):
    refused(changed("gemma3", "preprocessor_config.json", size={"height": 112, "width": 112}), "makes 64 tokens.*16")


@pytest.mark.parametrize(
    ("kind", "size"),
    [("smolvlm", {"max_image_size": {"longest_edge": 64}}), ("llava_onevision", {"size": {"height": 64, "width": 64}})],
)
def test_pictures_that_the_encoder_was_not_made_for_are_refused(changed, kind, size):
    folder = changed(kind, "preprocessor_config.json", **size)
    (folder / "processor_config.json").unlink()
    refused(folder, r"64 x 64 pixels.*32")


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("gemma3", "config.json"), ("gemma3", "tokenizer.json"), ("gemma3", "preprocessor_config.json"),
        ("gemma3", "model.safetensors"), ("gemma3", "chat_template.jinja"), ("smolvlm", "chat_template.json"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(changed, kind, file):
    refused(changed(kind, file, remove=True), "template" if "template" in file else file.replace(".", r"\."))


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"]
)
def test_a_broken_file_is_named(tmp_path, file):
    write_vlm(tmp_path / "g", "gemma3")
    (tmp_path / "g" / file).write_text('{"a": ')
    refused(tmp_path / "g", "cannot be read")


def test_a_tensor_too_many_or_too_few_is_refused(tmp_path):
    write_vlm(tmp_path / "g", "gemma3")
    path = tmp_path / "g" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "extra.weight": torch.zeros(2)}, path)
    refused(tmp_path / "g", r"extra\.weight")
    first = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, path)
    refused(tmp_path / "g", "lacks the tensor")


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_that_holds_the_image_token_is_refused(kind, tmp_path, scan):
    write_vlm(tmp_path / kind, kind)
    model = load(checkpoint(tmp_path / kind))
    model.recipe = replace(model.recipe, most=2)
    seen = model.see([scan])
    with pytest.raises(ReaderError, match="Leave it out"):
        model.prompt(seen, [Message("user", f"What is {model.family.token}?")])


def test_a_template_that_forgets_the_pictures_is_refused(tmp_path, scan):
    write_vlm(tmp_path / "g", "gemma3")
    (tmp_path / "g" / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}")
    model = load(checkpoint(tmp_path / "g"))
    seen = model.see([scan])
    with pytest.raises(ReaderError, match="wrote 0 pictures of 17"):
        model.prompt(seen, CHAT)


def test_a_template_that_does_not_work_is_told(tmp_path, scan):
    write_vlm(tmp_path / "g", "gemma3")
    (tmp_path / "g" / "chat_template.jinja").write_text("{{ messages[0].content[0].__class__.__mro__[1] }} {{ x.y.z }}")
    model = load(checkpoint(tmp_path / "g"))
    seen = model.see([scan])
    with pytest.raises(ReaderError, match="template"):
        model.prompt(seen, CHAT)


def test_a_short_context_means_fewer_slices_and_a_note(changed, scan, view):
    folder = changed("gemma3", text_config__max_position_embeddings=800)
    model = load(checkpoint(folder))
    seen = model.see([scan], view)
    slices = [page for page in seen.pages if "SLICE" in page.label]
    assert 0 < len(slices) < 17
    assert len(seen.pages) == len(slices) + 3
    assert any(f"holds {len(slices)} slices" in note for note in seen.notes)
    assert PageRecipe.from_json(seen.preparation).most == len(slices)
    prompt = model.prompt(seen, CHAT)
    assert prompt.inputs.shape[1] < 800


def test_a_context_too_short_for_any_slice_is_told(changed, scan, view):
    model = load(checkpoint(changed("gemma3", text_config__max_position_embeddings=120)))
    with pytest.raises(ReaderError, match=r"120 tokens.*longer context"):
        model.see([scan], view)


def test_layers_that_no_token_map_tells_of_are_refused(changed):
    refused(changed("llava_onevision", vision_feature_select_strategy="default"), "only all features of one layer")


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_estimate_knows_what_the_file_leaves_out_and_how_long_a_study_is(kind, tmp_path):
    config = {name: value for name, value in CONFIGS[kind].items() if name != "num_key_value_heads"}
    if "text_config" in config:
        kept = {name: value for name, value in config["text_config"].items() if name != "num_attention_heads"}
        config["text_config"] = kept if kind == "gemma3" else config["text_config"]
    write_vlm(tmp_path / kind, kind)
    (tmp_path / kind / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / kind / "config.json").read_text()), **config})
    )
    sizes, context = sizes_of(tmp_path / kind)
    assert DecoderShape.from_config(sizes).width == 32
    assert context == min(4096, context)
    assert context > 2048


def test_settings_for_huge_pictures_are_refused(changed):
    folder = changed("qwen3_vl", "preprocessor_config.json", size={"longest_edge": 10**12, "shortest_edge": 10**11})
    refused(folder, "longest_edge")


def test_a_copy_is_read_without_the_network(tmp_path, monkeypatch, scan):
    import socket

    write_vlm(tmp_path / "g", "qwen2_5_vl")
    shutil.copytree(tmp_path / "g", tmp_path / "copy")
    monkeypatch.setattr(socket.socket, "connect", lambda *given: pytest.fail("the network was asked"))
    load(checkpoint(tmp_path / "copy")).see([scan])


def test_the_processor_that_needs_no_torchvision_is_used(tmp_path):
    for kind in KINDS:
        write_vlm(tmp_path / kind, kind)
        made = picture_processor(tmp_path / kind, FAMILIES[kind])
        assert type(made).__name__.endswith("Pil")
