"""Tiny M3D folders of random weights, written as the published ones are: names, files, fields."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from MedVLMReaderLib.models import m3d_clip
from MedVLMReaderLib.models.m3d_clip import M3DClip
from MedVLMReaderLib.models.m3d_lamed import NAMES, M3DLaMed, Sizes
from MedVLMReaderLib.models.vit3d import Vit3dSizes
from MedVLMReaderLib.weights import new_decoder
from Testing.parity import published_name

TINY_VISION = Vit3dSizes((8, 64, 96), (4, 16, 16), 64, 96, 2, 1)
"""A grid of 2 x 4 x 6 patches, pooled to 1 x 2 x 3 visual tokens."""
WORDS = ("▁the", "▁liver", "▁is", "▁normal", "Can", "▁you", "▁What", "▁nodule")
ADDED = ("<|endoftext|>", "<im_patch>", "<bx_start>", "<bx_end>", "[SEG]")


def tiny_config(vocabulary: int, **changes: Any) -> dict[str, Any]:
    """config.json as published, with small numbers."""
    return {
        "_name_or_path": "somewhere", "architectures": ["LamedPhi3ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_m3d_lamed.LamedPhi3ForCausalLM"},
        "model_type": "lamed_phi3", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": vocabulary - 5, "hidden_act": "silu", "hidden_size": 32, "image_channel": 1,
        "image_size": list(TINY_VISION.image), "initializer_range": 0.02, "intermediate_size": 48,
        "max_position_embeddings": 256, "mm_hidden_size": 64, "mm_projector_type": "spp", "num_attention_heads": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "original_max_position_embeddings": 256,
        "pad_token_id": vocabulary - 5, "patch_size": list(TINY_VISION.patch), "proj_layer_num": 2,
        "proj_layer_type": "mlp", "proj_pooling_size": 2, "proj_pooling_type": "spatial", "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "seg_token_id": vocabulary - 1,
        "segmentation_module": "segvol", "sliding_window": 255, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.41.1", "use_cache": True, "vision_select_feature": "patch",
        "vision_select_layer": -1, "vision_tower": "vit3d", "vocab_size": vocabulary, **changes,
    }  # fmt: skip


def write_tiny_m3d(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as M3D-LaMed is published: shards, tokenizer.model, segmentation tensors; `changes` of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(write_tokenizer(folder), **changes)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    names = {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
        "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "pad_token_id",
    }  # fmt: skip
    kind = {"lamed_phi3": "phi3", "lamed_llama": "llama"}[config["model_type"]]
    decoder = new_decoder({"model_type": kind, **{n: v for n, v in config.items() if n in names}})
    model = livelier(M3DLaMed(Sizes(TINY_VISION), decoder))
    tensors = {published_name(name, NAMES): tensor for name, tensor in model.state_dict().items()}
    tensors["model.seg_projector.0.weight"] = torch.zeros(32, 32)
    tensors["model.seg_module.image_encoder.norm.weight"] = torch.ones(8)
    write_shards(folder, tensors)
    return folder


TINY_PAIR = m3d_clip.Sizes(TINY_VISION, 40, 48, 2, 32)
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "no", ".", "nod", "##ule", "stone", "left", "in")


def write_tiny_m3d_clip(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as M3D-CLIP is published: config.json, vocab.txt, tensors; `changes` of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_name_or_path": "somewhere", "architectures": ["M3DCLIP"], "model_type": "m3d_clip", "dropout_rate": 0,
        "gather_loss": True, "local_loss": False, "hidden_size": TINY_VISION.width, "img_size": list(TINY_VISION.image),
        "in_channels": 1, "language_model_name_or_path": "bert_base_uncased/", "max_text_len": 128,
        "mlp_dim": TINY_VISION.mlp, "num_heads": TINY_VISION.heads, "num_layers": TINY_VISION.depth,
        "patch_size": list(TINY_VISION.patch), "pos_embed": "perceptron", "spatial_dims": 3, "torch_dtype": "float32",
        "transformers_version": "4.36.2", "vocab_size": 30522, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")
    torch.manual_seed(seed)
    save_file(livelier(M3DClip(TINY_PAIR)).state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


def livelier(model: Any) -> Any:
    """The model with random positions and embeddings, which begin as nothing much, so that places differ."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("position_embeddings", "cls_token", "embed_tokens.weight", "lm_head.weight")):
                nn.init.normal_(tensor, std=0.3)
    return model


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """model-0000n-of-00002.safetensors and their index."""
    table: dict[str, str] = {}
    for n in range(2):
        part = {name: tensors[name].contiguous() for name in sorted(tensors)[n::2]}
        file = f"model-{n + 1:05d}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, added: Sequence[str] = ADDED, **changes: Any) -> int:
    """tokenizer.model, tokenizer_config.json and added_tokens.json, as Phi-3's; how many tokens there are."""
    pieces = vocabulary()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    numbers = {text: len(pieces) + n for n, text in enumerate(added)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(n): {"content": text, **flags, "special": text != "[SEG]"} for text, n in numbers.items()}
    first = {str(n): {"content": text, **flags, "special": True} for n, text in enumerate(("<unk>", "<s>", "</s>"))}
    config = {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": {**first, **decoder},
        "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "legacy": False,
        "model_max_length": 512, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", **changes,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(numbers))
    return len(pieces) + len(numbers)


def vocabulary() -> list[tuple[str, float, int]]:
    """Text, score and SentencePiece's type of each piece: control, bytes, letters, and what joins up to WORDS."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    joined = dict.fromkeys(word[:end] for word in WORDS for end in range(2, len(word) + 1))
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!-0123456789"))
    return pieces + [(text, -float(n), 1) for n, text in enumerate([*joined, *letters])]


def sentencepiece_model(pieces: Sequence[tuple[str, float, int]], kind: int = 2) -> bytes:
    """A tokenizer.model as SentencePiece writes it: pieces, then the trainer's settings with the kind of model."""
    out = b""
    for text, score, piece_type in pieces:
        piece = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _field(1, piece + (bytes([0x18, piece_type]) if piece_type != 1 else b""))
    return out + _field(2, _field(1, b"corpus.txt") + bytes([0x18, kind]))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
