"""Memory that a model needs, from its sizes alone, before anything of it is loaded. No torch here."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "int8", "nf4"]
"""In how many bits the decoder's weights are kept, best first."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "nf4")
