"""The engine of the papers' trainings: transformers' Trainer on one CPU, one GPU, or many by `accelerate launch`.

A training is a network that gives the parts of its loss for a batch, rows to draw batches from, and settings. It goes
on from its last whole checkpoint with the same random numbers, so a kill changes nothing in the curve.
"""

# ruff: noqa: ARG002 -- signatures are the Trainer's
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import set_seed

from MedVLMReaderLib import ReaderError

Batch = dict[str, Any]
WEIGHTS, STATE, LOG = "model.safetensors", "trainer_state.json", "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """How a network is trained. The batch is that of one process."""

    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    """Batches that one step learns from."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warm_up: float = 0.03
    """Share of the steps over which the learning rate rises; it then falls by a cosine."""
    clip: float = 1.0
    """Largest length of the gradient."""
    precision: str = "fp32"
    """fp32 or bf16: of the products, the weights stay in 32 bits."""
    gradient_checkpointing: bool = False
    freeze_norms: bool = False
    """Batch norms keep their means and spreads."""
    save_every: int = 200
    log_every: int = 10
    seed: int = 42
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ReaderError(f"The precision is '{self.precision}'; training knows fp32 and bf16.")
        counts = self.steps, self.batch, self.accumulate, self.save_every, self.log_every
        if min(counts) < 1 or not 0 <= self.warm_up < 1 or self.learning_rate <= 0:
            raise ReaderError(f"Settings of a training that cannot be run: {self}.")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "[training]") -> Settings:
        """Settings from a table of a configuration; ReaderError for a key that does not exist, or a wrong kind."""
        known = {one.name: type(one.default) for one in fields(cls)}
        for name, value in table.items():
            if name not in known:
                raise ReaderError(f"{where} has the key '{name}', which does not exist. Known: {', '.join(known)}.")
            if type(value) is not known[name] and not (known[name] is float and type(value) is int):
                raise ReaderError(f"{where} has {name} = {value!r}; it should be of the kind {known[name].__name__}.")
        return cls(**table)


class Rows(Protocol):
    """What batches are drawn from; each row says in "name" what it is, for messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int) -> Batch: ...


Collate = Callable[[list[Batch]], Batch]


def fit(
    network: nn.Module, rows: Rows, collate: Collate, settings: Settings, folder: Path, *, minutes: float = 1e9
) -> bool:
    """Train until the steps are done; False where the minutes ran out first (call again to go on).

    `network(**batch)` gives the parts of the loss by name; `batch["name"]` stays here. In `folder`: log.jsonl, files
    for TensorBoard, checkpoints, and at the end model.safetensors: all but the tensors that the network names in
    `elsewhere`, which come from another file and do not change. Raises ReaderError where loss or gradient is no
    number, with the batch; the last good checkpoint stays.
    """
    set_seed(settings.seed)
    last = last_checkpoint(folder)
    if settings.gradient_checkpointing:
        for part in network.modules():
            if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
                part.gradient_checkpointing_enable()
    trainer = _Trainer(
        model=network, args=_arguments(settings, folder), train_dataset=cast(Any, rows), data_collator=collate,
        callbacks=[_Log(folder, last), _Watch(minutes)],
    )  # fmt: skip
    trainer.frozen_norms = settings.freeze_norms
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    finished = bool(trainer.state.global_step >= settings.steps)
    if finished and trainer.is_world_process_zero():
        save_file(_whole(network.state_dict(), _elsewhere(network)), folder / "part", {"format": "pt"})
        (folder / "part").replace(folder / WEIGHTS)
    return finished


def leads() -> bool:
    """Whether this process is the only one, or the one of several that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; one that a kill cut short is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: -int(path.name.partition("-")[2])):
        try:
            json.loads((path / STATE).read_text())  # written last
        except (OSError, ValueError):
            continue
        return path
    return None


def curve(folder: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate, learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay, warmup_steps=settings.warm_up, lr_scheduler_type="cosine",
        max_grad_norm=settings.clip, bf16=settings.precision == "bf16", save_steps=settings.save_every,
        save_total_limit=2, logging_steps=settings.log_every, logging_nan_inf_filter=False, seed=settings.seed,
        use_cpu=settings.cpu, report_to=["tensorboard"], disable_tqdm=True, remove_unused_columns=False,
        ddp_backend="gloo" if settings.cpu and several else None,
        ddp_find_unused_parameters=not settings.gradient_checkpointing,
        dataloader_drop_last=True, dataloader_num_workers=0, dataloader_pin_memory=not settings.cpu,
    )  # fmt: skip


def _elsewhere(network: nn.Module) -> Collection[str]:
    return cast(Collection[str], getattr(network, "elsewhere", ()))


def _whole(state: Mapping[str, Tensor], elsewhere: Collection[str] = ()) -> dict[str, Tensor]:
    """Each tensor once, of those that a network ties together the first, but for those that are `elsewhere`."""
    kept: dict[str, Tensor] = {}
    places: set[tuple[int, torch.Size]] = set()
    for name, tensor in state.items():
        if name in elsewhere:
            continue
        place = tensor.data_ptr(), tensor.shape
        if tensor.numel() and place in places:
            continue
        places.add(place)
        kept[name] = tensor.detach().cpu().contiguous()
    return kept


class _Trainer(Trainer):
    """transformers' Trainer with losses in parts, a check of each, and weights in safetensors alone."""

    frozen_norms = False
    names: Sequence[str] = ()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False
        self.sums: dict[str, float] = {}

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.frozen_norms:
            for part in model.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        self.names = inputs.pop("name", ())
        parts = model(**inputs)
        total = torch.stack([part.float() for part in parts.values()]).sum()
        self._check(total, "loss")
        if len(parts) > 1:
            for name, part in parts.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(part.detach())
        return (total, parts) if return_outputs else total

    def _check(self, value: Tensor, what: str) -> None:
        """ReaderError in every process where in one of them the value is no number."""
        bad = self.accelerator.reduce((~torch.isfinite(value.detach())).float().reshape(1), "sum")
        if float(bad) > 0:
            where = f"step {self.state.global_step} of {Path(str(self.args.output_dir)).name}"
            batch = f" Its batch: {', '.join(map(str, self.names))}." if len(self.names) else ""
            raise ReaderError(
                f"The {what} is {value.item()} at {where}.{batch} The last good checkpoint is kept: look at the batch, "
                "or lower the learning rate, and go on."
            )

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        if "loss" in logs:
            steps = max(1, self.args.logging_steps * self.args.gradient_accumulation_steps)
            logs = {**logs, **{name: total / steps for name, total in self.sums.items()}}
            self.sums = {}
        super().log(logs, *rest, **more)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        whole = _whole(state_dict or self.model.state_dict(), _elsewhere(self.model))
        save_file(whole, folder / WEIGHTS, {"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        if self.is_fsdp_enabled or not path.exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        network = model or self.model
        load_into(network, load_file(path), path)


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors of a training into the network. ReaderError where they are of another one."""
    own = network.state_dict()
    wrong = [name for name in tensors if name not in own or own[name].shape != tensors[name].shape]
    missing = sorted(set(_whole(own, _elsewhere(network))) - set(tensors))
    if wrong or missing:
        name = (wrong or missing)[0]
        raise ReaderError(f"'{path}' is of another system or size: '{name}' does not fit. Choose its own folder.")
    network.load_state_dict(dict(tensors), strict=False)


class _Log(TrainerCallback):
    """One JSON object a line in log.jsonl. What a killed run logged after its last checkpoint is taken back."""

    def __init__(self, folder: Path, last: Path | None) -> None:
        self.path, self.last = folder / LOG, last

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if state.is_world_process_zero and logs and "loss" in logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class _Watch(TrainerCallback):
    """Stops, with a checkpoint, when the minutes are over; and before a gradient that is no number spoils weights."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + minutes * 60

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
                    ) -> TrainerControl:  # fmt: skip
        if time.monotonic() > self.end and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        for name, one in model.named_parameters():
            if one.grad is not None and not bool(torch.isfinite(one.grad).all()):
                raise ReaderError(
                    f"The gradient of '{name}' is no number at step {state.global_step} of "
                    f"{Path(str(args.output_dir)).name}. The last good checkpoint is kept: lower the learning rate."
                )
