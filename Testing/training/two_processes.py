"""Trains a tiny pair on made-up blocks and texts, in as many processes as it is started in: for test_engine.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from MedVLMReaderLib.models.dcformer import SIZES
from MedVLMReaderLib.models.siglip import SiglipPair, Sizes
from MedVLMReaderLib.training.engine import Settings, fit
from MedVLMReaderLib.training.objectives import sigmoid


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair = SiglipPair(Sizes((32, 32, 32), SIZES["nano"], 8, 20, 16, 16, 1, 1, 8))
        for part in self.pair.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # each process would draw its own

    def forward(self, blocks: Tensor, ids: Tensor) -> dict[str, Tensor]:
        images, texts = self.pair.encode_image(blocks), self.pair.encode_text(ids, torch.ones_like(ids))
        return {"siglip": sigmoid(images, texts, self.pair.t_prime, self.pair.bias)}


class Rows:
    def __len__(self) -> int:
        return 16

    def __getitem__(self, n: int) -> dict[str, object]:
        random = torch.Generator().manual_seed(n)
        blocks = torch.rand(1, 32, 32, 32, generator=random)
        return {"name": f"row {n}", "blocks": blocks, "ids": torch.randint(0, 20, (6,), generator=random)}


def collate(rows: list[dict[str, object]]) -> dict[str, object]:
    return {
        "name": [row["name"] for row in rows],
        **{name: torch.stack([row[name] for row in rows]) for name in ("blocks", "ids")},  # type: ignore[misc]
    }


if __name__ == "__main__":
    folder, batch, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    settings = Settings(steps=steps, batch=batch, learning_rate=1e-3, freeze_norms=True, save_every=1000, log_every=1,
                        cpu=True)  # fmt: skip
    fit(Pairs(), Rows(), collate, settings, folder)
