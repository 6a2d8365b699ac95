"""Recipes as plain data: what can be written down, and told apart by a hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plain:
    """A base of frozen dataclasses whose fields are plain data."""

    @property
    def key(self) -> str:
        """Hash of the fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)
