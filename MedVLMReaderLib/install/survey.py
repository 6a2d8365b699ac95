"""What was found in a Python: as `child` says it, in dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib.install.child import MARK
from MedVLMReaderLib.install.needs import NEWEST, OLDEST

State = Literal["fits", "missing", "wrong", "broken"]


@dataclass(frozen=True)
class Package:
    """One that is needed."""

    name: str
    wanted: str
    """The requirement."""
    version: str
    state: State
    by: str = ""
    """The package that needs it; empty where the reader does."""


@dataclass(frozen=True)
class Survey:
    """A Python, and what it has of what is needed."""

    python: str
    executable: str
    site: str
    """Where its packages go."""
    writable: bool
    pip: str
    """Its version; empty where there is none."""
    venv: bool
    """Whether it can make an environment."""
    free: int
    """Bytes where packages go."""
    free_temporary: int
    same_disk: bool
    nvidia: bool
    system: str
    own_index: bool
    """Whether pip was told where to fetch from, so that it is left at that."""
    packages: tuple[Package, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def lacking(self) -> tuple[Package, ...]:
        """Packages that are missing, wrong or broken."""
        return tuple(one for one in self.packages if one.state != "fits")

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of packages that are not whole."""
        return tuple(one.name for one in self.packages if one.state == "broken")

    @property
    def fits(self) -> bool:
        """Whether the Python is of a version that can read."""
        return OLDEST <= tuple(int(part) for part in self.python.split(".")[:2]) <= NEWEST

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Survey:
        """As the child said it."""
        packages = tuple(Package(**one) for one in said["packages"])
        return cls(**{**said, "packages": packages, "leftovers": tuple(said["leftovers"])})


def heard(text: str) -> Mapping[str, Any] | None:
    """What a child's printed text holds of its own; None where it did not come so far."""
    for line in reversed(text.splitlines()):
        if line.startswith(MARK):
            try:
                found = json.loads(line.removeprefix(MARK))
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None


def child() -> str:
    """The path of the script that runs in the Python that is set up."""
    return str(Path(__file__).with_name("child.py"))
