"""Med3DInsight's pre-training from scans alone: captions of slices, a teacher, and the encoder that learns from it.

Captions come from any model that the reader can load; the teacher is a CLIP, published or learned here from slices and
captions. No mask and no label comes in here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.block import BlockRecipe
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.models.med3d_insight import Med3DInsight, Sizes
from MedVLMReaderLib.models.pyramid import EncoderSizes
from MedVLMReaderLib.training import slice_captions
from MedVLMReaderLib.training import teacher as clip
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit, leads
from MedVLMReaderLib.training.med3d_insight import Arrays, Insight, Objective, shuffled, together
from MedVLMReaderLib.training.prepared import Prepared
from MedVLMReaderLib.training.slice_captions import Ask, Caption, evenly, picture_of
from MedVLMReaderLib.training.teacher import Teacher
from MedVLMReaderLib.volume import PLANES, PlaneName

OBJECTIVES: tuple[Objective, ...] = "transport", "contrastive"
Place = tuple[PlaneName, int]
"""A slice of a block."""


@dataclass(frozen=True)
class Plan:
    """How an encoder is pre-trained."""

    recipe: BlockRecipe
    sizes: Sizes
    """The teacher's embedding takes the place of theirs."""
    training: Settings
    objective: Objective = "transport"
    each: int = 1
    """Captioned slices of each plane of a scan."""
    more: int = 0
    """Further slices of each plane, which the teacher looks at alone: of all captions it takes the nearest one."""
    thick_mm: float = slice_captions.THICK_MM
    """Of what is shown of a scan around a slice."""
    teacher: Path | None = None
    """The folder of a CLIP; None: a small one learns here."""
    teacher_sizes: clip.TeacherSizes = field(default_factory=clip.TeacherSizes)
    teacher_training: Settings = field(default_factory=Settings)


@dataclass(frozen=True, eq=False)
class Told:
    """Scans as blocks, with what was said of their slices."""

    names: list[str]
    blocks: list[Array]
    """(depth, rows, columns) uint8 each."""
    captions: list[list[Caption]]
    """As many of each scan."""

    @property
    def slices(self) -> list[Array]:
        """Captioned slices as grey pictures of 0 to 1, one scan's after another's."""
        return [_picture(one, (caption.plane, caption.slice))
                for one, ours in zip(self.blocks, self.captions, strict=True) for caption in ours]  # fmt: skip

    @property
    def texts(self) -> list[str]:
        return [caption.text for ours in self.captions for caption in ours]

    def mixed(self, seed: int) -> Told:
        """The control: each slice with another one's caption."""
        order = shuffled(torch.arange(len(self.texts))[:, None], seed)[:, 0].tolist()
        texts = iter([self.texts[n] for n in order])
        return replace(self, captions=[[replace(one, text=next(texts)) for one in ours] for ours in self.captions])


def told(names: Sequence[str], plan: Plan, ask: Callable[[], Ask], folder: Path) -> Told:
    """The scans with their captions, kept in a folder; `ask` loads the model where a caption is missing."""
    captions = list(
        slice_captions.captions(
            names, plan.recipe, ask, folder / "captions.jsonl", each=plan.each, thick_mm=plan.thick_mm
        )
    )
    prepared = Prepared(folder / "blocks", plan.recipe)
    return Told(list(names), [np.asarray(prepared.of(name)) for name in names], captions)


def taught(ours: Told, plan: Plan, folder: Path, minutes: float = 1e9) -> Teacher | None:
    """The teacher; None where a small one has not learned to its end when the minutes are over."""
    if plan.teacher is not None:
        return clip.load(plan.teacher)
    return clip.taught(ours.slices, ours.texts, plan.teacher_sizes, plan.teacher_training, folder, minutes=minutes)


def targets(ours: Told, teacher: Teacher, more: int, seed: int) -> dict[str, Tensor]:
    """What the network is given and asked: volumes (scans, 1, ...) and of each scan's slices (scans, slices, ...) the
    plane, the number, and the teacher's embedding of picture and caption."""
    rng, texts = np.random.default_rng(seed), teacher.of_captions(ours.texts)
    captions = iter(texts)
    rows: dict[str, list[Tensor]] = {"plane": [], "slice_number": [], "picture": [], "caption": []}
    for block, said in zip(ours.blocks, ours.captions, strict=True):
        places: list[Place] = [(one.plane, one.slice) for one in said]
        places += [(plane, n) for axis, plane in enumerate(PLANES) for n in evenly(block.shape[axis], more, rng)]
        seen = teacher.of_pictures([_picture(block, place) for place in places])
        near = texts[(seen[len(said) :] @ texts.T).argmax(1)]
        rows["plane"].append(torch.tensor([PLANES.index(plane) for plane, _ in places]))
        rows["slice_number"].append(torch.tensor([n for _, n in places]))
        rows["picture"].append(seen)
        rows["caption"].append(torch.cat([torch.stack([next(captions) for _ in said]), near]))
    volumes = torch.from_numpy(np.stack(ours.blocks))[:, None].float() / 255
    return {"volumes": volumes, **{name: torch.stack(row) for name, row in rows.items()}}


def pretrained(ours: Told, plan: Plan, folder: Path, minutes: float = 1e9) -> dict[str, Tensor] | None:
    """The encoder's tensors after pre-training; None where it is not finished (call again to go on)."""
    teacher = taught(ours, plan, folder / "teacher", minutes)
    if teacher is None:
        return None
    settings = plan.training
    torch.manual_seed(settings.seed)
    network = Insight(Med3DInsight(replace(plan.sizes, embedding=teacher.embedding)), plan.objective)
    if (folder / WEIGHTS).exists():
        network.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    else:
        rows = Arrays(targets(ours, teacher, plan.more, settings.seed), ours.names)
        if not fit(network, rows, together, settings, folder, minutes=minutes):
            return None
    return {name: one.clone() for name, one in network.network.encoder.state_dict().items()}


def train(ours: Told, plan: Plan, folder: Path, minutes: float = 1e9) -> bool:
    """Pre-train; True when finished, then with the encoder in folder/encoder."""
    encoder = pretrained(ours, plan, folder, minutes)
    if encoder is None:
        return False
    if leads():
        save(encoder, plan, folder / "encoder")
    return True


def save(encoder: dict[str, Tensor], plan: Plan, folder: Path) -> None:
    """Write the encoder with its sizes and the recipe of its blocks: config.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in encoder.items()}, folder / WEIGHTS, {"format": "pt"})
    config = {"system": "med3dinsight", "encoder": plan.sizes.encoder.to_json(), "recipe": plan.recipe.to_json()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(folder: Path) -> tuple[EncoderSizes, BlockRecipe, dict[str, Tensor]]:
    """A saved encoder's sizes, recipe and tensors, for heads to begin from. ReaderError where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        sizes, recipe = EncoderSizes.from_json(config["encoder"]), BlockRecipe.from_json(config["recipe"])
        return sizes, recipe, load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ReaderError(f"'{folder}' holds no pre-trained encoder that can be read ({error}).") from None


def _picture(block: Array, place: Place) -> Array:
    return np.asarray(picture_of(block, *place) / np.float32(255))
