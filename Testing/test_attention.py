"""Relevance: exact, where features are, and a row of its own for every stretch of text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedVLMReaderLib.attention import log_likelihood, relevance
from MedVLMReaderLib.models.ms_vlm import MSVLM, SeenPlanes
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.volume import Volume
from Testing.tiny_model import TINY_TEXT

ASKED = (Message("user", "What is there?"),)
ROWS = [(0, 4), (4, 9), (9, 17)]


@pytest.fixture
def exact(tiny_model) -> MSVLM:
    """The tiny model in 64 bits and with larger weights, so that small differences in the picture can be measured."""
    model = load(tiny_model).model
    assert isinstance(model, MSVLM)
    torch.manual_seed(0)
    for part in (model.bridge, model.decoder):
        for weights in part.parameters():
            if weights.ndim > 1:
                weights.normal_(std=weights[0].numel() ** -0.5)
    return model.double()


@pytest.fixture
def seen(exact, body_ct) -> Seen:
    with torch.no_grad():
        return seen_exactly(exact, body_ct)


def seen_exactly(model: MSVLM, volume: Volume) -> Seen:
    """What the model sees, in 64 bits: the encoder is given 32, so its features are widened."""
    seen = model.float().see([volume])
    assert isinstance(seen, SeenPlanes)
    model.double()
    planes = tuple(
        replace(plane, slices=plane.slices.double(), patches=plane.patches.double()) for plane in seen.planes
    )
    wide = replace(seen, planes=planes, features=tuple(plane.patches for plane in planes))
    return replace(wide, tokens=model.tokens(wide.features, wide))


@pytest.fixture
def ids(exact) -> list[int]:
    return list(exact.tokenizer.encode(TINY_TEXT))


def test_log_likelihood_is_that_of_one_token_after_another(exact, seen, ids):
    embed = exact.decoder.get_input_embeddings()
    inputs = exact.prompt(seen, ASKED).inputs
    naive = []
    with torch.no_grad():
        for token in ids:
            scores = exact.decoder(inputs_embeds=inputs).logits[0, -1]
            naive.append(float(scores.log_softmax(-1)[token]))
            inputs = torch.cat([inputs, embed(torch.tensor([[token]]))], 1)
        together = log_likelihood(exact, seen, ASKED, ids)
    assert together.shape == (len(ids),)
    np.testing.assert_allclose(together, naive, atol=1e-5)


def test_each_row_has_a_number_for_every_cell_and_zero_where_nothing_was_kept(exact, seen, ids):
    rows = relevance(exact, seen, ASKED, ids, ROWS)
    assert rows.shape == (3, seen.token_map.cells)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert (rows >= 0).all()
    assert (rows.sum(1) > 0).all()
    kept = np.zeros(seen.token_map.cells, bool)
    start = 0
    for cells, grid in zip(exact.cells(seen), seen.token_map.grids, strict=True):
        kept[start + cells.numpy()] = True
        start += int(np.prod(grid.shape))
    assert 0 < kept.sum() < kept.size
    assert (rows[:, ~kept] == 0).all()


def test_every_stretch_of_text_has_a_row_of_its_own_that_the_others_do_not_change(exact, seen, ids):
    rows = relevance(exact, seen, ASKED, ids, ROWS)
    shares = rows / rows.sum(1, keepdims=True)
    assert all(np.abs(shares[a] - shares[b]).max() > 1e-4 for a, b in ((0, 1), (1, 2), (0, 2)))
    np.testing.assert_allclose(relevance(exact, seen, ASKED, ids, ROWS[1:2])[0], rows[1], rtol=1e-5)


def test_relevance_is_what_dimming_a_cell_takes_from_the_likelihood(exact, seen, ids):
    """Finite differences through Z-former, perceiver, projection and decoder."""
    start, stop = ROWS[1]
    row = relevance(exact, seen, ASKED, ids, [(start, stop)])[0]
    parts = seen.token_map.split(row)

    def likelihood(plane: int, at: int, factor: float) -> float:
        features = [part.clone() for part in seen.features]
        features[plane][at] *= factor
        with torch.no_grad():
            inputs = exact.prompt(replace(seen, tokens=exact.tokens(features, seen)), ASKED).inputs
            told = exact.decoder.get_input_embeddings()(torch.tensor(ids))[None]
            scores = exact.decoder(inputs_embeds=torch.cat([inputs, told], 1)).logits[0, inputs.shape[1] - 1 : -1]
            return float(sum(scores.log_softmax(-1)[n, ids[n]] for n in range(start, stop)))

    compared = 0
    for plane, (cells, part) in enumerate(zip(exact.cells(seen), parts, strict=True)):
        said = part.ravel()[cells.numpy()]
        for at in (int(said.argmax()), int(said.argmin()), len(said) // 2):
            step = 0.02
            slope = (likelihood(plane, at, 1 + step) - likelihood(plane, at, 1 - step)) / (2 * step)
            assert said[at] == pytest.approx(max(slope, 0), rel=0.02, abs=0.02 * float(row.max()))
            compared += said[at] > 0
    assert compared >= 3


def test_the_model_is_left_as_it_was(exact, seen, ids):
    before = [parameter.clone() for parameter in exact.parameters()]
    relevance(exact, seen, ASKED, ids, ROWS)
    assert all(torch.equal(a, b) for a, b in zip(before, exact.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in exact.parameters())
    assert not any(part.requires_grad for part in seen.features)
