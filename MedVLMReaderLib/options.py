"""`Options`: how an answer is asked for. Torch is not needed to say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How an answer is asked for. The defaults always give the same answer."""

    longest: int = 512
    """Tokens after which an answer is cut off."""
    sample: bool = False
    """Draw words by their chance instead of taking the likeliest."""
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 42
    heatmaps: bool = True
    """Work out for every sentence where the model looked."""


USUAL = Options()
"""The defaults."""
