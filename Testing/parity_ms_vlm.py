"""MS-VLM's modules for `parity.py`."""

from __future__ import annotations

from typing import Any

from MedVLMReaderLib.models.layers import Perceiver
from MedVLMReaderLib.models.ms_vlm import ZFormer
from MedVLMReaderLib.models.slice_encoder import Sizes, SliceEncoder
from Testing.parity import Kind, Tensors, filled_by_name


def msvlm_slice_encoder(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    sizes = Sizes(
        patch=args["patch_size"], table=args["table_size"], slice_width=args["embed_dim"], slice_depth=args["depth"],
        slice_heads=args["num_heads"],
    )  # fmt: skip
    encoder = filled_by_name(SliceEncoder(sizes), {}, entry)
    return {"attn_last_cls": encoder.class_attention(tensors["x"]), "out": encoder(tensors["x"])}


def msvlm_zformer(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    return {"out": filled_by_name(ZFormer(args), {"": "bigbird."}, entry)(tensors["inputs_embeds"])}


def msvlm_perceiver(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    perceiver = Perceiver(
        args["dim"], args["depth"], args["num_latents"], args["heads"], args["dim_head"], args["ff_mult"]
    )
    return {"out": filled_by_name(perceiver, {}, entry)(tensors["x"])}


KINDS: dict[str, Kind] = {
    "msvlm_slice_encoder": msvlm_slice_encoder,
    "msvlm_zformer": msvlm_zformer,
    "msvlm_perceiver": msvlm_perceiver,
}
