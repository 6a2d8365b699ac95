"""How words are learned: several exchanges in one sequence, what tokens are to tell, where to look, soft numbers."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.models.ms_vlm import PlaneFeatures
from MedVLMReaderLib.phantom import made_outline, made_truth
from MedVLMReaderLib.training.features import StudyFeatures
from MedVLMReaderLib.training.language import Turn, corpus, encoded, made_tokenizer, number_ids
from MedVLMReaderLib.training.made_data import outlines
from MedVLMReaderLib.training.recipe import SIZES, new_writer
from MedVLMReaderLib.training.telling import (
    BINS_MM,
    BORDER_MM,
    PARTS,
    SIDED,
    TOKENS,
    ZONE_MM,
    bump,
    centres,
    shares,
    told,
)  # fmt: skip
from MedVLMReaderLib.training.words import FOUND_SAID, hints_of, informative, packed, softened, thinned
from MedVLMReaderLib.truth import STRUCTURES, Finding, Truth

REPORT = Turn("Describe the findings.", "Findings: Nodule of 14 mm in the right lung. The liver is normal.")
SIZE = Turn("How large is it?", "14 mm.")


@pytest.fixture(scope="module")
def tokenizer():
    return made_tokenizer(corpus(made_truth(seed) for seed in range(4)))


@pytest.fixture(scope="module")
def writer(tokenizer):
    return new_writer(tokenizer, seed=0).eval()


def a_truth(*findings: Finding) -> Truth:
    return Truth(1, "CT", "plain", "axial", (("lung", "right"), ("liver", "")), findings)


def nodule(place: tuple[float, float, float], size_mm: float = 14.0) -> Finding:
    return Finding("nodule", "lung", "right", size_mm, place, 3.0)


def test_exchanges_and_studies_in_one_batch_are_learned_as_if_each_were_alone(writer, tokenizer):
    visual = torch.randn(2, TOKENS, writer.decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    asked = [[REPORT, SIZE], [SIZE]]
    with torch.no_grad():
        together = writer.words(list(visual), asked, tokenizer)
        alone = [
            writer.words([seen], [[turn]], tokenizer)
            for seen, turns in zip(visual, asked, strict=True)
            for turn in turns
        ]
    weight = [packed([[encoded(turn, tokenizer)]], 5, tokenizer).weights.sum() for turn in (REPORT, SIZE, SIZE)]
    expected = sum(a * w for a, w in zip(alone, weight, strict=True)) / sum(weight)
    assert together == pytest.approx(float(expected), abs=1e-4)


def test_only_answers_are_learned(tokenizer):
    ids, start = encoded(SIZE, tokenizer)
    batch = packed([[(ids, start)]], 3, tokenizer)
    assert (batch.weights[0, :start] == 0).all()
    assert (batch.weights[0, start:] > 0).all()
    assert batch.positions[0].tolist() == list(range(3 + len(ids)))


def test_the_word_that_decides_for_a_finding_counts_most(tokenizer):
    answer = (
        "Findings: Axial MR without contrast. The right lung is clear. Bright lesion of 35 mm in the liver. "
        "The spleen is normal. The left kidney is normal. The right kidney is normal."
    )
    ids = tokenizer.encode(answer)
    said = [tokenizer.decode([one]).strip() for one in ids]
    weights = dict(zip(said, informative(ids, tokenizer).tolist(), strict=True))
    assert weights["B"] == FOUND_SAID > weights["The"] > weights["lesion"] > weights["spleen"] > 0


def test_a_number_may_be_a_little_off_and_a_word_may_not(tokenizer):
    numbers = number_ids(tokenizer)
    fourteen = next(token for token, n in numbers.items() if n == 14)
    word = tokenizer.encode(" lung")[0]
    targets = softened(torch.tensor([fourteen, word]), len(tokenizer), numbers)
    assert targets.sum(1).tolist() == pytest.approx([1, 1])
    assert targets[0].argmax() == fourteen
    near, far = (targets[0, next(t for t, n in numbers.items() if n == other)] for other in (15, 30))
    assert near > 0.1 > far
    assert targets[1, word] == 1


def test_every_part_of_the_scan_holds_its_own_centre():
    assert [int(shares(place).argmax()) for place in centres()] == list(range(PARTS))
    assert all(shares(place).max() == 1 for place in centres())


def test_a_finding_upon_a_border_is_told_by_halves_and_one_beyond_the_scan_by_the_nearest_part():
    border = np.array([0.0, 10.0, 20.0])  # between the second and the third part along R
    assert sorted(shares(border))[-2:] == pytest.approx([0.5, 0.5])
    steps = [shares(border + np.array([x, 0, 0])) for x in np.linspace(-2 * BORDER_MM, 2 * BORDER_MM, 9)]
    assert all(np.abs(a - b).max() < 0.3 for a, b in pairwise(steps))
    assert shares(np.array([9999.0, 0, 0])).sum() == pytest.approx(1)


def test_two_findings_of_a_kind_in_one_part_are_both_told():
    truth = a_truth(nodule((20.0, 10, 24), 8.0), nodule((30.0, 12, 26), 26.0))
    said = told(truth, np.zeros(3))
    at = int(shares(np.array([20.0, 10, 24])).argmax())
    sizes = said.parts[at].unflatten(0, (len(SIDED), len(BINS_MM)))[SIDED.index(("nodule", "right"))]
    np.testing.assert_allclose(sizes, bump(8.0) + bump(26.0), atol=1e-6)
    lung = said.structures[STRUCTURES.index(("lung", "right"))]
    assert lung[[0, 1]].tolist() == [1, 1]  # in view, with nodules
    assert lung[-3:].tolist() == [1, 1, 0]  # two of them


def features(finding: Finding) -> StudyFeatures:
    """Three planes of 6 x 8 x 8 cells of 30 mm, every patch kept, about the scan's middle."""
    planes = []
    for n, order in enumerate(((2, 1, 0), (1, 2, 0), (0, 2, 1))):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * (40.0, -30.0, 30.0)
        affine[:3, 3] = -affine[:3, :3] @ (np.array([6, 8, 8]) / 2 - 0.5)
        kept = torch.arange(6 * 8 * 8)
        patches = torch.randn(len(kept), SIZES.slice_width, generator=torch.Generator().manual_seed(n))
        grid = Grid((6, 8, 8), affine)
        planes.append(PlaneFeatures(patches[:6], patches, kept, grid, n, 5.0, np.zeros(3)))
    return StudyFeatures(a_truth(finding), tuple(planes))


def test_a_finding_is_looked_for_in_the_patches_that_show_it_on_each_plane():
    one = features(nodule((33.0, -44.0, 21.0)))
    hints = dict(hints_of(one))
    assert PARTS + STRUCTURES.index(("lung", "right")) in hints
    part = int(shares(np.array([33.0, -44.0, 21.0])).argmax())
    before = 0
    for plane in one.planes:
        first = before + len(plane.slices)
        before = first + len(plane.kept)
        shown = [int(n) - first for n in hints[part] if first <= n < before]
        index = np.rint(plane.grid.to_index(np.array([33.0, -44.0, 21.0]))).astype(int)
        assert np.ravel_multi_index(index, plane.grid.shape) in shown
        assert len(shown) <= 8


def test_a_thinned_study_keeps_what_shows_a_finding():
    one = features(nodule((33.0, -44.0, 21.0)))
    few = thinned(one, random.Random(0))
    for whole, part in zip(one.planes, few.planes, strict=True):
        assert 0.3 < len(part.kept) / len(whole.kept) < 0.6
        torch.testing.assert_close(part.patches, whole.patches[part.kept])
    whole, part = dict(hints_of(one)), dict(hints_of(few))
    assert {n: len(at) for n, at in part.items()} == {n: len(at) for n, at in whole.items()}


def test_the_bridge_begins_by_telling_next_to_nothing_and_can_be_taught(writer):
    one = features(nodule((33.0, -44.0, 21.0)))
    with torch.no_grad():
        tokens, parts = writer.seen(one)
        assert (tokens - writer.rest).abs().mean() < (writer.teller(told(one.truth, np.zeros(3)))).abs().amax()
        torch.testing.assert_close(tokens, writer.bridge(one.planes), atol=1e-4, rtol=1e-4)
    assert parts["told"] > 0
    assert parts["looked"] > 0
    assert writer.seen(replace(one, truth=a_truth()))[1]["looked"] == 0


def test_outlines_are_kept_and_a_cut_off_line_is_made_again(tmp_path):
    path = tmp_path / "outlines.jsonl"
    first = outlines(path, range(2_000_000, 2_000_003))
    path.write_text(path.read_text()[:-9])
    again = outlines(path, range(2_000_000, 2_000_003))
    assert [one.truth for one in again] == [one.truth for one in first]
    assert len(path.read_text().splitlines()) == 3
    truth, grid = made_outline(2_000_000)
    assert first[0].truth == truth
    np.testing.assert_allclose(first[0].centre, grid.centre)


def test_zones_cover_a_torso():
    assert (np.array(ZONE_MM) * (8, 3, 4) >= (380, 250, 380)).all()
