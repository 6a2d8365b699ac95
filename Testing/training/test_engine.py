"""The engine: the same curve after a kill and in two processes, and what stops it says where."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.training.engine import Settings, curve, fit, last_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(steps=11, batch=4, learning_rate=1e-2, save_every=4, log_every=1, cpu=True)


class Toy(nn.Module):
    """Layers with chance in them."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Dropout(0.3), nn.Linear(width, 1))
        self.tied = self.layers[3]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.layers(x)[:, 0]
        return {"squared": ((out - x.sum(1)) ** 2).mean(), "small": 0.01 * out.abs().mean()}


class Numbers:
    """Twenty rows; `at` is told each that is drawn."""

    def __init__(self, at: Any = lambda n: None, broken: int = -1) -> None:
        self.at, self.broken, self.drawn = at, broken, 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, n: int) -> dict[str, Any]:
        self.drawn += 1
        self.at(self.drawn)
        x = torch.randn(5, generator=torch.Generator().manual_seed(n))
        return {"name": f"row {n}", "x": x * torch.nan if n == self.broken else x}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": [row["name"] for row in rows], "x": torch.stack([row["x"] for row in rows])}


def losses(folder: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in curve(folder)}


def kill(after: int) -> Any:
    def at(drawn: int) -> None:
        if drawn > after:
            raise KeyboardInterrupt

    return at


@pytest.mark.parametrize("killed_after", [10, 26])
def test_training_that_was_killed_goes_on_with_the_same_curve_and_weights(tmp_path: Path, killed_after: int) -> None:
    assert fit(Toy(), Numbers(), collate, SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(), Numbers(kill(killed_after)), collate, SETTINGS, tmp_path / "run")
    assert fit(Toy(), Numbers(), collate, SETTINGS, tmp_path / "run")
    whole, again = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert list(again) == list(range(1, 12))
    assert all(abs(again[step] - whole[step]) <= 1e-6 for step in whole)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(), Numbers(kill(36)), collate, SETTINGS, tmp_path)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_training_in_portions_of_time_is_the_same_training(tmp_path: Path) -> None:
    settings, portions = replace(SETTINGS, steps=3), 1
    assert fit(Toy(), Numbers(), collate, settings, tmp_path / "whole")
    while not fit(Toy(), Numbers(), collate, settings, tmp_path / "run", minutes=0):
        portions += 1
    assert portions == 3
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)


def test_the_log_has_the_parts_of_the_loss_and_tensorboard_has_files(tmp_path: Path) -> None:
    fit(Toy(), Numbers(), collate, replace(SETTINGS, steps=4, log_every=2), tmp_path)
    first, second = curve(tmp_path)
    assert (first["step"], second["step"]) == (2, 4)
    assert first["squared"] + first["small"] == pytest.approx(first["loss"], abs=1e-4)
    assert next(tmp_path.rglob("events.out.tfevents*"), None)


def test_a_loss_that_is_no_number_stops_with_the_batch_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"loss is nan at step \d of run\. Its batch: .*row 3.*checkpoint is kept"):
        fit(Toy(), Numbers(broken=3), collate, replace(SETTINGS, save_every=1), tmp_path / "run")
    last = last_checkpoint(tmp_path / "run")
    kept = load_file(last / "model.safetensors") if last else {}
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    class Bottomless(Toy):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {**super().forward(x), "bottomless": (self.layers(x) * 0).abs().sqrt().sum()}

    toy = Bottomless()
    with pytest.raises(ReaderError, match=r"gradient of 'layers\.\d\.\w+' is no number at step 0"):
        fit(toy, Numbers(), collate, SETTINGS, tmp_path)
    assert all(torch.isfinite(one).all() for one in toy.parameters())


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(), Numbers(kill(20)), collate, SETTINGS, tmp_path)
    with pytest.raises(ReaderError, match="of another system or size: 'layers"):
        fit(Toy(width=8), Numbers(), collate, SETTINGS, tmp_path)


def test_16_bits_and_accumulated_batches_train_too(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=3, batch=2, accumulate=2, precision="bf16")
    assert fit(Toy(), Numbers(), collate, settings, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["layers.0.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"lr": 1.0}, "the key 'lr', which does not exist. Known: steps"),
        ({"steps": "many"}, "steps = 'many'; it should be of the kind int"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"batch": 0}, "cannot be run"),
    ],
)
def test_settings_that_do_not_exist_are_told(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ReaderError, match=said):
        Settings.from_table(table)
    assert Settings.from_table({"learning_rate": 1}).learning_rate == 1


def run(folder: Path, *how: str, batch: int) -> dict[int, float]:
    program = str(ROOT / "Testing" / "training" / "two_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *how, program, str(folder), str(batch), "20"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(folder)


@pytest.mark.slow
def test_two_processes_learn_as_one_does_with_the_same_batch(tmp_path: Path) -> None:
    one = run(tmp_path / "one", batch=4)
    two = run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", batch=2)
    assert len(one) == 20
    assert two == pytest.approx(one, abs=1e-5)
    assert one[20] != pytest.approx(one[1], abs=1e-3)
