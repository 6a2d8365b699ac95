"""Med3DInsight: the published transformer number by number, any encoder, and what it is told of plane and slice."""

from __future__ import annotations

import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.models.med3d_insight import PSAT, Med3DInsight, Sizes
from MedVLMReaderLib.models.pyramid import Classifier, EncoderSizes, Segmenter, new_encoder, tokens
from Testing.parity import results
from Testing.parity_med3d_insight import KINDS
from Testing.published import PARITY, listed, needs_parity, shapes

SHAPE = (16, 32, 64)
ENCODERS = {
    "dcformer": EncoderSizes("dcformer", (4, 4, 6, 8, 10), (1, 1, 1, 1), shape=SHAPE),
    "resnet": EncoderSizes("resnet", (4, 4, 6, 8, 10), (1, 1, 1, 1), shape=SHAPE),
    "swin": EncoderSizes("swin", (6, 12, 24, 48, 96), (1, 1, 1, 1), (1, 2, 2, 4), shape=(32, 32, 64)),
    "vit": EncoderSizes("vit", (12, 12, 12), (1, 1, 1), (2,), shape=SHAPE, patch=(4, 8, 8)),
}


def small(kind: str = "resnet") -> Sizes:
    return Sizes(ENCODERS[kind], width=16, depth=1, heads=2, queries=3, places=9, embedding=6)


@needs_parity
def test_the_published_numbers_come_out() -> None:
    (result,) = results(PARITY, KINDS, "psat_tiny_axial10_sagittal77")
    assert result.right, result


@needs_parity
def test_the_published_size_has_exactly_the_published_tensors() -> None:
    with torch.device("meta"):
        assert shapes(PSAT(Sizes())) == listed("med3dinsight_psat")


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_learns_from_slices_and_rebuilds_the_volume(kind: str) -> None:
    torch.manual_seed(0)
    network, sizes = Med3DInsight(small(kind)), ENCODERS[kind]
    volumes = torch.rand(2, 1, *sizes.shape)
    found, rebuilt = network(volumes, ["axial", "coronal"], [3, 12])
    assert found.shape == (2, 6)
    assert rebuilt is not None
    assert rebuilt.shape == volumes.shape
    (found.square().sum() + rebuilt.square().mean()).backward()
    assert [n for n, one in network.encoder.named_parameters() if one.requires_grad and one.grad is None] == []


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_segments_and_classifies(kind: str) -> None:
    sizes = ENCODERS[kind]
    volumes = torch.rand(2, 1, *sizes.shape)
    with torch.no_grad():
        assert Segmenter(sizes, 5).eval()(volumes).shape == (2, 5, *sizes.shape)
        assert Classifier(sizes, 7).eval()(volumes).shape == (2, 7)


def test_each_voxel_is_rebuilt_from_its_own_cell() -> None:
    network = Med3DInsight(small()).eval()
    grid = torch.rand(1, 4, 8, 16, 32)
    with torch.no_grad():
        before = network._rebuilt(grid, torch.empty(1, 1, *SHAPE))
        grid[0, :, 3, 5, 7] += 1
        after = network._rebuilt(grid, torch.empty(1, 1, *SHAPE))
    assert before is not None
    assert after is not None
    changed = (before != after)[0, 0].nonzero()
    assert changed.amin(0).tolist() == [6, 10, 14]
    assert changed.amax(0).tolist() == [7, 11, 15]


def test_another_plane_or_slice_of_the_same_volume_is_another_answer_but_neighbours_share_a_place() -> None:
    torch.manual_seed(0)
    network = Med3DInsight(small()).eval()
    volume = torch.rand(1, 1, *SHAPE).expand(4, -1, -1, -1, -1)
    with torch.no_grad():
        found, _ = network(volume, ["axial", "axial", "axial", "sagittal"], torch.tensor([4, 5, 6, 4]))
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-3
    assert (found[0] - found[3]).abs().max() > 1e-3


def test_inputs_stay_as_they_were() -> None:
    """The published code adds the place to its inputs themselves."""
    torch.manual_seed(0)
    psat, queries, volume = PSAT(small()).eval(), torch.rand(1, 3, 16), torch.rand(1, 5, 16)
    kept = queries.clone(), volume.clone()
    psat(queries, volume, ["axial"], [2])
    assert torch.equal(queries, kept[0])
    assert torch.equal(volume, kept[1])


def test_tokens_are_counted_by_columns_then_rows_then_depth() -> None:
    grid = torch.arange(2 * 3 * 4).view(1, 1, 2, 3, 4)
    assert tokens(grid)[0, :, 0].tolist() == list(range(24))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"kind": "unet"}, "No encoder 'unet'. Known: dcformer, resnet, swin, vit"),
        ({"kind": "resnet", "widths": [4, 8, 8, 8, 8]}, "the first two alike"),
        ({"kind": "swin", "widths": [4, 8, 16, 32, 60]}, "each twice the last"),
        ({"kind": "resnet", "code": 1}, "'code', which is not allowed"),
    ],
)
def test_an_encoder_that_cannot_be_made_is_told(plain: dict[str, object], said: str) -> None:
    with pytest.raises(ReaderError, match=said):
        new_encoder(EncoderSizes.from_json(plain))
