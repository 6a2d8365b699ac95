"""MS-VLM (arXiv 2412.13558): slices read in sequence, any plane, any number.

A DINO vision transformer reads each slice; the Z-former (BigBird) reads the sequence of slices of each plane; a
perceiver gathers what it found in a fixed number of latents; a causal language model writes. One set of sizes builds
the published network, another the small built-in one, which departs from it where docs/decisions.md says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BigBirdConfig, BigBirdModel

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array, Grid, TokenMap
from MedVLMReaderLib.models.domain import Domain
from MedVLMReaderLib.models.layers import Perceiver
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from MedVLMReaderLib.preparation import Recipe, Stack, notes, stacks
from MedVLMReaderLib.study import OUT_OF_DOMAIN, Message, Prompt, Seen
from MedVLMReaderLib.volume import PLANES, View, Volume
from MedVLMReaderLib.weights import Checkpoint, Shards, filled, filled_decoder, read_config, read_tokenizer

NAMES = {
    "visual_encoder.": "slice_encoder.",
    "Zformer.": "bridge.zformer.bigbird.",
    "perc_proj_chz.": "bridge.to_perceiver.",
    "perceiver.": "bridge.perceiver.",
    "llama_proj_chz.": "bridge.to_decoder.",
    "llama_model.": "decoder.",
}
"""Published tensor names -> ours, by their beginnings."""

IMAGE, QUESTION = "{image}", "{question}"

MADE_STUDIES_ONLY = (
    "This model has learned from made studies only. It shows how the reader works; "
    "what it says of a real scan means nothing."
)


# ---- A sequence of slices: Z-former ---------------------------------------------------------------------------------


class ZFormer(nn.Module):
    """BigBird over slice tokens (batch, slices, width); full attention up to 176 slices, block-sparse beyond."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        no_words = dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id"))  # slices, not words, are read
        self.bigbird = BigBirdModel(BigBirdConfig(**{**no_words, **config}))
        blocks = 5 + 2 * self.bigbird.config.num_random_blocks
        self.longest_full = blocks * self.bigbird.config.block_size

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """`present` (batch, slices): which ones are there, where stacks of a batch differ in length."""
        if x.shape[1] > self.bigbird.config.max_position_embeddings:
            raise ReaderError(
                f"One plane of the study has {x.shape[1]} slices; this model reads up to "
                f"{self.bigbird.config.max_position_embeddings}. Choose a series with thicker slices."
            )
        # transformers stays on full attention once a short sequence came by; a fresh model chooses by length, so do we
        self.bigbird.set_attention_type("original_full" if x.shape[1] <= self.longest_full else "block_sparse")
        mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if present is None else present.long()
        return self.bigbird(inputs_embeds=x, attention_mask=mask).last_hidden_state


# ---- The whole ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PlaneFeatures:
    """Slices of one plane after the slice encoder."""

    slices: Tensor
    """(slices, width) class tokens."""
    patches: Tensor
    """(kept patches, width)."""
    kept: Tensor
    """(kept patches,) their cells, as flat (slice, row, column) indices."""
    grid: Grid
    plane: int
    """0 axial, 1 coronal, 2 sagittal."""
    acquired_mm: float
    centre: np.ndarray[Any, Any]
    """(r, a, s) of the scan's middle, from which places are measured."""
    marks: tuple[bytes, ...] = ()
    """Of each slice, a hash of the picture that was encoded."""

    def cells_kept(self) -> Tensor:
        """(slices, patches a slice) bool."""
        count, down, across = self.grid.shape
        flags = torch.zeros(count * down * across, dtype=torch.bool)
        flags[self.kept] = True
        return flags.unflatten(0, (count, down * across))


def changed(plane: PlaneFeatures, before: PlaneFeatures | None, context: int) -> Tensor:
    """The slices of a plane that are not as they were, or have such a neighbour within `context`; at least one."""
    count = plane.grid.shape[0]
    if before is None or len(before.marks) != count or not before.grid.same_as(plane.grid):
        return torch.arange(count)
    other = torch.tensor([a != b for a, b in zip(plane.marks, before.marks, strict=True)])
    near = F.max_pool1d(other[None].float(), 2 * context + 1, 1, context)[0] > 0
    new = (near | (plane.cells_kept() != before.cells_kept()).any(1)).nonzero()[:, 0]
    return new if len(new) else torch.arange(1)


def filled_up(found: PlaneFeatures, before: PlaneFeatures, new: Tensor) -> PlaneFeatures:
    """A plane of whose slices only those numbered `new` were encoded, the others taken from `before`."""
    slices = before.slices.clone()
    slices[new] = found.slices
    each = found.cells_kept().shape[1]
    here, there = (torch.isin(torch.div(kept, each, rounding_mode="floor"), new) for kept in (found.kept, before.kept))
    patches = before.patches.new_empty(len(found.kept), before.patches.shape[1])
    patches[here], patches[~here] = found.patches, before.patches[~there]
    return replace(found, slices=slices, patches=patches)


class Bridge(nn.Module):
    """From slices to the decoder: Z-former, perceiver and the two projections."""

    def __init__(self, sizes: Sizes, decoder_width: int) -> None:
        super().__init__()
        self.places = sizes.places
        self.zformer = ZFormer(sizes.zformer)
        self.to_perceiver = nn.Linear(sizes.slice_width, sizes.perceiver_width)
        self.perceiver = Perceiver(
            sizes.perceiver_width, sizes.perceiver_depth, sizes.latents, sizes.perceiver_heads, sizes.head_width
        )
        self.to_decoder = nn.Linear(sizes.perceiver_width, decoder_width)
        if sizes.places:
            self.place = nn.Linear(6 * sizes.places, sizes.slice_width)
            self.about_plane = nn.Linear(4, sizes.slice_width)

    def forward(self, planes: Sequence[PlaneFeatures]) -> Tensor:
        """(latents, decoder width) visual tokens."""
        return self.to_decoder(self.latents(planes))

    def latents(self, planes: Sequence[PlaneFeatures]) -> Tensor:
        """(latents, perceiver width) before the projection to the decoder."""
        media = torch.cat([self.media(plane) for plane in planes])
        return self.perceiver(self.to_perceiver(media)[None])[0, 0]

    def media(self, plane: PlaneFeatures) -> Tensor:
        """(n, slice width) what the perceiver reads of one plane: its slices and, with `places`, its patches."""
        if not self.places:
            return self.zformer(plane.slices[None])[0]
        about = self.about_plane(_about(plane).to(plane.slices))
        slices = self.zformer((plane.slices + about)[None])[0]
        at = torch.div(plane.kept, plane.grid.shape[1] * plane.grid.shape[2], rounding_mode="floor")
        place = self.place(place_code(plane, self.places).to(plane.patches))
        return torch.cat([slices, plane.patches + slices[at] + place])


def _about(plane: PlaneFeatures) -> Tensor:
    """(4,) which plane it is, and how far apart the scan's samples lie across it, in centimetres."""
    return torch.tensor([*(float(plane.plane == n) for n in range(3)), plane.acquired_mm / 10])


def place_code(plane: PlaneFeatures, octaves: int) -> Tensor:
    """(kept patches, 6 * octaves) code of each patch's place from the scan's middle."""
    index = np.stack(np.unravel_index(plane.kept.cpu().numpy(), plane.grid.shape), -1)
    return fourier(torch.from_numpy((plane.grid.to_world(index) - plane.centre).astype(np.float32)), octaves)


def fourier(places_mm: Tensor, octaves: int) -> Tensor:
    """(n, 6 * octaves) sines and cosines of (n, 3) places; the longest wave is 1024 mm."""
    waves = 2 * math.pi / 1024 * 2.0 ** torch.arange(octaves)
    angle = (places_mm[:, :, None] * waves).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], 1)


TISSUE = {"CT": -500.0, "MR": 0.2, "": 0.2}
"""Mean of a patch that holds more than air: HU, or multiples of bright tissue."""


def kept_patches(values: Any, modality: str, patch: int) -> Tensor:
    """(kept,) flat indices of the patches of a stack (slices, rows, columns), on each slice those around the body."""
    slices, rows, columns = values.shape
    means = values.reshape(slices, rows // patch, patch, columns // patch, patch).mean((2, 4))
    body = means > TISSUE[modality]
    within = _between(body.any(2))[:, :, None] & _between(body.any(1))[:, None, :]
    return torch.from_numpy(np.flatnonzero(within))


def _between(found: Any) -> Any:
    """(slices, n) bool: from the first to the last true of each row."""
    return np.logical_or.accumulate(found, 1) & np.logical_or.accumulate(found[:, ::-1], 1)[:, ::-1]


@dataclass(frozen=True)
class Template:
    """How a chat is written for the decoder."""

    start: str
    """What comes first, with {image} where the visual tokens stand."""
    turn: str
    """A question, as {question}, up to where the answer begins."""
    end: str
    """What ends an answer."""
    report: str
    """The question that asks for a report."""
    remembers: bool = True
    """Whether what was said before is written before a question; not for a decoder that learned from single turns."""

    def __post_init__(self) -> None:
        if not all(isinstance(part, str) and part for part in (self.start, self.turn, self.end, self.report)):
            raise ValueError("a template has four texts")
        if self.start.count(IMAGE) != 1 or self.turn.count(QUESTION) != 1:
            raise ValueError(f"a template has one {IMAGE} and one {QUESTION}")


class MSVLM(nn.Module):
    """The reader's model: sees volumes, prompts the decoder."""

    def __init__(
        self,
        sizes: Sizes,
        recipe: Recipe,
        template: Template,
        decoder: Any,
        tokenizer: Any = None,
        name: str = "ms-vlm",
        revision: str = "",
    ) -> None:
        super().__init__()
        self.sizes, self.recipe, self.template, self.tokenizer = sizes, recipe, template, tokenizer
        self.name, self.revision, self.note = name, revision, ""
        self.slice_encoder = SliceEncoder(sizes)
        self.bridge = Bridge(sizes, decoder.config.hidden_size)
        self.decoder = decoder
        if sizes.places:
            self.domain = Domain(sizes.slice_width)

    def prepared(self, volumes: Sequence[Volume], view: View | None = None) -> tuple[Volume, ...]:  # noqa: ARG002
        """The stacks that the encoder is shown, grey levels 0 to 1 of the widest window; axial, coronal, sagittal."""
        found = [stack for volume in volumes for stack in stacks(volume, self.recipe)]
        return tuple(replace(s.volume, values=s.channels(self.recipe)[:, -1]) for s in found)

    def see(self, volumes: Sequence[Volume], view: View | None = None) -> Seen:  # noqa: ARG002
        """Encode every slice of the three planes of each volume. The view changes nothing: no slice is left out."""
        return self._see(volumes, ())

    def see_again(self, seen: Seen, volumes: Sequence[Volume], view: View | None = None) -> Seen:  # noqa: ARG002
        """As `see`, of volumes that hardly differ from those of `seen`: only slices that differ are encoded."""
        assert isinstance(seen, SeenPlanes)
        return self._see(volumes, seen.planes)

    @torch.no_grad()
    def _see(self, volumes: Sequence[Volume], before: Sequence[PlaneFeatures]) -> Seen:
        if not volumes:
            raise ReaderError("No volume was given. Choose a scan first.")
        centre = volumes[0].grid.centre
        cut = [stack for volume in volumes for stack in stacks(volume, self.recipe)]
        known = before if len(before) == len(cut) else [None] * len(cut)
        planes = tuple(self._plane(stack, centre, one) for stack, one in zip(cut, known, strict=True))
        features = tuple(plane.patches for plane in planes)
        cells = TokenMap(tuple(plane.grid for plane in planes), lambda weights: self.spread(weights, planes))
        key = hashlib.sha256(repr((self.revision, self.recipe.key, [v.key for v in volumes])).encode()).hexdigest()[:16]
        assumed = [n for v in volumes for n in (*v.notes, *notes(v, self.recipe))]
        said = tuple(n for n in dict.fromkeys([self.note, *self._out_of_domain(planes), *assumed]) if n)
        boxes = tuple(volume.grid for volume in volumes)
        seen = SeenPlanes(features, torch.empty(0), cells, self.recipe.to_json(), key, said, boxes, planes)
        return replace(seen, tokens=self.tokens(features, seen))

    def _out_of_domain(self, planes: Sequence[PlaneFeatures]) -> tuple[str, ...]:
        """The note that this scan is unlike what the model has learned from, where it is."""
        if not self.sizes.places or (score := self.domain.score([plane.patches for plane in planes])) <= 1:
            return ()
        how = f"{score:.1f} times the limit" if math.isfinite(score) else "hardly anything but air was found"
        return (f"{OUT_OF_DOMAIN}: this scan is unlike the studies that the model has learned from "
                f"({how}). Do not rely on a word of what follows.",)  # fmt: skip

    def _plane(self, stack: Stack, centre: np.ndarray[Any, Any], before: PlaneFeatures | None) -> PlaneFeatures:
        count, rows, columns = stack.volume.grid.shape
        grid = stack.volume.grid.resize((count, rows // self.sizes.patch, columns // self.sizes.patch))
        like = next(self.slice_encoder.parameters())
        shown = stack.channels(self.recipe)
        pictures = torch.from_numpy(shown).to(like)
        encode = self.slice_encoder.encode_stack if self.sizes.places else self.slice_encoder.before_last_block
        if self.sizes.places:
            kept = kept_patches(stack.volume.values, stack.volume.modality, self.sizes.patch)
        else:
            kept = torch.arange(count * grid.shape[1] * grid.shape[2])
        plane = PlaneFeatures(
            torch.empty(0), torch.empty(0), kept, grid, PLANES.index(stack.plane), stack.acquired_mm, centre,
            tuple(hashlib.blake2b(picture.tobytes(), digest_size=16).digest() for picture in shown),
        )  # fmt: skip
        new = changed(plane, before, self.sizes.context)
        tokens = encode(pictures, new)
        at = plane.cells_kept()[new].flatten().nonzero()[:, 0]
        found = replace(plane, slices=tokens[:, 0], patches=tokens[:, 1:].flatten(0, 1)[at.to(like.device)])
        return found if before is None or len(new) == count else filled_up(found, before, new)

    def tokens(self, features: Sequence[Tensor], seen: Seen) -> Tensor:
        """(latents, decoder width) from patch features like those of `seen`."""
        assert isinstance(seen, SeenPlanes)
        planes = [replace(plane, patches=patches) for plane, patches in zip(seen.planes, features, strict=True)]
        if not self.sizes.places:
            planes = [replace(plane, slices=self._class_tokens(plane)) for plane in planes]
        return self.bridge(planes)

    def _class_tokens(self, plane: PlaneFeatures) -> Tensor:
        """(slices, width): the last block, through which alone the published model's patches reach the class token."""
        patches = plane.patches.unflatten(0, (plane.grid.shape[0], -1))
        return self.slice_encoder.last_block(torch.cat([plane.slices[:, None], patches], 1))[:, 0]

    def cells(self, seen: Seen) -> tuple[Tensor, ...]:
        """For each grid, the flat cell of every row of `seen.features`."""
        assert isinstance(seen, SeenPlanes)
        return tuple(plane.kept for plane in seen.planes)

    @torch.no_grad()
    def spread(self, weights: Array, planes: Sequence[PlaneFeatures]) -> Array:
        """(..., latents) weights, at the cells that the latents have read: (..., cells), with the same sum.

        What a latent has from a patch goes to its cell, what it has from a whole slice evenly to the slice's patches.
        """
        media = [self.bridge.media(plane) for plane in planes]
        reach = self.bridge.perceiver.reach(self.bridge.to_perceiver(torch.cat(media))[None])
        rows = torch.from_numpy(np.asarray(weights, np.float32).reshape(-1, weights.shape[-1])).to(reach)
        parts = (rows @ reach).split([len(part) for part in media], -1)
        found = torch.cat([_at_cells(plane, part) for plane, part in zip(planes, parts, strict=True)], -1)
        found *= rows.sum(-1, keepdim=True) / found.sum(-1, keepdim=True).clamp(min=1e-30)
        return found.float().cpu().numpy().reshape(*weights.shape[:-1], -1)

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        """Visual tokens where the template has them, then the turns of the chat."""
        before, after = self.template.start.split(IMAGE)
        asked = [n for n, message in enumerate(messages) if message.role == "user"]
        told = messages if self.template.remembers or not asked else messages[asked[-1] :]
        said = "".join(self._written(message) for message in told)
        start, rest = self._embedded(before), self._embedded(after + said)
        inputs = torch.cat([start, seen.tokens.to(rest), rest])[None]
        return Prompt(inputs, tuple(range(len(start), len(start) + len(seen.tokens))))

    def _written(self, message: Message) -> str:
        if message.role == "assistant":
            return message.text + self.template.end
        return self.template.turn.replace(QUESTION, message.text)

    def _embedded(self, text: str) -> Tensor:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        table = self.decoder.get_input_embeddings()
        return table(torch.tensor(ids, dtype=torch.long, device=table.weight.device))

    def report_request(self) -> str:
        """The question that asks for a report."""
        return self.template.report


@dataclass(frozen=True, eq=False)
class SeenPlanes(Seen):
    """A study after the slice encoder."""

    planes: tuple[PlaneFeatures, ...] = ()


def _at_cells(plane: PlaneFeatures, read: Tensor) -> Tensor:
    """(rows, cells) of a plane from what was read of its slices and, where there are such, its patches."""
    count, down, across = plane.grid.shape
    kept = plane.kept.to(read.device)
    at = torch.div(kept, down * across, rounding_mode="floor")
    each = torch.bincount(at, minlength=count).clamp(min=1)
    cells = read.new_zeros(len(read), count * down * across)
    cells[:, kept] = (read[:, :count] / each)[:, at]
    if read.shape[1] > count:
        cells[:, kept] += read[:, count:]
    return cells


FIELDS = ("format", "system", "sizes", "recipe", "template", "decoder", "reads")


def load(checkpoint: Checkpoint) -> MSVLM:
    """The model in a folder of config.json, tokenizer.json and model.safetensors; ReaderError where one is off."""
    folder = checkpoint.folder
    config = read_config(folder, FIELDS)
    if (config["format"], config["system"]) != (1, "ms_vlm"):
        raise ReaderError(
            f"'{folder}' holds a '{config['system']}' of format {config['format']}, not an MS-VLM of format 1."
        )
    sizes, recipe, template = _parts(config, folder)
    tensors = Shards.open(folder).renamed(NAMES)
    tokenizer = read_tokenizer(folder, template.end)
    decoder = filled_decoder(
        config["decoder"], tensors.below("decoder."), checkpoint.precision, checkpoint.device, below="decoder."
    )
    if len(tokenizer) > decoder.config.vocab_size:
        raise ReaderError(
            f"The tokenizer of '{folder}' has {len(tokenizer)} tokens, the model {decoder.config.vocab_size}. "
            "tokenizer.json and config.json do not belong together."
        )
    model = filled(
        lambda: MSVLM(sizes, recipe, template, decoder, tokenizer, checkpoint.name, checkpoint.revision),
        tensors.beside("decoder."), given="decoder.", device=checkpoint.device,
    )  # fmt: skip
    model.note = MADE_STUDIES_ONLY if config["reads"] == "made studies" else ""
    return model


def _parts(config: dict[str, Any], folder: Path) -> tuple[Sizes, Recipe, Template]:
    try:
        sizes, recipe = Sizes.from_json(config["sizes"]), Recipe.from_json(config["recipe"])
        if recipe.size % sizes.patch or len(recipe.windows_ct) != sizes.channels:
            raise ValueError(f"pictures of {recipe.size} with patch {sizes.patch} and {sizes.channels} channels")
        return sizes, recipe, Template(**config["template"])
    except (TypeError, KeyError, ValueError) as error:
        raise ReaderError(
            f"config.json of '{folder}' has a field that is not allowed, or lacks one: {error}. Get the model again."
        ) from None
