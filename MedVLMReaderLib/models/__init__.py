"""The table of models: what is known of each before anything of it is loaded. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


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
    summary: str
    revision: str = ""
    """The commit that is fetched; empty: the newest."""

    seeing_bytes: int = 0
    """Memory that the encoder's activations take."""

    @property
    def shipped(self) -> bool:
        """Whether it comes with the reader."""
        return self.source.startswith("models/")


SYSTEMS = {
    "vlm_qwen": "med3dvlm", "dec_clip": "med3dvlm",
    "lamed_phi3": "m3d_lamed", "lamed_llama": "m3d_lamed", "m3d_clip": "m3d_lamed",
}  # fmt: skip
"""`model_type` of a published config.json -> the file in models/ that computes it; any other is huggingface's."""

CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("built-in", "MedVLM Reader's built-in model", "models/built-in", "ms_vlm", "Apache-2.0", ("CT", "MR"), 0,
             "A small MS-VLM trained on made studies: shows that the whole chain works. Reads made studies only."),
    )
}  # fmt: skip
