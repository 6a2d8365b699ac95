"""The training loop that every stage shares: schedule, log, and checkpoints that survive a kill."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up and a cosine to nothing."""

    steps: int
    learning_rate: float
    warm_up: int = 100
    weight_decay: float = 0.02
    save_every: int = 100
    log_every: int = 20

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def train(
    network: nn.Module,
    losses: Callable[[int], dict[str, Tensor]],
    folder: Path,
    schedule: Schedule,
    minutes: float = 1e9,
) -> bool:
    """Step until the schedule ends; True then, False where the minutes ran out first (call again to go on).

    `losses(step)` gives the parts of one batch's loss. The log is one JSON object a line in log.jsonl. Raises
    ReaderError where the loss or its gradient is no longer a number; the last good checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))
    start, began, sums = resumed(network, optimiser, folder), time.monotonic(), Means()
    network.train()
    for step in range(start, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        torch.manual_seed(step)  # dropout after a kill is what it would have been
        parts = losses(step)
        total = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(total):
            raise ReaderError(f"The loss is {total.item()} at {_place(step, folder)}")
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        steepness = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not torch.isfinite(steepness):
            raise ReaderError(f"The gradient is {steepness.item()} at {_place(step, folder)}")
        optimiser.step()
        sums.add(parts)
        if (step + 1) % schedule.log_every == 0:
            _log(folder, {"step": step + 1, "seconds": round(time.monotonic() - began, 1), **sums.taken()})
        over = time.monotonic() - began > minutes * 60
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps or over:
            save(network, optimiser, step + 1, folder)
        if over and step + 1 < schedule.steps:
            return False
    return True


Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """The batch of a step, made while the step before it was learned from."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make, self.pool = make, ThreadPoolExecutor(1)
        self.waiting: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        ready = self.waiting.pop(step, None) or self.pool.submit(self.make, step)
        self.waiting = {step + 1: self.pool.submit(self.make, step + 1)}
        return ready.result()


class Means:
    """Running means of the loss's parts."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.count += 1

    def taken(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: round(total / max(1, self.count), 4) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def _place(step: int, folder: Path) -> str:
    return f"step {step} of {folder.name}. The last good checkpoint is kept: lower the learning rate and go on."


def _log(folder: Path, line: dict[str, float]) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def save(network: nn.Module, optimiser: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Weights, optimiser and step in one safetensors file, whole or not at all."""
    tensors = {f"weights.{name}": value for name, value in network.state_dict().items()}
    for n, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{n}.{name}": torch.as_tensor(value) for name, value in state.items()}
    part = folder / "checkpoint.part"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, part, {"step": str(step)})
    part.replace(folder / "checkpoint.safetensors")


def resumed(network: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> int:
    """Load the checkpoint where there is one; the step to go on from."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    network.load_state_dict(weights_in(tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, n, key = name.split(".", 2)
            state.setdefault(int(n), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint."""
    return {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
