"""Later stages: features of every study computed once and kept, then Z-former, perceiver and decoder learn words.

While it learns, each latent of the perceiver is also asked, through a head that is thrown away afterwards, which
findings have their centre in its own part of the scan, or about one structure: otherwise the latents stay alike and
nothing small is ever mentioned.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from MedVLMReaderLib.geometry import Array, Grid
from MedVLMReaderLib.models.ms_vlm import Bridge, PlaneFeatures, SliceEncoder, fourier, kept_patches
from MedVLMReaderLib.planting import KINDS
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training.encoder import SIZE_SCALE_MM, channels
from MedVLMReaderLib.training.language import Turn, encoded, number_ids, turns
from MedVLMReaderLib.training.made_data import PreparedStudy
from MedVLMReaderLib.truth import STRUCTURES, Truth
from MedVLMReaderLib.volume import PLANES

ZONES = (8, 3, 4)
"""Parts of the scan along S, A and R, each with a latent of its own; further latents are free."""
ZONE_MM = (48.0, 90.0, 96.0)
SHORT = 24
"""Tokens of an answer up to which all of it is what the image decides."""
RELIST = 50
"""Steps after which the folder is looked at again: studies may still be arriving."""
NUMBER_SPREAD_MM = 1.5
"""Numbers close to the right size count as nearly right."""


@dataclass(frozen=True, eq=False)
class StudyFeatures:
    """A made study after the slice encoder."""

    truth: Truth
    planes: tuple[PlaneFeatures, ...]


def encode(study: PreparedStudy, encoder: SliceEncoder, recipe: Recipe) -> dict[str, Tensor]:
    """Tensors of a study's features, for `save_file`."""
    tensors: dict[str, Tensor] = {}
    for n, plane in enumerate(study.planes):
        with torch.inference_mode():
            tokens = encoder.encode_stack(torch.from_numpy(channels(plane.values, study.truth, recipe)))
        scale = 1.0 if study.truth.modality == "CT" else 1000.0
        kept = kept_patches(plane.values / np.float32(scale), study.truth.modality, encoder.patch)
        tensors[f"slices_{n}"] = tokens[:, 0].half()
        tensors[f"patches_{n}"] = tokens[:, 1:].flatten(0, 1)[kept].half()
        tensors[f"kept_{n}"] = kept.int()
        tensors[f"affine_{n}"] = torch.from_numpy(np.array(plane.affine))
        tensors[f"shape_{n}"] = torch.tensor([*plane.values.shape])
        tensors[f"acquired_{n}"] = torch.tensor(plane.acquired_mm)
    return {name: value.contiguous() for name, value in tensors.items()}


def planes_of(tensors: dict[str, Tensor], patch: int) -> tuple[PlaneFeatures, ...]:
    """The planes of a study from the tensors of `encode`."""
    planes = []
    centre: Array | None = None
    for n in range(3):
        slices, rows, columns = (int(x) for x in tensors[f"shape_{n}"])
        grid = Grid((slices, rows, columns), tensors[f"affine_{n}"].numpy())
        centre = grid.centre if centre is None else centre
        cells = grid.resize((slices, rows // patch, columns // patch))
        kept, acquired = tensors[f"kept_{n}"].long(), float(tensors[f"acquired_{n}"])
        features = tensors[f"slices_{n}"].float(), tensors[f"patches_{n}"].float()
        planes.append(PlaneFeatures(*features, kept, cells, n, acquired, centre))
    return tuple(planes)


def encode_all(data: Path, folder: Path, encoder: SliceEncoder, recipe: Recipe) -> None:
    """Features of every prepared study, those that are there skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.eval()
    for path in sorted(data.glob("*.npz")):
        out = folder / f"{path.stem}.safetensors"
        if not out.exists():
            study = PreparedStudy.load(path)
            save_file(encode(study, encoder, recipe), folder / "part", {"truth": json.dumps(study.truth.to_json())})
            (folder / "part").replace(out)


def load_features(path: Path, patch: int) -> StudyFeatures:
    """The features of one study."""
    with safe_open(path, "pt") as file:
        truth = Truth.from_json(json.loads(file.metadata()["truth"]))
    return StudyFeatures(truth, planes_of(load_file(path), patch))


class ZoneHead(nn.Module):
    """What a latent says of its zone: per kind a finding's presence and size; only ever used in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.findings = nn.Linear(width, 4 * len(KINDS))

    def forward(self, latents: Tensor) -> Tensor:
        """(zones, 4, kinds): present, several, on the right, size."""
        return self.findings(latents[: int(np.prod(ZONES))]).unflatten(-1, (4, len(KINDS)))


def zone_of(ras: Array) -> int:
    """Number of the zone of a place measured from the scan's middle."""
    r, a, s = ras
    at = [int(np.clip(np.floor(x / mm + n / 2), 0, n - 1)) for x, mm, n in zip((s, a, r), ZONE_MM, ZONES, strict=True)]
    return int(np.ravel_multi_index(at, ZONES))


def zone_centres() -> Array:
    """(zones, 3) r, a, s of each zone's centre, from the scan's middle."""
    axes = [(np.arange(n) + 0.5 - n / 2) * mm for n, mm in zip(ZONES, ZONE_MM, strict=True)]
    s, a, r = np.meshgrid(*axes, indexing="ij")
    return np.stack([r, a, s], -1).reshape(-1, 3)


def zone_truth(truth: Truth, centre: Array) -> Tensor:
    """(zones, 4, kinds) as `ZoneHead` should say it."""
    said = torch.zeros(int(np.prod(ZONES)), 4, len(KINDS))
    for finding in truth.findings:
        cell = said[zone_of(np.array(finding.ras) - centre), :, KINDS.index(finding.kind)]
        cell[1] = cell[0]
        cell[0] = 1
        cell[2] = float(finding.side == "right")
        cell[3] = max(float(cell[3]), finding.size_mm / SIZE_SCALE_MM)
    return said


def zone_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Focal on presence; side, number and size where something is."""
    present, several, right, size = scores.unbind(1)
    entropy = F.binary_cross_entropy_with_logits(present, truth[:, 0], reduction="none")
    miss = (truth[:, 0] - present.sigmoid()).abs()
    total = (entropy * miss**2 * (1 + 3 * truth[:, 0])).sum() / 4
    here = truth[:, 0] > 0
    if here.any():
        total = total + F.binary_cross_entropy_with_logits(right[here], truth[:, 2][here])
        total = total + F.binary_cross_entropy_with_logits(several[here], truth[:, 1][here])
        total = total + 2 * F.smooth_l1_loss(size[here], truth[:, 3][here], beta=0.1)
    return total


class OverviewHead(nn.Module):
    """What the latents behind the zones say: one of each structure, the last of the scan; only used in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.structure = nn.Linear(width, 1 + len(KINDS))
        self.scan = nn.Linear(width, len(PLANES) + 2)

    def loss(self, latents: Tensor, truth: Truth) -> Tensor:
        """Whether each structure is in view and which kinds lie in it; plane, phase and modality."""
        first = int(np.prod(ZONES))
        said = self.structure(latents[first : first + len(STRUCTURES)])
        right = torch.zeros_like(said)
        for n, structure in enumerate(STRUCTURES):
            right[n, 0] = float(structure in truth.in_view)
            for finding in truth.findings:
                if (finding.organ, finding.side) == structure:
                    right[n, 1 + KINDS.index(finding.kind)] = 1
        scan = self.scan(latents[-1])
        plane = torch.tensor(PLANES.index(truth.plane))
        rest = torch.tensor([float(truth.phase == "contrast"), float(truth.modality == "CT")])
        structures = F.binary_cross_entropy_with_logits(said, right, pos_weight=torch.tensor(3.0)) * 3
        return (
            structures
            + 0.3 * F.cross_entropy(scan[: len(PLANES)], plane)
            + 0.3 * F.binary_cross_entropy_with_logits(scan[len(PLANES) :], rest)
        )


class Writer(nn.Module):
    """Bridge, decoder and the training-only heads."""

    def __init__(self, bridge: Bridge, decoder: Any) -> None:
        super().__init__()
        self.bridge, self.decoder = bridge, decoder
        self.zones = ZoneHead(bridge.to_perceiver.out_features)
        self.overview = OverviewHead(bridge.to_perceiver.out_features)

    def forward(self, features: StudyFeatures, turns: Sequence[Turn], tokenizer: Any) -> dict[str, Tensor]:
        """The parts of the loss on one study."""
        latents = self.bridge.latents(features.planes)
        truth = zone_truth(features.truth, features.planes[0].centre)
        visual = self.bridge.to_decoder(latents)
        return {
            "zones": 0.1 * zone_loss(self.zones(latents), truth),
            "overview": self.overview.loss(latents, features.truth),
            "words": self._words(visual, turns, tokenizer),
        }

    def _words(self, visual: Tensor, turns: Sequence[Turn], tokenizer: Any) -> Tensor:
        batch = packed([encoded(turn, tokenizer) for turn in turns], len(visual), tokenizer)
        told = self.decoder.get_input_embeddings()(batch.ids)
        hidden = self.decoder.model(
            inputs_embeds=torch.cat([visual, told])[None],
            attention_mask=batch.allowed[None, None],
            position_ids=batch.positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        right, weights = batch.ids[1:], batch.weights[1:]
        counted = weights > 0
        scores = self.decoder.lm_head(hidden[len(visual) : -1][counted])
        targets = softened(right[counted], scores.shape[-1], number_ids(tokenizer))
        losses = -(targets * scores.log_softmax(-1)).sum(-1)
        return (losses * weights[counted]).sum() / weights[counted].sum()


@dataclass(frozen=True, eq=False)
class Packed:
    """Several exchanges about one study in one sequence, blind to each other, each right behind the visual tokens."""

    ids: Tensor
    """(words,) of all exchanges, one after the other."""
    weights: Tensor
    """(words,) of each as something to be said: 0 in questions."""
    positions: Tensor
    """(visual + words,)."""
    allowed: Tensor
    """(visual + words, visual + words) bool: who may attend to whom."""


def packed(pairs: Sequence[tuple[list[int], int]], visual: int, tokenizer: Any) -> Packed:
    """The exchanges (ids, where the answer starts) behind `visual` tokens."""
    owner = torch.cat([torch.full((len(ids),), n) for n, (ids, _) in enumerate(pairs)])
    positions = torch.cat([torch.arange(visual), *(visual + torch.arange(len(ids)) for ids, _ in pairs)])
    weights = torch.cat([torch.cat([torch.zeros(start), informative(ids[start:], tokenizer)]) for ids, start in pairs])
    same = torch.cat([torch.full((visual,), -1), owner])
    length = len(same)
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    allowed &= (same[:, None] == same[None]) | (same[None] == -1)
    return Packed(torch.tensor([token for ids, _ in pairs for token in ids]), weights, positions, allowed)


def informative(answer: list[int], tokenizer: Any) -> Tensor:
    """Weights of an answer's tokens: what the image decides counts, what the wording alone decides hardly."""
    if len(answer) < SHORT:
        return torch.full((len(answer),), 3.0)
    weights = torch.full((len(answer),), 0.2)
    sentence: list[int] = []
    first = True
    for n, token in enumerate(answer):
        sentence.append(n)
        if "." in tokenizer.decode([token]):
            if first:
                weights[sentence] = 3.0  # plane, modality and phase
            elif "mm" in tokenizer.decode([answer[m] for m in sentence]):
                weights[sentence] = 2.0
            weights[sentence[0]] = 3.0  # the word that decides whether there is a finding
            sentence, first = [], False
    return weights


def softened(right: Tensor, vocabulary: int, numbers: dict[int, int]) -> Tensor:
    """(n, vocabulary) targets: all on the right token; for numbers, spread over those close by."""
    targets = F.one_hot(right, vocabulary).float()
    ids = torch.tensor(list(numbers))
    values = torch.tensor(list(numbers.values()), dtype=torch.float32)
    for row in torch.isin(right, ids).nonzero()[:, 0]:
        near = torch.exp(-((values - numbers[int(right[row])]) ** 2) / (2 * NUMBER_SPREAD_MM**2))
        targets[row] = 0
        targets[row, ids] = near / near.sum()
    return targets


def place_latents(bridge: Bridge, octaves: int) -> None:
    """Start each zone's latent where the patches of its zone are: it then attends there from the first step."""
    perceiver = bridge.perceiver
    with torch.no_grad():
        code = fourier(torch.from_numpy(zone_centres().astype(np.float32)), octaves)
        looks = bridge.to_perceiver(bridge.place(code))
        perceiver.latents[: len(looks)] = looks / looks.std() * 0.7
        for layer in perceiver.layers:
            attend: Any = layer[0]  # type: ignore[index]
            inner = attend.to_q.out_features
            attend.to_kv.weight[:inner] = attend.to_q.weight


class Studies:
    """Studies with features, in an order shuffled by seed."""

    def __init__(self, folder: Path, patch: int, seed: int) -> None:
        self.folder, self.patch, self.seed = folder, patch, seed
        self.paths = sorted(folder.glob("*.safetensors"))

    def at(self, step: int, count: int, asked: int) -> list[tuple[StudyFeatures, list[Turn]]]:
        """The studies of a step, each with its turns. New files in the folder are taken up now and then."""
        if step % RELIST == 0:
            self.paths = sorted(self.folder.glob("*.safetensors"))
        rng = random.Random(self.seed * 1_000_003 + step)
        chosen = [load_features(path, self.patch) for path in rng.sample(self.paths, count)]
        return [(features, turns(features.truth, rng, asked)) for features in chosen]
