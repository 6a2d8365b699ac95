"""The losses, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from MedVLMReaderLib.models.siglip import sigmoid_loss
from MedVLMReaderLib.training.objectives import (
    contrastive,
    masked_slices,
    partial_transport,
    sigmoid,
    sigmoid_among,
    words,
)


def units(n: int = 5, width: int = 8) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_siglip_has_the_exponential_and_the_division_whether_or_not_there_are_several_processes() -> None:
    images, texts, t, b = units(), units().flip(0), torch.tensor(1.3), torch.tensor(-0.4)
    expected = sigmoid_loss(images @ texts.T * t.exp() + b)
    torch.testing.assert_close(sigmoid(images, texts, t, b), expected)


def test_siglip_among_more_texts_than_images_counts_every_pair_once() -> None:
    images, texts, t, b = units(3), units(5).flip(0), torch.tensor(1.3), torch.tensor(-0.4)
    which = torch.tensor([4, 0, 2])
    labels = torch.full((3, 5), -1.0)
    labels[torch.arange(3), which] = 1
    expected = -torch.nn.functional.logsigmoid(labels * (images @ texts.T * t.exp() + b)).sum() / 3
    torch.testing.assert_close(sigmoid_among(images, texts, which, t, b), expected)
    same = sigmoid_among(texts, texts, torch.arange(5), t, b)
    torch.testing.assert_close(same, sigmoid(texts, texts, t, b))


def test_contrastive_of_equal_likeness_is_chance_and_falls_when_pairs_fit() -> None:
    same = torch.ones(6, 4) / 2
    assert contrastive(same, same, torch.tensor(2.0)).item() == pytest.approx(math.log(6))
    assert contrastive(torch.eye(6), torch.eye(6), torch.tensor(4.0)) < 1e-4


def test_partial_transport_prefers_rows_that_fit_and_teaches_rows_and_measure() -> None:
    one, measure = units().requires_grad_(), torch.eye(8).requires_grad_()
    right, wrong = partial_transport(one, units(), measure), partial_transport(one, units().roll(1, 0), measure)
    assert right < wrong
    assert right.item() == pytest.approx(-math.log(0.95 / 5), abs=0.05)
    partial_transport(one, units() + 0.5, measure).backward()
    assert one.grad is not None
    assert torch.isfinite(one.grad).all()
    assert measure.grad is not None
    assert measure.grad.abs().max() > 0


def test_a_measure_that_gives_negative_squares_breaks_nothing() -> None:
    value = partial_transport(units(), units().roll(1, 0), -torch.eye(8))
    assert torch.isfinite(value)


def test_words_are_averaged_over_the_labels_alone() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, -100, 3, 1, -100], [-100, 2, -100, -100, -100]])
    log = logits.log_softmax(-1)
    expected = -(log[0, 1, 3] + log[0, 2, 1] + log[1, 0, 2]) / 3
    torch.testing.assert_close(words(logits, labels), expected)


def test_only_hidden_slices_count_and_their_width_is_summed() -> None:
    true = torch.zeros(1, 3, 4)
    rebuilt = torch.tensor([[[1.0] * 4, [9.0] * 4, [3.0] * 4]])
    assert masked_slices(rebuilt, true, torch.tensor([[1.0, 0.0, 1.0]])).item() == 8
    assert masked_slices(rebuilt, true, torch.zeros(1, 3)).item() == 0
