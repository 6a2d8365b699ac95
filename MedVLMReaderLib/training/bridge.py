"""MS-VLM's last two stages: the bridge learns to tell the decoder of the slices; then the decoder learns, too (LoRA).

Slices go through the slice encoder once and are kept; it and the Z-former stay as the first stages made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models.ms_vlm import IMAGE, MSVLM, QUESTION, Bridge, Template
from MedVLMReaderLib.models.slice_encoder import SliceEncoder
from MedVLMReaderLib.training.engine import WEIGHTS, Settings, fit
from MedVLMReaderLib.training.features import encoded_plane, planes_of
from MedVLMReaderLib.training.med3dvlm import Lora, adapted, merge
from MedVLMReaderLib.training.objectives import words
from MedVLMReaderLib.training.prepared import key_of
from MedVLMReaderLib.training.slice_stacks import Stacks

UNSAID = -100
"""Label of what is not to be learned: the image, the question, what fills a row up."""


RANKS = Lora(64, 128, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj"))
"""Of the authors' brain-CT model; the paper does not say."""


class Told(nn.Module):
    """Bridge and decoder with the loss of the answers. Of the decoder only what learns is kept with a checkpoint.

    `elsewhere`: the tensors that the engine need not keep.
    """

    def __init__(self, bridge: Bridge, decoder: Any, patch: int) -> None:
        super().__init__()
        self.bridge, self.decoder, self.patch = bridge, decoder, patch
        names = (f"decoder.{name}" for name in decoder.state_dict())
        self.elsewhere = frozenset(name for name in names if "lora_" not in name)

    def forward(self, studies: Sequence[dict[str, Tensor]], before: Tensor, ids: Tensor, labels: Tensor
                ) -> dict[str, Tensor]:  # fmt: skip
        """`before` (tokens,) stand before the image, `ids` (studies, tokens) behind it; `labels` like `ids`."""
        seen = torch.stack([self.bridge(planes_of(study, self.patch)) for study in studies])
        table = self.decoder.get_input_embeddings()
        start, rest = table(before).expand(len(ids), -1, -1), table(ids)
        image = start.shape[1] + seen.shape[1]
        labels = F.pad(labels, (image, 0), value=UNSAID)
        scores = self.decoder(inputs_embeds=torch.cat([start, seen.to(rest), rest], 1)).logits
        return {"words": words(scores, labels)}  # what fills a row up stands behind all else: nothing attends to it


class Exchanges:
    """Rows of a training: a study's features, what is asked, what is to be answered."""

    def __init__(self, cases: Sequence[Case], paths: Mapping[str, Path], template: Template, tokenizer: Any) -> None:
        self.cases, self.paths, self.template, self.tokenizer = cases, paths, template, tokenizer
        self.before, self.behind = template.start.split(IMAGE)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, n: int) -> dict[str, Any]:
        case = self.cases[n]
        question = case.asked if case.question else self.template.report
        asked = self._ids(self.behind + self.template.turn.replace(QUESTION, question))
        answer = self._ids((case.expected if case.question else case.report) + self.template.end)
        return {"name": case.place, "study": load_file(self.paths[case.volume]), "asked": asked, "answer": answer}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def together(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch, filled up at the end to the longest."""
        longest = max(len(row["asked"]) + len(row["answer"]) for row in rows)

        def filled(tokens: list[int], value: int) -> list[int]:
            return tokens + [value] * (longest - len(tokens))

        ids = [filled(row["asked"] + row["answer"], 0) for row in rows]
        labels = [filled([UNSAID] * len(row["asked"]) + row["answer"], UNSAID) for row in rows]
        return {
            "name": [row["name"] for row in rows], "studies": [row["study"] for row in rows],
            "before": torch.tensor(self._ids(self.before), dtype=torch.long),
            "ids": torch.tensor(ids), "labels": torch.tensor(labels),
        }  # fmt: skip


def kept_features(encoder: SliceEncoder, kept: Stacks, names: Sequence[str], folder: Path, *, patches: bool
                  ) -> dict[str, Path]:  # fmt: skip
    """A file of features for each volume, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.eval()
    paths = {name: folder / f"{key_of(name, kept.recipe.key)}.safetensors" for name in dict.fromkeys(names)}
    for name, path in paths.items():
        if not path.exists():
            tensors: dict[str, Tensor] = {}
            for n, stack in enumerate(kept.of(name)):
                pictures = stack.channels(kept.recipe)
                tensors |= encoded_plane(n, stack, pictures, stack.modality, encoder, patches=patches)
            save_file(tensors, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    return paths


def train_bridge(model: MSVLM, rows: Exchanges, settings: Settings, folder: Path, minutes: float = 1e9) -> bool:
    """The perceiver and both projections; True when finished, then the model has what they learned."""
    network = Told(model.bridge, model.decoder, model.sizes.patch)
    network.requires_grad_(False)
    _learning(model.bridge)
    return _fitted(network, rows, settings, folder, minutes)


def train_lora(
    model: MSVLM, rows: Exchanges, lora: Lora, settings: Settings, folder: Path, minutes: float = 1e9
) -> bool:
    """The same with low-rank layers in the decoder; True when finished, then they are part of the model's decoder."""
    torch.manual_seed(settings.seed)
    model.decoder.requires_grad_(False)
    adapted(model.decoder, lora)
    network = Told(model.bridge, model.decoder, model.sizes.patch)
    model.bridge.requires_grad_(False)
    _learning(model.bridge)
    if not _fitted(network, rows, settings, folder, minutes):
        return False
    merge(model)
    return True


def _learning(bridge: Bridge) -> None:
    for name, part in bridge.named_children():
        part.requires_grad_(name != "zformer")


def _fitted(network: Told, rows: Exchanges, settings: Settings, folder: Path, minutes: float) -> bool:
    if (folder / WEIGHTS).exists():
        network.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        return True
    return fit(network, rows, rows.together, settings, folder, minutes=minutes)
