"""Blocks changed by chance: what is changed, how often, and nothing else."""

from __future__ import annotations

import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.training.augment import FURTHEST, NOTHING, REACH, Augment, changed

BLOCKS = torch.rand(40, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_without_any_share_blocks_stay_as_they_are() -> None:
    assert changed(BLOCKS, NOTHING) is BLOCKS


def test_turned_and_flipped_blocks_keep_their_voxels_and_about_the_share_is_changed() -> None:
    torch.manual_seed(0)
    for how in (Augment(rotate=0.5), Augment(flip=0.2)):
        other = changed(BLOCKS, how)
        torch.testing.assert_close(other.flatten(1).sort().values, BLOCKS.flatten(1).sort().values)
        share = (other != BLOCKS).flatten(1).any(1).float().mean()
        assert 0.25 < share < 0.75


def test_turns_stay_in_the_pictures_and_uneven_ones_keep_their_shape() -> None:
    torch.manual_seed(0)
    block = torch.arange(3.0)[None, None, :, None, None].expand(4, 1, 3, 4, 6)
    assert torch.equal(changed(block, Augment(rotate=1.0)), block)


def test_grey_levels_move_by_a_tenth_at_most() -> None:
    torch.manual_seed(0)
    other = changed(BLOCKS, Augment(scale=1.0, shift=1.0))
    assert not torch.equal(other, BLOCKS)
    assert float((other - BLOCKS).abs().max()) <= 2 * REACH + 1e-6


def test_moved_blocks_show_the_same_a_little_elsewhere_and_black_comes_in() -> None:
    torch.manual_seed(0)
    blocks = torch.rand(20, 1, 32, 48, 16) + 0.1
    other = changed(blocks, Augment(move=1.0))
    most = [int(side * FURTHEST) for side in blocks.shape[2:]]
    for before, after in zip(blocks, other, strict=True):
        lit = (after > 0).nonzero()
        low, high = lit.min(0).values[1:], lit.max(0).values[1:] + 1
        part = after[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        assert bool((part > 0).all())
        assert all(side - size <= n for side, size, n in zip(after.shape[1:], part.shape, most, strict=True))
        assert bool(torch.isin(part, before).all())
    assert not torch.equal(other, blocks)


def test_a_share_that_is_none_is_told() -> None:
    with pytest.raises(ReaderError, match="from 0 to 1"):
        Augment(flip=1.5)
    with pytest.raises(ReaderError, match="flip = 'often'"):
        Augment.from_table({"flip": "often"})
