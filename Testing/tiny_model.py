"""A model folder for tests: a tiny MS-VLM of random layers that always writes the same text and does read the image."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken

from MedVLMReaderLib.models.ms_vlm import MSVLM, Template
from MedVLMReaderLib.models.slice_encoder import Sizes
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.training.language import END, READER, USER, made_tokenizer
from MedVLMReaderLib.weights import new_decoder

TINY_TEXT = "Findings: The right lung is clear. A stone of 7 mm lies in one kidney.\nImpression: Renal calculus."
"""What it writes, each word once. Sentences: "The right lung is clear.", "A stone ... kidney.", "Renal calculus."."""
TINY_SIZES = Sizes(
    patch=8, table=32, slice_width=32, slice_depth=1, slice_heads=2,
    zformer={
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 1,
        "pad_token_id": 0, "block_size": 16, "num_random_blocks": 3, "max_position_embeddings": 512,
    },
    perceiver_width=32, perceiver_depth=1, perceiver_heads=2, head_width=16, latents=8, places=3,
)  # fmt: skip
TINY_RECIPE = Recipe(
    size=32,
    pixel_mm=12.0,
    slice_mm=(20.0, 20.0, 20.0),
    windows_ct=((-1000.0, -600.0), (-100.0, 260.0), (-1000.0, 600.0)),
    windows_mr=((0.0, 0.5), (0.25, 1.0), (0.0, 1.5)),
)
TINY_DECODER: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def write_tiny_model(folder: Path) -> None:
    """config.json, tokenizer.json and model.safetensors, as `export` of the recipe writes them, in 32 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer, chain = _tokenizer()
    decoder_config = {**TINY_DECODER, "vocab_size": len(tokenizer)}
    template = Template("{image}", USER + "{question}" + READER, END, "Describe the findings.")
    model = MSVLM(TINY_SIZES, TINY_RECIPE, template, new_decoder(decoder_config), tokenizer)
    _say(model.decoder, chain)
    config = {
        "format": 1, "system": "ms_vlm", "sizes": TINY_SIZES.to_json(), "recipe": TINY_RECIPE.to_json(),
        "template": template.__dict__, "decoder": decoder_config, "reads": "made studies",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _tokenizer() -> tuple[Any, list[int]]:
    """A tokenizer in which every word of the text is one token, and the chain of tokens that writes it."""
    words = TINY_TEXT.replace("\n", " \n").split(" ")
    pieces = [words[0], *(word if word.startswith("\n") else f" {word}" for word in words[1:])]
    assert len(set(pieces)) == len(pieces)
    assert "".join(pieces) == TINY_TEXT
    tokenizer = made_tokenizer([TINY_TEXT, "Is there a nodule?"], 320)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in [READER, *pieces]]
    return tokenizer, [*ids, tokenizer.eos_token_id]


def _say(decoder: Any, chain: list[int]) -> None:
    """Have each token of the chain call the next one, with about even odds, so that the image still counts a little."""
    with torch.no_grad():
        embeddings = decoder.get_input_embeddings().weight.normal_()
        head = decoder.get_output_embeddings().weight.normal_(std=0.02)
        for token, following in itertools.pairwise(chain):
            head[following] = embeddings[token] * 0.12
