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
from MedVLMReaderLib.models.med3d_insight import Med3DInsight, Sizes
from MedVLMReaderLib.models.pyramid import EncoderSizes
from MedVLMReaderLib.models.segmenter import MaskModel
from MedVLMReaderLib.training import downstream, slice_captions
from MedVLMReaderLib.training import teacher as clip
from MedVLMReaderLib.training.engine import Settings, fit
from MedVLMReaderLib.training.med3d_insight import Arrays, Insight, Objective, shuffled, together
from MedVLMReaderLib.training.prepared import Prepared
from MedVLMReaderLib.training.slice_captions import Caption, picture_of
from MedVLMReaderLib.volume import PLANES

RECIPE = BlockRecipe((32, 96, 96), window_ct=(-1000.0, 600.0), plane="axial")
ENCODER = EncoderSizes("resnet", (8, 8, 16, 32, 64), (1, 1, 1, 1))
UNLABELLED, LABELLED, TESTED = 1_000_000, 930_000, 940_000
"""First seeds of the studies for pre-training, for the heads, and to measure on."""
ARMS = "scratch", "pre-trained", "shuffled"


TEACHER = Settings(400, 32, learning_rate=1e-3, weight_decay=0.05, save_every=1000, cpu=True)
INSIGHT = Settings(150, 8, learning_rate=2e-3, weight_decay=1e-2, save_every=1000, cpu=True)
MASKS = Settings(150, 2, learning_rate=3e-3, save_every=1000, cpu=True)
LABELS = Settings(100, 5, learning_rate=1e-3, save_every=1000, cpu=True)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    studies: int = 80
    each: int = 1
    """Captioned slices of each plane of a study."""
    labelled: int = 10
    tested: int = 40
    seeds: int = 3
    teacher: Settings = TEACHER
    insight: Settings = INSIGHT
    masks: Settings = MASKS
    labels: Settings = LABELS
    objective: Objective = "transport"


def told(out: Path, size: Size) -> list[list[Caption]]:
    """The captions of each study's slices."""

    def ask() -> slice_captions.Ask:
        from MedVLMReaderLib.reader import load

        return slice_captions.asked_of(load("built-in"))

    names = [f"made:{UNLABELLED + n}" for n in range(size.studies)]
    return list(slice_captions.captions(names, RECIPE, ask, out / "captions.jsonl", each=size.each))


def pretrained(out: Path, size: Size, captions: Sequence[Sequence[Caption]], seed: int, *, mixed: bool
               ) -> dict[str, Tensor]:  # fmt: skip
    """The encoder's tensors after pre-training. `mixed`: the control, each slice with another one's caption, for the
    teacher as well as for what learns from it."""
    name = f"{'shuffled' if mixed else 'pre-trained'}-{seed}"
    prepared = Prepared(out / "blocks", RECIPE)
    blocks = [np.asarray(prepared.of(ours[0].volume)) for ours in captions]
    slices = [one for ours in captions for one in ours]
    pictures = [picture_of(b, one.plane, one.slice) / np.float32(255) for b, ours in zip(blocks, captions, strict=True)
                for one in ours]  # fmt: skip
    texts = [one.text for one in slices]
    if mixed:
        texts = [texts[int(n)] for n in shuffled(torch.arange(len(texts))[:, None], seed)[:, 0]]
    teacher = clip.taught(pictures, texts, clip.TeacherSizes(), replace(size.teacher, seed=seed), out / f"clip-{name}")
    assert teacher is not None
    count = len(captions[0])

    def of_study(values: Tensor) -> Tensor:
        return values.unflatten(0, (len(captions), count))

    arrays = {
        "volumes": torch.from_numpy(np.stack(blocks))[:, None].float() / 255,
        "plane": of_study(torch.tensor([PLANES.index(one.plane) for one in slices])),
        "slice_number": of_study(torch.tensor([one.slice for one in slices])),
        "picture": of_study(teacher.of_pictures(pictures)),
        "caption": of_study(teacher.of_captions(texts)),
    }
    torch.manual_seed(seed)
    sizes = Sizes(ENCODER, width=64, depth=2, heads=4, inner=64, queries=8, places=128, embedding=teacher.embedding)
    network = Med3DInsight(sizes)
    rows = Arrays(arrays, [ours[0].volume for ours in captions])
    assert fit(Insight(network, size.objective), rows, together, replace(size.insight, seed=seed), out / name)
    return {n: v.clone() for n, v in network.encoder.state_dict().items()}


def measured(out: Path, size: Size, arms: Sequence[str] = ARMS) -> dict[str, Any]:
    """Dice and accuracy of each arm and seed, those that are kept not worked out again."""
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    captions = told(out, size) if set(arms) - {"scratch"} else []
    tested = [downstream.labelled(TESTED + n, RECIPE, out / "labelled") for n in range(size.tested)]
    for seed in range(size.seeds):
        first = LABELLED + seed * size.labelled
        few = [downstream.labelled(first + n, RECIPE, out / "labelled") for n in range(size.labelled)]
        for arm in arms:
            if f"{arm}-{seed}" in results:
                continue
            start = None if arm == "scratch" else pretrained(out, size, captions, seed, mixed=arm == "shuffled")
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
    parser.add_argument("--studies", type=int, default=80)
    parser.add_argument("--objective", choices=("transport", "contrastive"), default="transport")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    how, began = parser.parse_args(), time.process_time()
    size = Size(seeds=how.seeds, studies=how.studies, objective=how.objective)
    print(table(measured(how.out, size, how.arms), how.arms))
    print(f"{(time.process_time() - began) / 60:.1f} minutes of CPU time")


if __name__ == "__main__":
    main()
