"""How words are learned: several exchanges in one sequence, zones, soft numbers."""

import numpy as np
import pytest
import torch

from MedVLMReaderLib.phantom import made_truth
from MedVLMReaderLib.training.language import Turn, corpus, encoded, made_tokenizer, number_ids
from MedVLMReaderLib.training.recipe import new_writer
from MedVLMReaderLib.training.words import ZONES, packed, softened, zone_centres, zone_of, zone_truth

REPORT = Turn("Describe the findings.", "Findings: Nodule of 14 mm in the right lung. The liver is normal.")
SIZE = Turn("How large is it?", "14 mm.")


@pytest.fixture(scope="module")
def tokenizer():
    return made_tokenizer(corpus(made_truth(seed) for seed in range(4)))


def test_exchanges_in_one_sequence_are_learned_as_if_each_were_alone(tokenizer):
    writer = new_writer(tokenizer, seed=0).eval()
    visual = torch.randn(5, writer.decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = writer._words(visual, [REPORT, SIZE], tokenizer)
        alone = [writer._words(visual, [turn], tokenizer) for turn in (REPORT, SIZE)]
    weight = [packed([encoded(turn, tokenizer)], 5, tokenizer).weights.sum() for turn in (REPORT, SIZE)]
    expected = sum(a * w for a, w in zip(alone, weight, strict=True)) / sum(weight)
    assert together == pytest.approx(float(expected), abs=1e-4)


def test_only_answers_are_learned(tokenizer):
    ids, start = encoded(SIZE, tokenizer)
    batch = packed([(ids, start)], 3, tokenizer)
    assert (batch.weights[:start] == 0).all()
    assert (batch.weights[start:] > 0).all()
    assert batch.positions.tolist() == list(range(3 + len(ids)))


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


def test_every_zone_holds_its_own_centre():
    assert [zone_of(place) for place in zone_centres()] == list(range(int(np.prod(ZONES))))


def test_a_finding_is_asked_of_the_zone_that_holds_it():
    truth = next(t for t in map(made_truth, range(50)) if len(t.findings) >= 2)
    said = zone_truth(truth, np.array(truth.findings[0].ras))
    middle = zone_of(np.zeros(3))
    assert said[middle, 0].sum() >= 1
    assert said[:, 0].sum() <= len(truth.findings)
