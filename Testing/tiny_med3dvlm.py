"""Model folders in the published layout of Med3DVLM and its SigLIP pair: small random weights, sharded, real names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from MedVLMReaderLib.models import siglip
from MedVLMReaderLib.models.dcformer import SIZES
from MedVLMReaderLib.models.med3dvlm import NAMES, Med3DVLM, Sizes
from MedVLMReaderLib.models.one_block import IMAGE
from MedVLMReaderLib.models.siglip import SiglipPair
from MedVLMReaderLib.weights import new_decoder
from Testing.parity import published_name

END = "<|im_end|>"
TINY = Sizes((64, 128, 192), SIZES["nano"], low=(7, 5), high=(4, 3))
"""Grids of 2 x 4 x 6 and 1 x 2 x 3 cells, 8 visual tokens."""
TINY_PAIR = siglip.Sizes((64, 128, 192), SIZES["nano"], 24, 300, 64, 48, 1, 2, 32)
DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
}  # fmt: skip


def lively(network: nn.Module) -> nn.Module:
    """Norms and scales as after some training, so that leaving one out shows."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.7, 1.4)
        elif name.endswith(("running_mean", ".bias")) and tensor.dim():
            tensor.normal_(std=0.05)
        elif name.endswith(".scale"):
            tensor.uniform_(0.1, 0.3)
    return network


def write_tiny_med3dvlm(folder: Path, *, slow_tokenizer: bool = False) -> None:
    """config.json, tokenizer and two shards with their index, named and shaped as the published model's are."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = qwen_tokenizer()
    _write_tokenizer(tokenizer, folder, slow_tokenizer)
    (folder / "config.json").write_text(json.dumps(med3dvlm_config(len(tokenizer))))
    torch.manual_seed(0)
    decoder = new_decoder({**DECODER, "model_type": "qwen2", "vocab_size": len(tokenizer)})
    write_shards(folder, published(lively(Med3DVLM(TINY, decoder)), NAMES))


def med3dvlm_config(vocabulary: int) -> dict[str, Any]:
    """What the published config.json says, in this size."""
    (k, j, i), (low, high) = TINY.shape, TINY.grids
    return {
        **DECODER, "model_type": "vlm_qwen", "architectures": ["VLMQwenForCausalLM"], "vocab_size": vocabulary,
        "bos_token_id": 0, "eos_token_id": 256, "hidden_act": "silu", "rope_theta": 1000000.0, "use_cache": True,
        "max_window_layers": 28, "sliding_window": 32768, "use_sliding_window": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "torch_dtype": "float32", "transformers_version": "4.50.0",
        "input_size": [j, i, k], "patch_size": [16, 16, 16], "dim": 768, "depth": 12, "vision_tower": "dcformer",
        "vision_select_layer": -2, "vision_select_feature": "cls_patch", "mm_projector_type": "mixer",
        "mm_mlp_depth": 2, "proj_out_num": TINY.tokens, "mm_hidden_size": 768, "tune_mm_mlp_adapter": False,
        "low_output_size": list(TINY.low), "high_output_size": list(TINY.high),
        "low_input_size": [low[0] * low[1] * low[2], TINY.vision.widths[-2]],
        "high_input_size": [high[0] * high[1] * high[2], TINY.vision.widths[-1]],
    }  # fmt: skip


def write_tiny_pair(folder: Path) -> None:
    """The SigLIP pair's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(list(WORDS[:4]))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "dec_clip", "architectures": ["DEC_CLIP"], "input_size": [128, 192, 64], "dim": 768, "depth": 12,
        "language_model_name_or_path": "medicalai/ClinicalBERT", "hidden_size": 24, "mlp_depth": 2, "bias": 0.0,
        "loss_type": "sigmoid", "t_prime": 2.6592600369327783, "vision_encoder": "dcformer", "efficient_loss": False,
        "gather_loss": True, "local_loss": False, "torch_dtype": "float32", "transformers_version": "4.50.0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    write_shards(folder, published(lively(SiglipPair(TINY_PAIR)), siglip.NAMES))


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "stone", "in", "the", "left", "right", "kidney", "no", "nodule")


def published(network: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Its tensors by their published names."""
    return {published_name(ours, names): tensor.clone() for ours, tensor in network.state_dict().items()}


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Two safetensors files and the index that says which tensor is in which."""
    table = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(sorted(tensors))}
    for file in sorted(set(table.values())):
        save_file({n: t for n, t in tensors.items() if table[n] == file}, folder / file, {"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def qwen_tokenizer(image: str = IMAGE) -> Any:
    """A tokenizer of Qwen's kind that spells everything; `END` is token 256, the image token 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[], unk_token=None, eos_token=END, pad_token=END
    )
    tokenizer.add_tokens([AddedToken(image, special=True)])
    return tokenizer


def _write_tokenizer(tokenizer: Any, folder: Path, slow: bool) -> None:
    if not slow:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        return
    vocabulary = tokenizer.get_vocab()
    added = {text: n for text, n in vocabulary.items() if n >= 256}
    (folder / "vocab.json").write_text(json.dumps({t: n for t, n in vocabulary.items() if t not in added}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    decoder = {n: {"content": text, "special": True, "normalized": False} for text, n in added.items()}
    config = {
        "added_tokens_decoder": decoder, "eos_token": END, "pad_token": END, "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": [IMAGE], "add_prefix_space": False, "bos_token": None, "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
