"""Heatmaps that can be believed: they follow the weights and the image, on the built-in model; fewer bits agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.evaluation.phantom import within_a_cell
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.heatmap import effective_cells
from MedVLMReaderLib.phantom import Study, made_study
from MedVLMReaderLib.phantom_report import report, sentence
from MedVLMReaderLib.quantise import bitsandbytes
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.study import Seen
from Testing.tiny_m3d import write_tiny_m3d

SEED, SEEDS = 518, (518, 554, 556, 582, 587)
"""Studies of one liver lesion."""


def reader_or_skip() -> Reader:
    try:
        return load("built-in")
    except ReaderError as reason:
        pytest.skip(f"the built-in model cannot be loaded: {reason}")


@pytest.fixture(scope="module")
def built_in() -> Reader:
    return reader_or_skip()


def forced(reader: Reader, study: Study, method: str) -> tuple[Reading, str, Seen]:
    """The true report with its heatmaps, the sentence of its finding, and the study as it was seen."""
    seen = reader.see(study.volume)
    empty = reader.report(seen, Options(longest=1, heatmaps=False))
    text = report(study.truth)
    return reader.look(seen, empty, method=method, text=text), sentence(study.truth.findings[0]), seen


def cells(reader: Reader, study: Study, method: str) -> Array:
    """(kept cells,) the heat of the finding's sentence, at the cells that the model reads and so can show.

    Of attention, as a multiple of what even attention to all tokens would show: that part is the same for all words.
    """
    reading, words, seen = forced(reader, study, method)
    heat, spread = np.concatenate([one.values.ravel() for one in reading.heatmaps(words)]), seen.token_map.spread
    if method == "attention" and spread is not None:
        heat = heat / np.maximum(spread(np.ones((1, len(seen.tokens)), np.float32))[0], 1e-30)
    kept = zip(reader.model.cells(seen), seen.token_map.split(np.arange(len(heat))), strict=True)
    return heat[np.concatenate([numbers.ravel()[at.numpy()] for at, numbers in kept]).astype(int)]


def alike(one: Array, other: Array) -> float:
    """Rank correlation over cells that both maps can show.

    Cells that neither can show would make it positive by themselves, the union of what each shows negative.
    """
    return float(spearmanr(one, other).statistic)


def randomised() -> Iterator[Reader]:
    """The built-in model with the decoder's layers set at random, one more each time from the top; last all of it."""
    reader = reader_or_skip()
    model = reader.model
    generator = torch.Generator().manual_seed(0)
    for layer in [*reversed(model.decoder.model.layers), model]:
        for weight in layer.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=generator)
        yield reader


@pytest.mark.slow
@pytest.mark.parametrize("method", ["relevance", "attention"])
def test_with_randomised_weights_the_map_falls_apart(built_in, method):
    study = made_study(SEED)
    true = cells(built_in, study, method)
    found = [alike(true, cells(reader, study, method)) for reader in randomised()]
    assert max(found) < 0.7
    assert abs(found[-1]) <= 0.2


def on_the_finding(reader: Reader, study: Study, method: str) -> bool:
    """Whether the peak of the finding's sentence lies within its mask, grown by one cell."""
    reading, words, _ = forced(reader, study, method)
    peak = reading.heatmap(words).peak()[None]
    return bool(within_a_cell(peak, study.masks[0], study.volume.grid, reading.grids[0])[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["relevance", "attention"])
def test_mirrored_anatomy_moves_the_peak_into_the_mirrored_mask(built_in, method):
    right = [seed for seed in SEEDS if on_the_finding(built_in, made_study(seed), method)]
    assert len(right) > len(SEEDS) / 2
    mirrored = [on_the_finding(built_in, made_study(seed, mirrored=True), method) for seed in right]
    assert np.mean(mirrored) >= 0.9


@pytest.mark.slow
def test_a_blank_volume_spreads_over_half_of_all_cells(built_in):
    study = made_study(SEED)
    blank = replace(study.volume, values=np.full_like(study.volume.values, 40))
    reading, words, _ = forced(built_in, replace(study, volume=blank), "attention")
    heats = reading.heatmaps(words)
    assert effective_cells(heats) >= sum(int((heat.values > 0).sum()) for heat in heats) / 2


# Fewer bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    return write_tiny_m3d(tmp_path_factory.mktemp("m3d") / "tiny", **sizes)


@pytest.mark.parametrize(("method", "least"), [("attention", 0.8), ("relevance", 0.8)])
def test_in_4_bits_the_heatmap_of_the_same_words_is_that_of_16(folder, body_ct, method, least):
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes")
    bitsandbytes()
    maps = []
    for precision in ("bf16", "nf4"):
        reader = load(folder, precision=precision, device="cpu")  # type: ignore[arg-type]
        seen = reader.see(body_ct)
        reading = reader.ask(seen, "What?", options=Options(longest=1, heatmaps=False))
        *_, last = reading
        assert isinstance(last, Reading)
        # One word: how far the image decides each of several is noise in a decoder that has learned nothing.
        found = reader.look(seen, last, method=method, text="nodule")
        maps.append(np.concatenate([heat.values.ravel() for heat in found.heatmaps()]))
    assert alike(*maps) >= least


@pytest.mark.slow
@pytest.mark.parametrize("method", ["attention", "relevance"])
def test_in_4_bits_the_built_in_model_looks_where_it_looks_in_16(method):
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes")
    bitsandbytes()
    study = made_study(SEED)
    maps = [cells(load("built-in", precision=precision), study, method) for precision in ("bf16", "nf4")]  # type: ignore[arg-type]
    assert alike(*maps) >= 0.8
