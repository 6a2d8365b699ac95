"""Crops that the convolutions learn from: what they show is what they are said to show."""

import numpy as np
import pytest
import torch

from MedVLMReaderLib.planting import KINDS
from MedVLMReaderLib.training import stem
from MedVLMReaderLib.training.made_data import PreparedStudy, make
from MedVLMReaderLib.training.recipe import RECIPE, SIZES

SEEDS = range(1_000_003, 1_000_006)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert len(list(make(folder, SEEDS, RECIPE))) == len(SEEDS)
    return folder


@pytest.fixture(scope="module")
def batch(folder):
    return stem.Crops(folder, RECIPE, SIZES, seed=0).at(0, studies=6, each=4)


def test_the_same_step_draws_the_same_crops_and_another_step_others(folder, batch):
    crops = stem.Crops(folder, RECIPE, SIZES, seed=0)
    again, other = crops.at(0, studies=6, each=4), crops.at(1, studies=6, each=4)
    assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
    assert not torch.equal(batch[0], other[0])


def test_most_crops_show_a_finding_where_their_study_has_one(folder, batch):
    _, tissues, *_ = batch
    kinds = torch.tensor([stem.TISSUES.index(kind) for kind in KINDS])
    showing = torch.isin(tissues, kinds).flatten(1).any(1).float().mean()
    with_findings = np.mean([bool(PreparedStudy.load(path).truth.findings) for path in folder.glob("*.npz")])
    assert with_findings > 0
    assert showing > 0.4 * with_findings


def test_a_patch_is_touched_by_a_finding_exactly_where_its_places_show_it(batch):
    _, tissues, _, touched, *_ = batch
    side = SIZES.patch // stem.FINE
    for n, kind in enumerate(KINDS):
        here = (tissues == stem.TISSUES.index(kind)).float()
        patches = torch.nn.functional.max_pool2d(here[:, None], side)[:, 0]
        assert torch.equal(patches, touched[:, n])


def test_all_places_of_a_finding_count_alike_whatever_its_size(folder):
    lesions = np.zeros((32, 32), np.uint8)
    lesions[3, 4] = 1
    lesions[10:20, 10:20] = 2
    truth = next(
        study.truth
        for path in sorted(folder.glob("*.npz"))
        if len((study := PreparedStudy.load(path)).truth.findings) > 1
    )
    tissues, weights = stem._tissues(truth, lesions, np.ones_like(lesions))
    assert weights[3, 4] == stem.MOST_COUNTS
    assert weights[10, 10] == stem.LEAST_COUNTS
    assert weights[0, 0] == 1
    assert tissues[3, 4] == stem.TISSUES.index(truth.findings[0].kind)


def test_sides_are_not_asked_of_a_crop():
    assert not any({"left", "right"} & set(name.split()) for name in stem.TISSUES)


def test_the_losses_of_an_untrained_network_are_finite_and_reach_every_weight(batch):
    network = stem.Local(SIZES)
    sum(stem.loss(network, batch).values()).backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not silent
