"""Folders of tiny vision-language models with random weights, each laid out as its family is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

TEXT: dict[str, Any] = {
    "vocab_size": 336, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NORM = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 16,
        "text_config": {
            **TEXT, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 1000000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {
            **SIGLIP, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 7, "vision_use_head": False
        },
    },
    "qwen2_5_vl": {  # all in one, as published
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], **TEXT, "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 1000000.0, "hidden_act": "silu",
        "use_sliding_window": False, "max_window_layers": 2,
        "vision_config": {
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "in_chans": 3, "patch_size": 14,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1], "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2, "hidden_act": "silu",
        },
    },
    "qwen3_vl": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "tie_word_embeddings": False,
        "text_config": {
            **TEXT, "model_type": "qwen3_vl_text", "head_dim": 8, "rope_theta": 5000000,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "patch_size": 16, "out_hidden_size": 32, "num_position_embeddings": 64, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1],
        },
    },
    "smolvlm": {
        "architectures": ["SmolVLMForConditionalGeneration"], "scale_factor": 2, "tie_word_embeddings": False,
        "text_config": {**TEXT, "model_type": "llama", "_flash_attn_2_enabled": True, "pixel_shuffle_factor": 2},
        "vision_config": {**SIGLIP, "model_type": "smolvlm_vision", "image_size": 32, "patch_size": 4},
    },
    "idefics3": {
        "architectures": ["Idefics3ForConditionalGeneration"], "scale_factor": 2, "tie_word_embeddings": False,
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**SIGLIP, "model_type": "idefics3", "image_size": 32, "patch_size": 4},
    },
    "llava_onevision": {
        "architectures": ["LlavaOnevisionForConditionalGeneration"], "tie_word_embeddings": False,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]], "projector_hidden_act": "gelu",
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {
            **SIGLIP, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 5, "vision_use_head": False
        },
    },
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "gemma3": {**NORM, "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}},
    "qwen2_5_vl": {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27],
    },
    "qwen3_vl": {
        **NORM, "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "size": {"longest_edge": 16777216, "shortest_edge": 4096},
    },
    "smolvlm": {
        **NORM, "image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True,
        "size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32},
    },
    "idefics3": {
        **NORM, "image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": True,
        "size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32},
    },
    "llava_onevision": {
        **NORM, "image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 32, "width": 32},
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
    },
}  # fmt: skip
PROCESSORS: dict[str, dict[str, Any]] = {
    "gemma3": {"processor_class": "Gemma3Processor", "image_seq_length": 16},
    "smolvlm": {"processor_class": "SmolVLMProcessor", "image_seq_len": 16},
    "idefics3": {"processor_class": "Idefics3Processor", "image_seq_len": 16},
    "llava_onevision": {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 36, "vision_feature_select_strategy": "full"
    },
}  # fmt: skip
_MESSAGES = "{% for m in messages %}"
_QWEN = (
    _MESSAGES + "<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMOL = (
    "<|im_start|>" + _MESSAGES + "{{ m.role | capitalize }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES = {
    "gemma3": "{{ bos_token }}" + _MESSAGES + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "smolvlm": _SMOL,
    "idefics3": _SMOL,
    # all pictures first, then all texts
    "llava_onevision": _MESSAGES + "<|im_start|>{{ m.role }} {% for c in m.content if c.type == 'image' %}<image>\n"
    "{% endfor %}{% for c in m.content if c.type == 'text' %}\n{{ c.text }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
SPECIALS = {
    "gemma3": {
        "bos_token": "<bos>", "eos_token": "<eos>", "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "turn": "<end_of_turn>",
    },
    "qwen2_5_vl": {
        "eos_token": "<|im_end|>", "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "turn": "<|im_start|>",
    },
    "smolvlm": {
        "bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "image_token": "<image>",
        "fake": "<fake_token_around_image>", "global": "<global-img>",
    },
    "llava_onevision": {
        "eos_token": "<|im_end|>", "image_token": "<image>", "video_token": "<video>", "turn": "<|im_start|>"
    },
}  # fmt: skip
SPECIALS |= {"qwen3_vl": SPECIALS["qwen2_5_vl"], "idefics3": SPECIALS["smolvlm"]}
PUBLISHED = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "lm_head.": "language_model.lm_head.",
}
QWEN_PUBLISHED = {"model.language_model.": "model.", "model.visual.": "visual."}
NAMES = {"gemma3": PUBLISHED, "llava_onevision": PUBLISHED, "qwen2_5_vl": QWEN_PUBLISHED}
"""transformers' names today -> those in the published files."""


def write_vlm(folder: Path, kind: str, **changes: Any) -> None:
    """A tiny model of a family; `changes` replace fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(SPECIALS[kind])
    ids = {name: tokenizer.token_to_id(token) for name, token in SPECIALS[kind].items()}
    config = {"model_type": kind, **CONFIGS[kind], **_token_fields(kind, ids), **changes}
    _write(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "preprocessor_config.json", PICTURES[kind])
    if kind in PROCESSORS:
        _write(folder / "processor_config.json", PROCESSORS[kind])
    names = {n: t for n, t in SPECIALS[kind].items() if n.endswith("_token")}
    _write(folder / "tokenizer_config.json", {**names, "tokenizer_class": "PreTrainedTokenizerFast"})
    _write(folder / "generation_config.json", {"eos_token_id": [ids["eos_token"], ids.get("turn", ids["eos_token"])]})
    if kind == "smolvlm":
        _write(folder / "chat_template.json", {"chat_template": TEMPLATES[kind]})
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATES[kind])
    save_file(_tensors(folder, kind), folder / "model.safetensors", {"format": "pt"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def _token_fields(kind: str, ids: dict[str, int]) -> dict[str, int]:
    if kind == "gemma3":
        return {
            "image_token_index": ids["image_token"], "boi_token_index": ids["boi_token"],
            "eoi_token_index": ids["eoi_token"],
        }  # fmt: skip
    if kind == "llava_onevision":
        return {"image_token_index": ids["image_token"], "video_token_index": ids["video_token"]}
    if kind.startswith("qwen"):
        starts = {"vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"]}
        return {"image_token_id": ids["image_token"], "video_token_id": ids["video_token"], **starts}
    return {"image_token_id": ids["image_token"]}


def _tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    """Random weights, lively enough that answers vary, under their published names."""
    torch.manual_seed(sum(map(ord, kind)))
    settings = transformers.AutoConfig.from_pretrained(folder)
    network = transformers.AutoModelForImageTextToText.from_config(settings)
    tied = network.config.tie_word_embeddings
    words = 0.1 if tied else 1.0  # a large one calls itself again
    for part in network.modules():
        for weight in part.parameters(recurse=False):
            if weight.ndim > 1:
                nn.init.normal_(weight, std=words if isinstance(part, nn.Embedding) else weight[0].numel() ** -0.5)
            elif isinstance(part, nn.Linear):
                nn.init.normal_(weight, std=0.1)
    state = {n: t.clone() for n, t in network.state_dict().items() if not (tied and n.startswith("lm_head"))}
    return {_published(name, NAMES.get(kind, {})): tensor for name, tensor in state.items()}


def _published(name: str, names: dict[str, str]) -> str:
    old = next((old for old in names if name.startswith(old)), "")
    return names.get(old, "") + name.removeprefix(old)


def _tokenizer(specials: dict[str, str]) -> Tokenizer:
    """Bytes and a few words; every letter can be written."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["Is there a nodule in the SLICE? The lung is clear."], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials.values()])
    return tokenizer
