"""Several turns about a scan as one row of tokens, so that scan and image tokens are read once for all of them.

Each turn sees the image and itself, and stands at the places where it would stand alone: the loss is that of as many
rows of their own, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from MedVLMReaderLib.cases import Case

UNTOLD = -100
"""The label of a token that nobody is to say."""
FILLED = -1
"""The turn of what fills a row at its end."""


def grouped(cases: Sequence[Case], most: int) -> list[list[Case]]:
    """Cases of one scan in groups of at most so many, in the order of the scans."""
    scans: dict[str, list[Case]] = {}
    for case in cases:
        scans.setdefault(case.volume, []).append(case)
    return [one[n : n + most] for one in scans.values() for n in range(0, len(one), most)]


def packed(turns: Sequence[tuple[list[int], int]], shared: int) -> list[tuple[int, int, int, int]]:
    """(token, turn, place, label) of a row. Turns are tokens, and where in them the answer starts; the first `shared`
    tokens are those of the image and stand once, as turn 0.

    An answer right after the image is told from it in the first turn alone: what stands before it in others is not it.
    """
    row = [(token, 0, n, UNTOLD) for n, token in enumerate(turns[0][0][:shared])]
    for turn, (ids, start) in enumerate(turns, 1):
        first = start if turn == 1 else max(start, shared + 1)
        row += [(ids[n], turn, n, ids[n] if n >= first else UNTOLD) for n in range(shared, len(ids))]
    return row


def collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: (scans, length) tokens, their turns, places and labels, filled at their end."""
    lines = [packed(row["turns"], row["shared"]) for row in rows]
    longest = max(map(len, lines))
    whole = torch.tensor([[*line, *[(0, FILLED, 0, UNTOLD)] * (longest - len(line))] for line in lines])
    ids, turns, places, labels = whole.unbind(-1)
    scans = {name: torch.stack([row[name] for row in rows]) for name in ("blocks", "low", "high") if name in rows[0]}
    return {"name": [row["name"] for row in rows], "ids": ids, "turns": turns, "places": places, "labels": labels,
            **scans}  # fmt: skip


def seen_by(turns: Tensor, kind: torch.dtype) -> Tensor:
    """(scans, 1, length, length) of 0 where a token sees another, else the least number: those before it, of the image
    and of its own turn. What fills a row sees its own kind."""
    asks, told = turns[:, :, None], turns[:, None, :]
    length = turns.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=turns.device).tril()
    seen = before & ((asks == told) | ((told == 0) & (asks != FILLED)))
    return torch.zeros(seen.shape, dtype=kind, device=turns.device).masked_fill(~seen, torch.finfo(kind).min)[:, None]


def short_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Plain products for the attention on a CPU, where the fused kernel takes longer over short rows."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
