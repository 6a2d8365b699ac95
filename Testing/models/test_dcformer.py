"""DCFormer: the published tensors and numbers, and the fast way of reading, which must be the same numbers."""

from __future__ import annotations

import pytest
import torch

from MedVLMReaderLib.models.dcformer import SIZES, STRIDES, DCFormer, Sizes, tokens
from Testing.parity import results
from Testing.parity_med3dvlm import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes
from Testing.tiny_med3dvlm import lively

PARAMETERS = {
    "nano": 789_216, "naive": 5_851_680, "tiny": 14_657_472, "small": 18_244_800, "base": 33_868_864,
    "large": 185_125_440,
}  # fmt: skip


def nano() -> DCFormer:
    torch.manual_seed(0)
    return lively(DCFormer(SIZES["nano"])).eval().requires_grad_(False)  # type: ignore[return-value]


@needs_parity
def test_the_published_numbers_come_out():
    (result,) = results(PARITY, KINDS, "dcformer_small_64cube")
    assert result.right, result


@needs_parity
def test_the_small_size_has_exactly_the_published_tensors():
    with torch.device("meta"):
        ours = shapes(DCFormer(SIZES["small"]))
    assert {f"encoder.{name}": shape for name, shape in ours.items()} == listed("med3dvlm_dcformer_small")


@pytest.mark.parametrize("size", SIZES)
def test_every_published_size_has_its_number_of_parameters(size):
    with torch.device("meta"):
        encoder = DCFormer(SIZES[size])
    assert sum(one.numel() for one in encoder.parameters()) == PARAMETERS[size]
    assert Sizes.found(shapes(encoder)) == SIZES[size]


@pytest.mark.parametrize("shape", [(1, 64, 64, 64), (2, 40, 72, 56), (1, 33, 65, 50), (3, 17, 20, 18)])
def test_the_fast_way_gives_the_same_numbers_whatever_the_shape(shape):
    encoder, x = nano(), torch.rand(shape)[:, None]
    plain = encoder(x)
    with torch.no_grad():
        fast = encoder(x)
    assert len(plain) == len(STRIDES)
    for one, other in zip(plain, fast, strict=True):
        assert one.abs().max() > 0.1
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-4)


def test_the_fast_way_is_close_in_16_bits():
    encoder, x = nano(), torch.rand(1, 1, 64, 128, 64)
    with torch.no_grad():
        exact, rounded = encoder(x)[-1], encoder.bfloat16()(x.bfloat16())[-1].float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_the_stem_is_linear_as_published():
    """But for the bias; with the activation that its authors meant to have it would not be."""
    encoder, x = nano(), torch.rand(1, 1, 32, 32, 32) - 0.5
    with torch.no_grad():
        nothing, once, twice = (encoder(factor * x)[0] for factor in (0, 1, 2))
    torch.testing.assert_close(twice - nothing, 2 * (once - nothing), atol=1e-4, rtol=1e-4)


def test_training_updates_the_norms_and_reading_does_not():
    encoder = nano()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with torch.no_grad():
        encoder(torch.rand(2, 1, 64, 64, 64))
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
        encoder.train()(torch.rand(2, 1, 64, 64, 64))
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_gradients_reach_the_voxels_and_every_weight():
    encoder = nano().requires_grad_()
    x = torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    encoder(x)[-1].square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert all(one.grad is not None for one in encoder.parameters())


def test_tokens_are_counted_by_columns_then_rows_then_depth():
    grid = torch.arange(2 * 3 * 4).view(1, 2, 3, 4, 1)
    assert tokens(grid)[0, :, 0].tolist() == list(range(24))
    with torch.no_grad():
        *_, last = nano()(torch.rand(1, 1, 64, 128, 192))
    assert last.shape == (1, 1, 2, 3, 256)


def test_other_weights_are_no_dcformer():
    with pytest.raises(ValueError, match="no DCFormer"):
        Sizes.found({"blocks.0.norm.weight": (4,)})
