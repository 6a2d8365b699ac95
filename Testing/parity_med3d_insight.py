"""Med3DInsight's transformer for `parity.py`."""

from __future__ import annotations

from typing import Any

from MedVLMReaderLib.models.med3d_insight import PSAT, Sizes
from Testing.parity import Kind, Tensors, filled_by_name


def psat(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    network = filled_by_name(PSAT(Sizes(width=args["hidden_size"], depth=args["num_decoder_layers"])), {}, entry)
    planes = [plane.lower() for plane in entry["inputs"]["planes"]]
    return {"out": network(tensors["queries"], tensors["img_embed"], planes, entry["inputs"]["slices"])}


KINDS: dict[str, Kind] = {"psat": psat}
