"""Med3DVLM's modules for `parity.py`."""

from __future__ import annotations

from typing import Any

from MedVLMReaderLib.models import dcformer, siglip
from MedVLMReaderLib.models.dcformer import SIZES, DCFormer
from MedVLMReaderLib.models.med3dvlm import NAMES, Med3DVLM, Mixer, Sizes
from MedVLMReaderLib.models.one_block import spliced
from MedVLMReaderLib.models.siglip import SiglipPair, sigmoid_loss
from MedVLMReaderLib.weights import new_decoder
from Testing.parity import Kind, Tensors, filled_by_name, written


def encoder(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    network = filled_by_name(DCFormer(SIZES[args["size"]]), {"encoder.": ""}, entry)
    return {f"h{n}": dcformer.tokens(grid) for n, grid in enumerate(network(tensors["x"]))}


def mixer_projector(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    mixer = Mixer(
        tuple(args["low_input_size"]), args["low_output_size"], tuple(args["high_input_size"]),
        args["high_output_size"], args["output_dim"], args["mlp_depth"],
    )  # fmt: skip
    return {"out": filled_by_name(mixer, {}, entry)(tensors["low"], tensors["high"])}


def siglip_pair(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    text = args["text"]
    sizes = siglip.Sizes(
        tuple(tensors["x"].shape[-3:]), SIZES[args["vision"]["size"]], args["hidden_size"], text["vocab_size"],
        text["dim"], text["hidden_dim"], text["n_heads"], text["n_layers"], text["max_position_embeddings"],
    )  # fmt: skip
    pair = filled_by_name(SiglipPair(sizes), siglip.NAMES, entry)
    images, texts = pair.encode_image(tensors["x"]), pair.encode_text(tensors["ids"], tensors["att"])
    loss_of_pairs = sigmoid_loss(pair.logits(images, texts))[None]
    return {"img": images, "txt": texts, "loss_distributed_formula_exp_tprime": loss_of_pairs}


def med3dvlm(args: dict[str, Any], tensors: Tensors, entry: dict[str, Any]) -> Tensors:
    projector = args["projector"]
    sizes = Sizes(
        tuple(tensors["volume"].shape[-3:]), SIZES[args["vision"]["size"]], tuple(projector["low_output_size"]),
        tuple(projector["high_output_size"]), projector["mlp_depth"],
    )  # fmt: skip
    model = filled_by_name(Med3DVLM(sizes, new_decoder(args["llm"])), NAMES, entry)
    visual = model.projector(*model.features(tensors["volume"]))
    return written(model.decoder, spliced(model.decoder.get_input_embeddings()(tensors["ids"]), visual), tensors)


KINDS: dict[str, Kind] = {
    "dcformer": encoder,
    "siglip_pair": siglip_pair,
    "mixer_projector": mixer_projector,
    "med3dvlm": med3dvlm,
}
