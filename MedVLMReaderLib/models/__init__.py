"""The table of models: what is known of each before anything of it is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """A model, as the user chooses it."""

    name: str
    title: str
    source: str
    """A folder of Resources/, or a name on the Hugging Face hub."""
    system: str
    """The file in models/ that computes it."""
    licence: str
    modalities: tuple[str, ...]
    parameters: int
    """Of all its parts together."""
    summary: str
    revision: str = ""
    """The commit that is fetched; empty: the newest."""
    gated: bool = False
    """Whether its makers ask for an agreement before it can be fetched."""
    can: tuple[str, ...] = ("report", "answer", "heatmap")
    """What it can do: report, answer, heatmap, search, classify."""
    decoder: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of its language model, by transformers' names; empty where it has none."""
    context: int = 2048
    """Tokens of a study with its chat, for the memory that is needed."""
    seeing_bytes: int = 0
    """Memory that the encoder's activations take, about."""
    tried: bool = False
    """Whether the published weights themselves were ever read here, and not only their layout."""
    unsure: tuple[str, ...] = ()
    """Facts of this card that stand on no page that could be looked up."""

    @property
    def shipped(self) -> bool:
        """Whether it comes with the reader."""
        return self.source.startswith("models/")


SYSTEMS = {
    "vlm_qwen": "med3dvlm", "dec_clip": "med3dvlm",
    "lamed_phi3": "m3d_lamed", "lamed_llama": "m3d_lamed", "m3d_clip": "m3d_lamed",
}  # fmt: skip
"""`model_type` of a published config.json -> the file in models/ that computes it; any other is huggingface's."""


def _decoder(
    width: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, head_width: int = 0,
    *, tied: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "vocab_size": vocabulary, "head_dim": head_width or width // heads,
        "tie_word_embeddings": tied,
    }  # fmt: skip


BOTH = ("CT", "MR")
PAIR = ("search", "classify")
GENERAL = "A general model, not a medical one; slices as pictures."
CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("built-in", "MedVLM Reader's built-in model", "models/built-in", "ms_vlm", "Apache-2.0", BOTH, 3_888_294,
             "A small MS-VLM trained on made studies: shows that the whole chain works. Reads made studies only.",
             decoder=_decoder(192, 512, 4, 6, 2, 678, tied=True), context=1024, tried=True),
        Card("med3dvlm", "Med3DVLM with Qwen2.5 7B", "MagicXin/Med3DVLM-Qwen-2.5-7B", "med3dvlm", "unknown", BOTH,
             7_678_000_000, "Whole volumes as one block of 128 x 256 x 256; trained on M3D's CT.",
             decoder=_decoder(3584, 18944, 28, 28, 4, 151666), seeing_bytes=600_000_000, unsure=("licence",)),
        Card("med3dvlm-siglip", "Med3DVLM's image and text pair", "MagicXin/DCFormer_SigLIP", "med3dvlm", "Apache-2.0",
             BOTH, 154_200_000, "Ranks studies by a text and scores findings; writes nothing.", can=PAIR,
             seeing_bytes=600_000_000),
        Card("m3d-lamed", "M3D-LaMed with Phi-3 mini", "GoodBaiBai88/M3D-LaMed-Phi-3-4B", "m3d_lamed", "Apache-2.0",
             BOTH, 4_049_000_000, "Whole volumes as one block of 32 x 256 x 256; trained on M3D's CT.",
             decoder=_decoder(3072, 8192, 32, 32, 32, 32015), seeing_bytes=300_000_000),
        Card("m3d-lamed-llama2", "M3D-LaMed with Llama 2 7B", "GoodBaiBai88/M3D-LaMed-Llama-2-7B", "m3d_lamed",
             "Llama 2", BOTH, 6_980_000_000, "As m3d-lamed, with a larger language model.",
             decoder=_decoder(4096, 11008, 32, 32, 32, 32004), seeing_bytes=300_000_000,
             unsure=("licence", "parameters")),
        Card("m3d-clip", "M3D's image and text pair", "GoodBaiBai88/M3D-CLIP", "m3d_lamed", "Apache-2.0", BOTH,
             198_100_000, "Ranks studies by a text and scores findings; writes nothing.", can=PAIR,
             seeing_bytes=300_000_000, unsure=("licence",)),
        Card("medgemma-1.5", "MedGemma 1.5 4B", "google/medgemma-1.5-4b-it", "huggingface",
             "Health AI Developer Foundations", BOTH, 4_300_000_000, "Up to 85 slices as pictures in three windows.",
             gated=True, decoder=_decoder(2560, 10240, 34, 8, 4, 262208, 256, tied=True), context=24_000,
             seeing_bytes=300_000_000, unsure=("decoder",)),
        Card("qwen2.5-vl-3b", "Qwen2.5-VL 3B", "Qwen/Qwen2.5-VL-3B-Instruct", "huggingface", "Qwen Research", BOTH,
             3_755_000_000, GENERAL, decoder=_decoder(2048, 11008, 36, 16, 2, 151936, tied=True), context=12_000,
             seeing_bytes=300_000_000, unsure=("licence", "parameters", "decoder")),
        Card("qwen2.5-vl-7b", "Qwen2.5-VL 7B", "Qwen/Qwen2.5-VL-7B-Instruct", "huggingface", "Apache-2.0", BOTH,
             8_292_000_000, GENERAL, decoder=_decoder(3584, 18944, 28, 28, 4, 152064), context=12_000,
             seeing_bytes=300_000_000, unsure=("licence", "parameters", "decoder")),
        Card("qwen3-vl-4b", "Qwen3-VL 4B", "Qwen/Qwen3-VL-4B-Instruct", "huggingface", "Apache-2.0", BOTH,
             4_440_000_000, GENERAL, decoder=_decoder(2560, 9728, 36, 32, 8, 151936, 128, tied=True), context=12_000,
             seeing_bytes=300_000_000, unsure=("licence", "parameters", "decoder")),
        Card("smolvlm", "SmolVLM 2.2B", "HuggingFaceTB/SmolVLM-Instruct", "huggingface", "Apache-2.0", BOTH,
             2_250_000_000, GENERAL, decoder=_decoder(2048, 8192, 24, 32, 32, 49155), context=8_000,
             seeing_bytes=200_000_000, unsure=("licence", "parameters", "decoder")),
        Card("llava-onevision", "LLaVA-OneVision 0.5B", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "huggingface",
             "Apache-2.0", BOTH, 894_000_000, GENERAL, decoder=_decoder(896, 4864, 24, 14, 2, 152000, tied=True),
             context=30_000, seeing_bytes=200_000_000, unsure=("licence", "parameters", "decoder")),
    )
}  # fmt: skip
