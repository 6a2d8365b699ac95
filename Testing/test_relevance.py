"""Relevance: what flowed to the words, where features are, and a row of its own for every stretch of text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from MedVLMReaderLib.models.ms_vlm import MSVLM, SeenPlanes
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.relevance import Flow, decided, log_likelihood, plain, relevance, said
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


class Held(TorchFunctionMode):
    """Keeps attention weights and the spreads of norms of one pass, and computes later passes with these."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.at: int | None = None
        """What comes next of what was kept; None while it is being kept."""

    def again(self, work: Callable[[], float]) -> float:
        self.at = 0
        with self, torch.no_grad():
            return work()

    def _one(self, value: Any) -> Any:
        if self.at is None:
            self.kept.append(value)
            return value
        self.at += 1
        return self.kept[self.at - 1]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return function(*self._one(args[:2]), *args[2:], **kwargs)
        if function in (torch.softmax, Tensor.softmax, F.softmax, torch.rsqrt):
            return self._one(function(*args, **kwargs))
        if function is F.layer_norm:
            middle = args[0] - args[0].mean(-1, keepdim=True)
            spread = self._one((middle.square().mean(-1, keepdim=True) + kwargs["eps"]).sqrt())
            return middle / spread * kwargs["weight"] + kwargs["bias"]
        return function(*args, **kwargs)


def test_relevance_is_what_a_cell_beyond_the_mean_adds_while_attention_stays_as_it_is(exact, seen, ids):
    """Finite differences through Z-former, perceiver, projection and decoder."""
    start, stop = ROWS[1]
    row = relevance(exact, seen, ASKED, ids, [(start, stop)])[0]
    weights, mean = decided(exact, seen, ASKED, ids)[start:stop], plain(seen.features)
    held = Held()

    def odds(features: list[Tensor]) -> float:
        inputs = exact.prompt(replace(seen, tokens=exact.tokens(features, seen)), ASKED).inputs
        told = exact.decoder.get_input_embeddings()(torch.tensor(ids))[None]
        scores = exact.decoder(inputs_embeds=torch.cat([inputs, told], 1), use_cache=False).logits[0]
        chance = scores[inputs.shape[1] - 1 : -1].log_softmax(-1)[range(len(ids)), ids].exp()
        return float((weights * (chance / (1 - chance)).log()[start:stop]).sum())

    def moved(plane: int, at: int, step: float) -> float:
        features = [part.clone() for part in seen.features]
        features[plane][at] += step * (features[plane][at] - mean[plane])
        return held.again(lambda: odds(features))

    with held, torch.no_grad():
        odds(list(seen.features))
    compared = 0
    for plane, (cells, part) in enumerate(zip(exact.cells(seen), seen.token_map.split(row), strict=True)):
        told = part.ravel()[cells.numpy()]
        for at in (int(told.argmax()), int(told.argmin()), len(told) // 2):
            slope = (moved(plane, at, 0.02) - moved(plane, at, -0.02)) / 0.04
            assert told[at] == pytest.approx(max(slope, 0), rel=0.02, abs=0.02 * float(row.max()))
            compared += told[at] > 0
    assert compared >= 3


def test_where_flow_is_followed_all_numbers_stay_as_they_are(exact, seen, ids):
    with torch.no_grad():
        plainly = said(exact, replace(seen, tokens=exact.tokens(seen.features, seen)), ASKED, ids)
        with Flow():
            followed = said(exact, replace(seen, tokens=exact.tokens(seen.features, seen)), ASKED, ids)
    torch.testing.assert_close(followed, plainly, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm((3, 5)), nn.RMSNorm(5), nn.LayerNorm(5, elementwise_affine=False)])
def test_norms_keep_their_values_and_hand_back_what_came_in(norm):
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Flow():
        followed = norm(x)
    torch.testing.assert_close(followed, norm(x), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(followed.sum(), x)
    bias = getattr(norm, "bias", None)
    without = followed.sum() if bias is None else (followed - bias).sum()
    torch.testing.assert_close((slope * x).sum(), without, rtol=1e-4, atol=1e-5)


def test_the_image_decides_nothing_where_all_of_it_is_alike(exact, seen, ids):
    even = tuple(middle.expand_as(part) for part, middle in zip(seen.features, plain(seen.features), strict=True))
    with torch.no_grad():
        blank = replace(seen, features=even, tokens=exact.tokens(even, seen))
    assert float(decided(exact, blank, ASKED, ids).max()) < 1e-5
    assert float(decided(exact, seen, ASKED, ids).max()) > 1e-3


def test_features_of_one_width_have_one_mean():
    wide = torch.randn(7, 3)
    first, second, third = plain([torch.ones(2, 5), wide, 4 * torch.ones(1, 5)])
    torch.testing.assert_close(first, torch.full((5,), 2.0))
    torch.testing.assert_close(third, first)
    torch.testing.assert_close(second, wide.mean(0))


def test_the_model_is_left_as_it_was(exact, seen, ids):
    before = [parameter.clone() for parameter in exact.parameters()]
    relevance(exact, seen, ASKED, ids, ROWS)
    assert all(torch.equal(a, b) for a, b in zip(before, exact.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in exact.parameters())
    assert not any(part.requires_grad for part in seen.features)
