"""Writes the repository's public address into the files that name it, once it has one.

python -m Testing.address https://github.com/OWNER/SlicerMedVLMReader
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("CMakeLists.txt", "docs/extension-index/MedVLMReader.json")
UNSET = "OWNER"


def repository(root: Path = ROOT) -> str:
    """OWNER/NAME as the extension's homepage has it."""
    found = re.search(r'EXTENSION_HOMEPAGE "https://github\.com/([^"]+)"', (root / "CMakeLists.txt").read_text())
    if found is None:
        raise ValueError("CMakeLists.txt names no homepage.")
    return found[1]


def write(address: str, root: Path = ROOT) -> None:
    """Put a new address in the place of the old one. ValueError where it is no repository's."""
    new = re.fullmatch(r"https://github\.com/([\w.-]+/Slicer[\w-]+?)(?:\.git)?/?", address)
    if new is None:
        raise ValueError(f"'{address}' should be like https://github.com/OWNER/SlicerMedVLMReader")
    old = repository(root)
    for name in FILES:
        path = root / name
        path.write_text(path.read_text().replace(f"/{old}", f"/{new[1]}"))


if __name__ == "__main__":
    write(sys.argv[1])
