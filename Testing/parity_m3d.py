"""M3D's modules for `parity.py`."""

from __future__ import annotations

from typing import Any

from MedVLMReaderLib.models.m3d_lamed import NAMES, M3DLaMed, Sizes, SpatialPooling
from MedVLMReaderLib.models.one_block import spliced
from MedVLMReaderLib.models.vit3d import Vit3d, Vit3dSizes
from MedVLMReaderLib.weights import new_decoder
from Testing.parity import Kind, Tensors, filled_by_name, written


def vision(args: dict[str, Any]) -> Vit3dSizes:
    return Vit3dSizes(
        tuple(args["image_size"]), tuple(args["patch_size"]), args["hidden_size"], args["mlp_dim"], args["num_layers"],
        args["num_heads"],
    )  # fmt: skip


def m3d_vit(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    encoder = filled_by_name(Vit3d(vision(args)), {}, entry)
    layers = {f"h{n}": tokens for n, tokens in enumerate(encoder.layers(tensors["x"]))}
    return {"out": encoder(tensors["x"]), **layers}


def m3d_spatial_pooling(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    before = Vit3dSizes(tuple(args["image_size"]), tuple(args["patch_size"]), args["in_dim"], heads=1)
    sizes = Sizes(before, args["pooling"], args["layers"])
    return {"out": filled_by_name(SpatialPooling(sizes, args["out_dim"]), {}, entry)(tensors["in"])}


def m3d_lamed(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    sizes = Sizes(vision(args["vision"]), args["projector"]["pooling"], args["projector"]["layers"])
    model = filled_by_name(M3DLaMed(sizes, new_decoder(args["llm"])), NAMES, entry)
    visual = model.projector(model.encoder(tensors["volume"])[:, 1:])
    return written(model.decoder, spliced(model.decoder.get_input_embeddings()(tensors["ids"]), visual), tensors)


KINDS: dict[str, Kind] = {
    "m3d_vit": m3d_vit,
    "m3d_spatial_pooling": m3d_spatial_pooling,
    "m3d_lamed": m3d_lamed,
}
