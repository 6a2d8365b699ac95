"""The published numbers and lists of tensors, where they lie beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="the published numbers (shared/parity, beside the repository) are not there"
)


def listed(module: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a published module."""
    content = json.loads((PARITY / "keys" / f"{module}.json").read_text())
    entries = content if isinstance(content, list) else content["state_dict"]
    return {entry["name"]: tuple(entry["shape"]) for entry in entries}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of ours."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
