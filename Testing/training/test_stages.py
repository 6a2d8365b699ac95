"""Training: every stage goes on where it was stopped, and the last one writes a model that the reader loads."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.reader import Options, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.training import recipe
from MedVLMReaderLib.training.loop import Schedule, train, weights_in

SCHEDULE = Schedule(steps=11, learning_rate=1e-2, warm_up=3, save_every=4, log_every=2)


class Toy(nn.Module):
    """A layer that nothing trains, then two that learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.idle = nn.Linear(2, 2)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def losses_of(toy: Toy, at: Callable[[int], None] = lambda step: None) -> Callable[[int], dict[str, Tensor]]:
    """Losses that depend on the step alone; `at` is told each step first."""

    def losses(step: int) -> dict[str, Tensor]:
        at(step)
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        return {"squared": ((toy(x)[:, 0] - x.sum(1)) ** 2).mean(), "small": 0.01 * toy(x).abs().mean()}

    return losses


def checkpoint(folder: Path) -> dict[str, Tensor]:
    return weights_in(load_file(folder / "checkpoint.safetensors"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Tensor]:
    """Weights after training without a break."""
    toy = Toy()
    assert train(toy, losses_of(toy), tmp_path / "whole", SCHEDULE)
    return checkpoint(tmp_path / "whole")


def interrupt(step: int) -> Callable[[int], None]:
    def at(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return at


@pytest.mark.parametrize("killed_at", [0, 2, 4, 6, 10])
def test_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, whole, killed_at):
    toy = Toy()
    with pytest.raises(KeyboardInterrupt):
        train(toy, losses_of(toy, interrupt(killed_at)), tmp_path / "run", SCHEDULE)
    again, steps = Toy(), []
    assert train(again, losses_of(again, steps.append), tmp_path / "run", SCHEDULE)
    assert steps == list(range(killed_at // 4 * 4, 11))
    assert same(checkpoint(tmp_path / "run"), whole)
    assert same(dict(again.state_dict()), whole)


def test_training_in_portions_of_time_ends_with_the_same_weights(tmp_path, whole):
    finished, portions = False, 0
    while not finished:
        toy = Toy()
        finished = train(toy, losses_of(toy), tmp_path / "run", SCHEDULE, minutes=0)
        portions += 1
    assert portions == 11
    assert same(checkpoint(tmp_path / "run"), whole)


def test_finished_training_is_not_done_again(tmp_path):
    toy = Toy()
    train(toy, losses_of(toy), tmp_path, SCHEDULE)
    again = Toy()
    assert train(again, losses_of(again, interrupt(0)), tmp_path, SCHEDULE)
    assert same(dict(again.state_dict()), dict(toy.state_dict()))


def test_training_learns_and_keeps_a_log(tmp_path):
    toy = Toy()
    train(toy, losses_of(toy), tmp_path, replace(SCHEDULE, steps=60, log_every=20))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["squared"] < lines[0]["squared"]


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_checkpoint(tmp_path):
    toy = Toy()
    losses = losses_of(toy)

    def broken(step: int) -> dict[str, Tensor]:
        parts = losses(step)
        return parts if step < 6 else {**parts, "small": parts["small"] * torch.nan}

    with pytest.raises(ReaderError, match=r"nan at step 6 of run.*checkpoint is kept"):
        train(toy, broken, tmp_path / "run", SCHEDULE)
    again, steps = Toy(), []
    assert train(again, losses_of(again, steps.append), tmp_path / "run", SCHEDULE)
    assert steps[0] == 4
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint(tmp_path / "run").values())


def test_a_gradient_that_is_no_number_stops_training_before_it_spoils_the_weights(tmp_path):
    toy = Toy()

    def broken(step: int) -> dict[str, Tensor]:
        bottomless = (toy(torch.zeros(1, 5)) * 0).abs().sqrt().sum()  # 0, with an infinite slope
        return {"squared": toy(torch.ones(1, 5)).sum(), **({"bottomless": bottomless} if step == 3 else {})}

    with pytest.raises(ReaderError, match="gradient"):
        train(toy, broken, tmp_path / "run", SCHEDULE)
    assert all(torch.isfinite(tensor).all() for tensor in toy.state_dict().values())


def test_the_learning_rate_rises_then_falls_to_next_to_nothing():
    rates = [Schedule(100, 1.0, warm_up=10).rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert all(np.diff(rates[10:]) <= 0)
    assert rates[-1] == pytest.approx(0.01)


def test_a_stage_that_is_not_known_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(ReaderError, match=r"data, stem, encoder, features, language, words, encoder-2, .*, export"):
        recipe.run("dream", tmp_path, recipe.Plan())


def test_words_of_one_round_are_never_exported_with_the_encoder_of_another(tmp_path):
    (tmp_path / "encoder-2").mkdir()
    assert recipe.last_round(tmp_path, "encoder") == tmp_path / "encoder"
    (tmp_path / "words-2").mkdir()
    assert recipe.last_round(tmp_path, "encoder") == tmp_path / "encoder-2"


@pytest.mark.slow
def test_a_trial_of_all_stages_writes_a_model_that_reads_a_study(tmp_path):
    plan, runs = recipe.trial(recipe.Plan()), tmp_path / "runs"
    began = time.process_time()
    for stage in recipe.STAGES[:-1]:
        assert recipe.run(stage, runs, plan)
    recipe.export(runs, tmp_path / "model")
    assert time.process_time() - began < 60
    reader = load(tmp_path / "model")
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 40e6
    study = made_study(7)
    seen = reader.see(study.volume)
    *words, reading = reader.ask(seen, reader.model.report_request(), options=Options(longest=12))
    assert isinstance(reading, Reading)
    assert words
    assert all(torch.isfinite(part).all() for part in seen.features)
    _same_features_as_in_training(runs, reader)
    name = "encoder.blocks.0.attn.proj.weight"
    last, written = recipe.learned_in(runs / "encoder-2")[name], load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(written[f"slice_{name}"], last.half())


def _same_features_as_in_training(runs: Path, reader) -> None:
    """What the reader sees of a study is what training showed the decoder."""
    from MedVLMReaderLib.training.features import load_features
    from MedVLMReaderLib.training.made_data import FIRST_TRAINING_SEED, MIRRORED_EVERY

    path = sorted((runs / "features-2").glob("*.safetensors"))[0]
    seed = int(path.stem)
    assert seed >= FIRST_TRAINING_SEED
    learned = load_features(path, recipe.SIZES.patch).planes
    seen = reader.see(made_study(seed, mirrored=seed % MIRRORED_EVERY == 0).volume)
    for told, now in zip(learned, seen.planes, strict=True):
        assert told.grid.same_as(now.grid)
        assert told.plane == now.plane
        assert told.acquired_mm == pytest.approx(now.acquired_mm)
        np.testing.assert_allclose(told.centre, now.centre, atol=1e-6)
        assert np.isin(told.kept.numpy(), now.kept.numpy()).mean() > 0.99
        shared = np.isin(now.kept.numpy(), told.kept.numpy())
        back = np.isin(told.kept.numpy(), now.kept.numpy())
        apart = (now.patches[torch.from_numpy(shared)] - told.patches[torch.from_numpy(back)]).abs()
        assert apart.median() < 0.02
