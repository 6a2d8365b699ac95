"""Last stages: the decoder learns to write from perfect visual tokens, then the bridge learns to give such tokens.

While it learns, the bridge is told where each finding lies: the latents that must tell it should attend to the patches
that show it. Heads and hints are thrown away afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedVLMReaderLib.models.ms_vlm import Bridge, PlaneFeatures, fourier
from MedVLMReaderLib.training.features import StudyFeatures, load_features
from MedVLMReaderLib.training.language import Turn, encoded, number_ids, turns
from MedVLMReaderLib.training.made_data import Outline
from MedVLMReaderLib.training.telling import PARTS, TOKENS, Teller, centres, shares, told, unsure
from MedVLMReaderLib.truth import STRUCTURES, Finding

SHORT = 24
"""Tokens of an answer up to which all of it is what the image decides."""
RELIST = 50
"""Steps after which the folder is looked at again: studies may still be arriving."""
NUMBER_SPREAD_MM = 1.5
"""Numbers close to the right size count as nearly right."""
FOUND_COUNTS = 20.0
"""How much more than an empty part of the scan one with a finding counts."""
KEPT = 0.45
"""Share of the patches that a study is learned from, but for the last steps."""
FOUND_SAID = 6.0
"""Weight of the word with which a sentence about a finding begins, against 3 of one that finds nothing: what is more
likely than one in three is then said, which is where F1 is best for a reader whose F1 is two thirds."""
IGNORED = -100
QUIET = 0.15
"""Spread of the noise on perfect tokens, of what a token adds for one finding."""


class Writer(nn.Module):
    """Bridge, decoder and what teaches them."""

    rest: Tensor

    def __init__(self, bridge: Bridge, decoder: Any) -> None:
        super().__init__()
        self.bridge, self.decoder = bridge, decoder
        self.teller = Teller(decoder.config.hidden_size)
        with torch.no_grad():
            latents = bridge.perceiver.latents
            assert latents.shape[0] == TOKENS
            self.register_buffer("rest", bridge.to_decoder(bridge.perceiver.norm(latents)))

    def perfect(self, outline: Outline, rng: random.Random) -> Tensor:
        """(TOKENS, decoder width) visual tokens as they should be, a little unsure."""
        tokens = self.rest + self.teller(unsure(outline.truth, outline.centre, rng))
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(rng.getrandbits(40)))
        return tokens + QUIET * self.teller.loudness() ** 0.5 * noise

    def seen(self, features: StudyFeatures) -> tuple[Tensor, dict[str, Tensor]]:
        """The visual tokens of a study, and how far they are from what they should be."""
        media = torch.cat([self.bridge.media(plane) for plane in features.planes])
        hints = hints_of(features)
        perceiver = self.bridge.perceiver
        media = self.bridge.to_perceiver(media)[None] + perceiver.media_pos_emb[0]
        latents, missed = perceiver.latents[None], []
        for attend, feed in perceiver.steps():
            q, k, v = attend.split(media, latents)
            missed.append(_missed(q, k, hints))
            latents = latents + attend.gathered(q, k, v)
            latents = latents + feed(latents)
        tokens = self.bridge.to_decoder(perceiver.norm(latents)[0])
        return tokens, {"told": 3 * self._apart(tokens, features), "looked": 0.3 * torch.stack(missed).mean()}

    def _apart(self, tokens: Tensor, features: StudyFeatures) -> Tensor:
        said = told(features.truth, features.planes[0].centre)
        wanted = (self.rest + self.teller(said)).detach()
        apart = (tokens - wanted).square().mean(-1) / self.teller.loudness()
        weights = torch.cat([1 + FOUND_COUNTS * said.parts.amax(1), torch.tensor([8.0] * len(STRUCTURES) + [40.0])])
        return (apart * weights).sum() / weights.sum()

    def words(self, visual: Sequence[Tensor], turns: Sequence[Sequence[Turn]], tokenizer: Any) -> Tensor:
        """Loss of the answers about several studies, the tokens that the image decides weighted up."""
        batch = packed([[encoded(turn, tokenizer) for turn in ours] for ours in turns], TOKENS, tokenizer)
        given = self.decoder.get_input_embeddings()(batch.ids)
        hidden = self.decoder.model(
            inputs_embeds=torch.cat([torch.stack(list(visual)), given], 1),
            attention_mask=batch.allowed[:, None],
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        right, weights = batch.ids[:, 1:], batch.weights[:, 1:]
        counted = weights > 0
        scores = self.decoder.lm_head(hidden[:, TOKENS:-1][counted])
        targets = softened(right[counted], scores.shape[-1], number_ids(tokenizer))
        losses = -(targets * scores.float().log_softmax(-1)).sum(-1)
        return (losses * weights[counted]).sum() / weights[counted].sum()


# ---- Where to look ---------------------------------------------------------------------------------------------------


def hints_of(features: StudyFeatures) -> list[tuple[int, Tensor]]:
    """(latent, patches that it should attend to) for the part and the structure of every finding.

    Patches are counted as the perceiver reads them: plane after plane, each plane's slices first.
    """
    wanted: dict[int, list[Tensor]] = {}
    for finding in features.truth.findings:
        patches = _showing(finding, features.planes)
        part = shares(np.array(finding.ras) - features.planes[0].centre)
        structure = PARTS + STRUCTURES.index((finding.organ, finding.side))
        for latent in (*np.flatnonzero(part > 0.25).tolist(), structure):
            wanted.setdefault(latent, []).append(patches)
    return [(latent, torch.cat(patches).unique()) for latent, patches in wanted.items() if len(torch.cat(patches))]


def _showing(finding: Finding, planes: Sequence[PlaneFeatures]) -> Tensor:
    found, before = [], 0
    for plane in planes:
        index = np.stack(np.unravel_index(plane.kept.numpy(), plane.grid.shape), -1)
        reach = 0.6 + 0.35 * finding.size_mm / plane.grid.spacing
        near = (np.abs(index - plane.grid.to_index(np.array(finding.ras))) <= reach).all(1)
        before += len(plane.slices)
        found.append(torch.from_numpy(np.flatnonzero(near)) + before)
        before += len(plane.kept)
    return torch.cat(found)


def thinned(features: StudyFeatures, rng: random.Random) -> StudyFeatures:
    """The study with only a part of its patches, all that show a finding among them: quicker to learn from."""
    showing = [_showing(finding, features.planes) for finding in features.truth.findings]
    spared = torch.cat(showing) if showing else torch.empty(0, dtype=torch.long)
    generator, planes, before = torch.Generator().manual_seed(rng.getrandbits(40)), [], 0
    for plane in features.planes:
        before += len(plane.slices)
        keep = torch.rand(len(plane.kept), generator=generator) < KEPT
        here = spared[(spared >= before) & (spared < before + len(keep))] - before
        keep[here] = True
        before += len(keep)
        planes.append(replace(plane, patches=plane.patches[keep], kept=plane.kept[keep]))
    return replace(features, planes=tuple(planes))


def _missed(q: Tensor, k: Tensor, hints: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Mean negative logarithm of the attention that falls where it should, over the heads together."""
    if not hints:
        return q.sum() * 0
    rows = torch.tensor([latent for latent, _ in hints])
    weights = (q[0][:, rows] @ k[0].transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
    return torch.stack([-weights[n, at].sum().clamp(min=1e-8).log() for n, (_, at) in enumerate(hints)]).mean()


# ---- Words ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Packed:
    """Exchanges about several studies: a row a study, in it the exchanges, blind to each other, behind its tokens."""

    ids: Tensor
    """(studies, words), padded at the end."""
    weights: Tensor
    """(studies, words) of each as something to be said: 0 in questions and padding."""
    positions: Tensor
    """(studies, visual + words)."""
    allowed: Tensor
    """(studies, visual + words, visual + words) bool: who may attend to whom."""


def packed(studies: Sequence[Sequence[tuple[list[int], int]]], visual: int, tokenizer: Any) -> Packed:
    """The exchanges (ids, where the answer starts) about each study behind `visual` tokens."""
    rows = [_row(pairs, visual, tokenizer) for pairs in studies]
    longest = max(len(row[0]) for row in rows)
    ids, weights, positions, owner = (
        torch.stack([F.pad(row[n], (0, longest - len(row[0])), value=fill) for row in rows])
        for n, fill in ((0, 0), (1, 0), (2, 0), (3, IGNORED))
    )
    allowed = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()[None]
    allowed = allowed & ((owner[:, :, None] == owner[:, None]) | (owner[:, None] == -1))
    return Packed(ids, weights, positions, allowed)


def _row(pairs: Sequence[tuple[list[int], int]], visual: int, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    owner = torch.cat([torch.full((visual,), -1), *(torch.full((len(ids),), n) for n, (ids, _) in enumerate(pairs))])
    positions = torch.cat([torch.arange(visual), *(visual + torch.arange(len(ids)) for ids, _ in pairs)])
    weights = torch.cat([torch.cat([torch.zeros(start), informative(ids[start:], tokenizer)]) for ids, start in pairs])
    return torch.tensor([token for ids, _ in pairs for token in ids]), weights, positions, owner


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
            found = not first and "mm" in tokenizer.decode([answer[m] for m in sentence])
            if first:
                weights[sentence] = 3.0  # plane, modality and phase
            elif found:
                weights[sentence] = 2.0
            weights[sentence[0]] = FOUND_SAID if found else 3.0  # the word that decides whether there is a finding
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
    """Start the latents where the patches of their parts of the scan are, and the perceiver as one that says nothing.

    Each latent then attends to its part from the first step, and what it tells grows from nothing.
    """
    perceiver = bridge.perceiver
    with torch.no_grad():
        looks = bridge.to_perceiver(bridge.place(fourier(torch.from_numpy(centres().astype(np.float32)), octaves)))
        perceiver.latents[: len(looks)] = looks / looks.std() * 0.7
        for attend, feed in perceiver.steps():
            inner = attend.to_q.out_features
            attend.to_kv.weight[:inner] = attend.to_q.weight
            attend.to_out.weight.mul_(0.1)
            last: Any = feed[-1]
            last.weight.mul_(0.1)


def centred(bridge: Bridge, mean: Tensor) -> None:
    """Have the bridge read patches as what they are beyond the mean of all: most of a patch is the same everywhere."""
    with torch.no_grad():
        bridge.to_perceiver.bias.sub_(bridge.to_perceiver.weight @ mean)


class Studies:
    """Studies with features, in an order shuffled by seed."""

    def __init__(self, folder: Path, patch: int, seed: int) -> None:
        self.folder, self.patch, self.seed = folder, patch, seed
        self.paths = sorted(folder.glob("*.safetensors"))

    def mean(self, count: int = 32) -> Tensor:
        """(width,) mean patch of the first studies."""
        first = [load_features(path, self.patch) for path in self.paths[:count]]
        return torch.stack([torch.cat([plane.patches for plane in one.planes]).mean(0) for one in first]).mean(0)

    def at(self, step: int, count: int, asked: int, thin: bool) -> list[tuple[StudyFeatures, list[Turn]]]:
        """The studies of a step, each with its turns. New files in the folder are taken up now and then."""
        if step % RELIST == 0:
            self.paths = sorted(self.folder.glob("*.safetensors"))
        rng = random.Random(self.seed * 1_000_003 + step)
        chosen = [load_features(path, self.patch) for path in rng.sample(self.paths, count)]
        return [(thinned(one, rng) if thin else one, turns(one.truth, rng, asked)) for one in chosen]
