"""Does Med3DInsight's pre-training help with 10 labelled studies? python -m Testing.experiments.insight --out DIR

Made studies at 32x96x96. A model of the reader (the built-in one) writes captions of slices; a small CLIP learns from
those slices and captions; the volume encoder learns from the CLIP; then masks and labels are learned from 10 studies,
three times. Beside it: no pre-training, and pre-training with other slices' captions. Goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.models.med3d_insight import Sizes
from MedVLMReaderLib.models.pyramid import EncoderSizes
from MedVLMReaderLib.models.segmenter import MaskModel
from MedVLMReaderLib.training import downstream
from MedVLMReaderLib.training.engine import Settings
from MedVLMReaderLib.training.insight import Plan, Told, pretrained, told
from MedVLMReaderLib.training.med3d_insight import Objective
from MedVLMReaderLib.training.slice_captions import Ask, asked_of
from MedVLMReaderLib.volume import Volume

RECIPE = BlockRecipe((32, 96, 96), window_ct=(-1000.0, 600.0), plane="axial")
ENCODER = EncoderSizes("resnet", (8, 8, 16, 32, 64), (1, 1, 1, 1))
UNLABELLED, LABELLED, TESTED = 1_000_000, 930_000, 940_000
"""First seeds of the studies for pre-training, for the heads, and to measure on."""
SIZES = Sizes(ENCODER, width=64, depth=2, heads=4, inner=64, queries=8, places=128)
ARMS = "scratch", "pre-trained", "shuffled"


TEACHER = Settings(400, 32, learning_rate=1e-3, weight_decay=0.05, save_every=1000, seed=10, cpu=True)
INSIGHT = Settings(200, 8, learning_rate=2e-3, weight_decay=1e-2, precision="bf16", save_every=1000, seed=10, cpu=True)
MASKS = Settings(60, 2, learning_rate=3e-2, precision="bf16", save_every=1000, cpu=True)
LABELS = Settings(40, 10, learning_rate=1e-3, weight_decay=1e-2, precision="bf16", save_every=1000, cpu=True)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    studies: int = 64
    each: int = 1
    """Captioned slices of each plane of a study."""
    more: int = 7
    """Slices of each plane that have no caption of their own."""
    labelled: int = 10
    tested: int = 40
    seeds: int = 3
    teacher: Settings = TEACHER
    insight: Settings = INSIGHT
    masks: Settings = MASKS
    labels: Settings = LABELS
    objective: Objective = "contrastive"


def plan_of(size: Size) -> Plan:
    return Plan(RECIPE, SIZES, size.insight, size.objective, size.each, size.more, teacher_training=size.teacher)


def pretraining(out: Path, size: Size) -> Told:
    """The unlabelled studies with the captions of their slices."""

    def loaded() -> Ask:
        from MedVLMReaderLib.reader import load

        fully = asked_of(load("built-in"))

        def ask(part: Volume) -> str:
            with torch.autocast("cpu", torch.bfloat16):
                return fully(part)

        return ask

    return told([f"made:{UNLABELLED + n}" for n in range(size.studies)], plan_of(size), loaded, out)


def started(ours: Told | None, out: Path, size: Size, arm: str) -> dict[str, Tensor] | None:
    """The encoder's tensors of an arm; None for the untrained one. The control's teacher has other captions as well."""
    if ours is None or arm == "scratch":
        return None
    return pretrained(ours.mixed(size.insight.seed) if arm == "shuffled" else ours, plan_of(size), out / arm)


def measured(out: Path, size: Size, arms: Sequence[str] = ARMS) -> dict[str, Any]:
    """Dice and accuracy of each arm and seed, those that are kept not worked out again."""
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ours = pretraining(out, size) if set(arms) - {"scratch"} else None
    tested = [downstream.labelled(TESTED + n, RECIPE, out / "labelled") for n in range(size.tested)]
    for seed in range(size.seeds):
        first = LABELLED + seed * size.labelled
        few = [downstream.labelled(first + n, RECIPE, out / "labelled") for n in range(size.labelled)]
        for arm in arms:
            if f"{arm}-{seed}" in results:
                continue
            start = started(ours, out, size, arm)
            masks = downstream.segmenter(
                ENCODER, few, replace(size.masks, seed=seed), out / f"masks-{arm}-{seed}", start=start
            )
            labels = downstream.classifier(
                ENCODER, few, replace(size.labels, seed=seed), out / f"labels-{arm}-{seed}", start=start
            )
            assert masks is not None
            assert labels is not None
            MaskModel(masks, ENCODER, downstream.ORGANS, RECIPE).save(out / "segmenters" / f"{arm}-{seed}")
            results[f"{arm}-{seed}"] = {
                "dice": downstream.dice(masks, tested)["dice"]["all"]["value"],
                "accuracy": downstream.accuracy(labels, tested)["accuracy"]["all"]["value"],
            }
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(arm, seed, results[f"{arm}-{seed}"], flush=True)
    return results


def table(results: dict[str, Any], arms: Sequence[str] = ARMS) -> str:
    """Mean and spread over the seeds, in points."""
    lines = ["| arm | Dice | accuracy |", "| --- | --- | --- |"]
    for arm in arms:
        rows = [value for name, value in results.items() if name.rpartition("-")[0] == arm]
        cells = []
        for what in ("dice", "accuracy"):
            values = 100 * np.array([row[what] for row in rows])
            cells.append(f"{values.mean():.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--studies", type=int, default=64)
    parser.add_argument("--objective", choices=("transport", "contrastive"), default="contrastive")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    how, began = parser.parse_args(), time.process_time()
    size = Size(seeds=how.seeds, studies=how.studies, objective=how.objective)
    print(table(measured(how.out, size, how.arms), how.arms))
    print(f"{(time.process_time() - began) / 60:.1f} minutes of CPU time")


if __name__ == "__main__":
    main()
