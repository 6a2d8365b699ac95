"""MS-VLM: the published network number by number, any number of slices, and every feature where it says it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.ms_vlm import (
    MADE_STUDIES_ONLY,
    MSVLM,
    NAMES,
    OUT_OF_DOMAIN,
    Template,
    ZFormer,
    kept_patches,
)
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.reader import Options, Reader
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.relevance import relevance
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.training.language import END, READER, USER, made_tokenizer
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.weights import new_decoder, renamed
from Testing.made_scans import oblique_grid
from Testing.model_folders import load
from Testing.parity import compared
from Testing.parity_ms_vlm import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes
from Testing.tiny_model import TINY_RECIPE, TINY_SIZES


def small_zformer() -> ZFormer:
    torch.manual_seed(0)
    return ZFormer(dict(TINY_SIZES.zformer)).eval().requires_grad_(False)


# ---- The published numbers ------------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize("fixture", ["msvlm_vit_tiny_96_attn", "msvlm_zformer_tiny_L32", "msvlm_perceiver_tiny"])
def test_it_computes_what_was_published(fixture):
    entry = json.loads((PARITY / "configs.json").read_text())[fixture]
    result = compared(PARITY, fixture, entry, KINDS)
    assert result.right, result


@needs_parity
def test_the_published_size_has_exactly_the_published_tensors():
    with torch.device("meta"):
        decoder = new_decoder({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1, "vocab_size": 64})
        model = MSVLM(Sizes(), TINY_RECIPE, Template("{image}", "{question}", "</s>", "Report."), decoder)
    theirs = {f"visual_encoder.{name}": shape for name, shape in listed("msvlm_dino_vit_base16").items()}
    theirs |= {f"Zformer.{name}": shape for name, shape in listed("msvlm_zformer_bigbird").items()}
    theirs |= {f"perceiver.{name}": shape for name, shape in listed("msvlm_perceiver_4096").items()}
    theirs |= {"perc_proj_chz.weight": (4096, 768), "perc_proj_chz.bias": (4096,)}
    theirs |= {"llama_proj_chz.weight": (4096, 4096), "llama_proj_chz.bias": (4096,)}
    theirs |= {f"llama_model.{name}": shape for name, shape in shapes(decoder).items()}
    named = renamed({name: torch.empty(shape, device="meta") for name, shape in theirs.items()}, NAMES)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == shapes(model)


# ---- Any number of slices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 20, 176, 177, 300])
def test_any_number_of_slices_is_read(count):
    out = small_zformer()(torch.randn(1, count, 32))
    assert out.shape == (1, count, 32)
    assert torch.isfinite(out).all()


def test_a_long_study_after_a_short_one_is_read_as_by_a_fresh_model():
    torch.manual_seed(1)
    long, short = torch.randn(1, 300, 32), torch.randn(1, 20, 32)
    used = small_zformer()
    first = used(long)
    used(short)
    torch.testing.assert_close(used(long), small_zformer()(long), atol=0, rtol=0)
    torch.testing.assert_close(used(long), first, atol=0, rtol=0)
    torch.testing.assert_close(used(short), small_zformer()(short), atol=0, rtol=0)


def test_long_studies_are_read_sparsely():
    """Otherwise the test above proves nothing: full attention would give other numbers."""
    torch.manual_seed(1)
    long, zformer = torch.randn(1, 300, 32), small_zformer()
    sparse = zformer(long)
    zformer.longest_full = 300
    assert (zformer(long) - sparse).abs().max() > 1e-4


def test_more_slices_than_the_model_has_places_for_are_refused():
    with pytest.raises(ReaderError, match=r"513 slices; this model reads up to 512"):
        small_zformer()(torch.randn(1, 513, 32))


def test_a_stack_is_encoded_in_parts_with_the_same_result():
    torch.manual_seed(0)
    encoder = SliceEncoder(replace(TINY_SIZES, context=1)).eval().requires_grad_(False)
    pictures = torch.rand(71, 3, 32, 32)
    whole = encoder(encoder.with_neighbours(pictures))
    torch.testing.assert_close(encoder.encode_stack(pictures), whole, atol=1e-5, rtol=1e-5)
    ends = encoder.last_block(encoder.before_last_block(pictures))
    torch.testing.assert_close(ends, whole, atol=1e-5, rtol=1e-5)


def test_each_slice_comes_with_its_neighbours_and_the_ends_with_themselves():
    encoder = SliceEncoder(replace(TINY_SIZES, context=1, channels=1))
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    beside = encoder.with_neighbours(pictures)[:, :, 0, 0]
    assert beside.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


# ---- Positions ------------------------------------------------------------------------------------------------------


def ramp() -> SliceEncoder:
    """A table of positions whose first two numbers are its row and its column."""
    encoder = SliceEncoder(replace(TINY_SIZES, table=64)).requires_grad_(False)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    encoder.pos_embed[0, 1:, 0], encoder.pos_embed[0, 1:, 1] = rows.flatten(), columns.flatten()
    encoder.pos_embed[0, 0] = 7.5
    return encoder


def test_the_table_of_positions_is_taken_as_it_is_at_its_own_size():
    encoder = ramp()
    assert encoder._positions(8, 8) is encoder.pos_embed


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (30, 30), (5, 12)])
def test_positions_between_those_of_the_table_lie_between_them(rows, columns):
    positions = ramp()._positions(rows, columns)
    assert positions.shape == (1, 1 + rows * columns, 32)
    assert (positions[0, 0] == 7.5).all()
    down, across = positions[0, 1:, 0].unflatten(0, (rows, columns)), positions[0, 1:, 1].unflatten(0, (rows, columns))
    assert (down.diff(dim=0) > 0).all()
    assert (across.diff(dim=1) > 0).all()
    assert down.diff(dim=1).abs().max() < 1e-4
    assert across.diff(dim=0).abs().max() < 1e-4
    for at, n in ((down[:, 0], rows), (across[0], columns)):  # evenly over the table
        centres = (torch.arange(n) + 0.5) * 8 / (n + 0.1) - 0.5
        torch.testing.assert_close(at[1:-1], centres[1:-1], atol=0.25, rtol=0)


# ---- Where features are ---------------------------------------------------------------------------------------------

FINE_RECIPE = replace(TINY_RECIPE, pixel_mm=6.0)
VARIANTS: dict[str, Sizes] = {
    "built-in way": replace(TINY_SIZES, slice_depth=2),
    "stem and neighbours": replace(TINY_SIZES, slice_depth=2, stem=(8, 8), local=1, context=1),
    "published way": replace(TINY_SIZES, slice_depth=2, places=0),
}


def model_of(sizes: Sizes, recipe: Recipe = FINE_RECIPE, kind: str = "qwen2", seed: int = 3, **more: Any) -> MSVLM:
    """A model of random weights."""
    torch.manual_seed(seed)
    tokenizer = made_tokenizer(["The liver is normal. Is there a nodule?"], 300)
    decoder = new_decoder(
        {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 256, "vocab_size": len(tokenizer), "tie_word_embeddings": False, **more}
    )  # fmt: skip
    template = Template("{image}", USER + "{question}" + READER, END, "Report.")
    model = MSVLM(sizes, recipe, template, decoder, tokenizer)
    return model.eval().requires_grad_(False)


def small_voxels(axes: tuple[int, int, int], signs: tuple[int, int, int]) -> Volume:
    grid = oblique_grid((13, 24, 21), (13.0, 7.0, 8.0), axes=axes, signs=signs)
    values = np.random.default_rng(4).normal(40, 15, grid.shape).astype(np.float32)
    return Volume(values, grid, "CT", "made")


STORED = pytest.mark.parametrize(
    ("axes", "signs"), [((2, 1, 0), (1, 1, 1)), ((1, 0, 2), (-1, 1, -1)), ((0, 2, 1), (1, -1, -1))], ids=str
)


def moves(model: MSVLM, volume: Volume, change: Callable[[Array, Array], Array]) -> Iterator[tuple[Any, Array, Array]]:
    """For cells of each plane whose voxels are changed: the cell, and all kept cells with how far their features move.

    `change` gives the new voxels from the old ones and which of them lie in the cell.
    """
    places = volume.grid.to_world(np.moveaxis(np.indices(volume.grid.shape), 0, -1))
    before = model.see([volume])
    for plane, grid in enumerate(before.token_map.grids):
        for cell in ((2, 1, 2), (grid.shape[0] // 2, 2, 1), (grid.shape[0] - 3, 1, 1)):
            inside = (np.rint(grid.to_index(places)) == cell).all(-1)
            assert inside.any()
            after = model.see([replace(volume, values=change(volume.values, inside))])
            kept = model.cells(before)[plane]
            assert torch.equal(model.cells(after)[plane], kept)
            cells = np.stack(np.unravel_index(kept.numpy(), grid.shape), -1)
            yield cell, cells, (after.features[plane] - before.features[plane]).norm(dim=1).numpy()


@STORED
@pytest.mark.parametrize("variant", ["built-in way", "published way"])
def test_the_feature_that_a_change_moves_most_is_the_one_declared_there(variant, axes, signs):
    found = [
        (cell, tuple(cells[moved.argmax()]))
        for cell, cells, moved in moves(
            model_of(VARIANTS[variant]), small_voxels(axes, signs), lambda old, inside: np.where(inside, 1200, old)
        )
    ]
    assert len(found) == 9
    assert all(declared == moved_most for declared, moved_most in found), found


@STORED
def test_features_move_about_the_declared_cell_where_convolutions_look_beyond_their_patch(axes, signs):
    """Untrained, a neighbour may move more than the patch itself: the middle of all that moves tells."""
    offsets = []
    for seed in range(3):
        model = model_of(VARIANTS["stem and neighbours"], seed=seed)
        offsets.append([
            moved**2 @ (cells - cell) / (moved**2).sum()
            for cell, cells, moved in moves(
                model, small_voxels(axes, signs), lambda old, inside: old + np.float32(100) * inside
            )
        ])  # fmt: skip
    slices, rows, columns = np.abs(np.mean(offsets, axis=0)).T
    assert slices.max() < 0.5
    assert rows.max() < 0.5
    assert columns.max() < 0.5


def test_cells_cover_the_body_and_leave_out_the_air(body_ct):
    model = model_of(TINY_SIZES, TINY_RECIPE)
    seen = model.see([body_ct])
    for cells, grid in zip(model.cells(seen), seen.token_map.grids, strict=True):
        assert 0 < len(cells) < np.prod(grid.shape)
        places = grid.to_world(np.stack(np.unravel_index(cells.numpy(), grid.shape), -1))
        reach = grid.spacing.max() / 2
        near = np.abs(body_ct.grid.to_index(places) - (np.array(body_ct.grid.shape) - 1) / 2) * body_ct.grid.spacing
        assert (near <= np.array(body_ct.grid.shape) * body_ct.grid.spacing / 2 + reach).all()


def test_patches_between_two_parts_of_the_body_are_kept():
    values = np.full((2, 4, 40), -1000.0)
    values[0, :, 8:16] = values[0, :, 24:32] = 30
    kept = kept_patches(values, "CT", 4)
    assert kept.tolist() == [2, 3, 4, 5, 6, 7]


# ---- From scan to words ---------------------------------------------------------------------------------------------


def test_a_decoder_of_single_turns_is_asked_without_what_was_said_before():
    model = model_of(next(iter(VARIANTS.values())))
    seen = model.see([small_voxels((2, 1, 0), (1, 1, 1))])
    asked = [Message("user", "Is the liver normal?")]
    chat = [Message("user", "Report."), Message("assistant", "The liver is normal."), *asked]
    alone = model.prompt(seen, asked).inputs
    assert model.prompt(seen, chat).inputs.shape[1] > alone.shape[1]
    model.template = replace(model.template, remembers=False)
    assert torch.equal(model.prompt(seen, chat).inputs, alone)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {"num_key_value_heads": 1, "intermediate_size": 48}),
        ("llama", {"num_key_value_heads": 2, "intermediate_size": 48}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_sees_is_asked_and_says_where_it_looked(variant, kind, more):
    model = model_of(VARIANTS[variant], kind=kind, **more)
    volume = small_voxels((2, 1, 0), (-1, 1, -1))
    seen = model.see([volume])
    assert seen.tokens.shape == (8, 32)
    torch.testing.assert_close(model.tokens(seen.features, seen), seen.tokens)
    prompt = model.prompt(seen, [Message("user", "Is there a nodule?")])
    assert len(prompt.visual_positions) == 8
    rows = relevance(model, seen, [Message("user", "Is there a nodule?")], range(5, 13), [(n, n + 1) for n in range(8)])
    assert rows.shape == (8, seen.token_map.cells)
    assert (rows.sum(1) > 0).sum() >= 2  # a token may have nothing for it in the picture, only things against it
    *words, reading = Reader(model).ask(seen, "Is there a nodule?", options=Options(longest=6))
    assert isinstance(reading, Reading)
    assert "".join(str(word) for word in words) == reading.text


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_hardly_differs_is_seen_again_as_if_it_were_new_and_the_same_slices_are_not_encoded(variant, monkeypatch):
    model, volume = model_of(VARIANTS[variant]), small_voxels((2, 1, 0), (-1, 1, -1))
    seen, values = model.see([volume]), volume.values.copy()
    middle = tuple(n // 2 for n in values.shape)
    values[tuple(slice(n, n + 2) for n in middle)] += 300
    other = replace(volume, values=values)
    new = model.see([other])
    encoded: list[int] = []
    whole = type(model.slice_encoder)._up_to_last

    def counted(self: SliceEncoder, pictures: Tensor) -> Tensor:
        encoded.append(len(pictures))
        return whole(self, pictures)

    monkeypatch.setattr(SliceEncoder, "_up_to_last", counted)
    again = model.see_again(seen, [other])
    slices = sum(grid.shape[0] for grid in seen.token_map.grids)
    assert 0 < sum(encoded) < slices
    assert again.key == new.key
    assert (again.tokens - seen.tokens).abs().max() > 1e-5
    torch.testing.assert_close(again.tokens, new.tokens, rtol=1e-4, atol=1e-5)
    for one, two in zip(again.features, new.features, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    encoded.clear()
    same = model.see_again(seen, [volume])
    assert sum(encoded) <= len(seen.token_map.grids)
    torch.testing.assert_close(same.tokens, seen.tokens, rtol=1e-4, atol=1e-5)


def test_the_published_way_every_patch_is_a_cell_and_reaches_the_class_token():
    model, volume = model_of(VARIANTS["published way"]), small_voxels((2, 1, 0), (1, 1, 1))
    seen = model.see([volume])
    for cells, grid in zip(model.cells(seen), seen.token_map.grids, strict=True):
        assert cells.tolist() == list(range(int(np.prod(grid.shape))))
    whole = model.slice_encoder.encode_stack(_pictures(model, volume)[0])
    features = [torch.zeros_like(part) for part in seen.features]
    assert (model.tokens(features, seen) - seen.tokens).abs().max() > 1e-4
    read = model._class_tokens(seen.planes[0])  # type: ignore[attr-defined]
    torch.testing.assert_close(read, whole[:, 0], atol=1e-5, rtol=1e-5)


def _pictures(model: MSVLM, volume: Volume) -> list[Tensor]:
    from MedVLMReaderLib.preparation import stacks

    return [torch.from_numpy(stack.channels(model.recipe)) for stack in stacks(volume, model.recipe)]


def test_what_the_encoder_is_shown_can_be_looked_at(body_ct):
    model = model_of(TINY_SIZES, TINY_RECIPE)
    shown = model.prepared([body_ct])
    assert len(shown) == 3
    for volume, grid in zip(shown, model.see([body_ct]).token_map.grids, strict=True):
        assert volume.values.min() >= 0
        assert 0.2 < volume.values.max() <= 1
        np.testing.assert_allclose(volume.grid.centre, grid.centre, atol=1e-9)
        assert volume.grid.shape[0] == grid.shape[0]


def test_a_volume_of_300_slices_after_one_of_20_is_seen_as_by_a_fresh_model():
    thin = replace(TINY_RECIPE, slice_mm=(None, 20.0, 20.0))
    volumes = []
    for count in (300, 20):
        grid = oblique_grid((count, 14, 15), (1.0, 18.0, 17.0))
        volumes.append(Volume(np.random.default_rng(count).normal(40, 20, grid.shape), grid, "CT"))
    used, fresh = model_of(TINY_SIZES, thin), model_of(TINY_SIZES, thin)
    used.see(volumes[1:])
    assert used.see(volumes[:1]).token_map.grids[0].shape[0] == 300
    torch.testing.assert_close(used.see(volumes[:1]).tokens, fresh.see(volumes[:1]).tokens, atol=0, rtol=0)


def test_the_key_changes_with_the_voxels_the_recipe_and_the_weights(body_ct, tiny_model):
    model = model_of(TINY_SIZES, TINY_RECIPE)
    first = model.see([body_ct]).key
    assert model.see([body_ct]).key == first
    values = body_ct.values.copy()
    values[5, 5, 5] += 1
    others: list[Callable[[], str]] = [
        lambda: model.see([replace(body_ct, values=values)]).key,
        lambda: model.see([body_ct, body_ct]).key,
        lambda: model_of(TINY_SIZES, FINE_RECIPE).see([body_ct]).key,
        lambda: load(tiny_model, "tiny").see([body_ct]).key,
    ]
    assert len({first, *(other() for other in others)}) == 5


def test_the_acquisition_plane_reaches_the_network(body_ct):
    """Two scans that look alike after resampling and differ in how far apart their samples lay are told apart."""
    model = model_of(TINY_SIZES, TINY_RECIPE)
    seen = model.see([body_ct])
    planes = [replace(plane, acquired_mm=plane.acquired_mm * 3) for plane in seen.planes]  # type: ignore[attr-defined]
    assert (model.bridge(planes) - seen.tokens).abs().max() > 1e-6


def test_a_scan_out_of_domain_is_told_first_after_the_models_own_note(tiny_model, body_ct):
    model = load(tiny_model, "tiny")
    assert not any(note.startswith(OUT_OF_DOMAIN) for note in model.see([body_ct]).notes)
    model.domain.whiten = torch.eye(len(model.domain.mean))
    model.domain.limit = torch.tensor(1e-3)
    first, second, *_ = model.see([body_ct]).notes
    assert first == MADE_STUDIES_ONLY
    assert second.startswith(OUT_OF_DOMAIN)


def test_a_scan_of_nothing_but_air_is_seen_and_told(tiny_model, body_ct):
    model = load(tiny_model, "tiny")
    seen = model.see([replace(body_ct, values=np.full(body_ct.grid.shape, -1000, np.int16))])
    assert torch.isfinite(seen.tokens).all()
    assert any(note.startswith(OUT_OF_DOMAIN) and "air" in note for note in seen.notes)
