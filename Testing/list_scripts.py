"""Writes every script into the CMakeLists.txt of its folder, as Slicer wants them named: `make lists`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("MedVLMReader", "MedVLMReaderLib")
BLOCK = re.compile(r"(?<=set\(MODULE_PYTHON_SCRIPTS\n).*?(?=  \)\n)", re.DOTALL)


def scripts(folder: Path) -> list[str]:
    """The shipped scripts below a folder, its own before those of its subfolders; tests are not shipped."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    shipped = [path for path in paths if "Testing" not in path.parts]
    return [path.as_posix() for path in sorted(shipped, key=lambda path: (len(path.parts), path))]


def listed(folder: Path) -> list[str]:
    """The scripts that the folder's CMakeLists.txt names. Raises ValueError where it has no list."""
    block = BLOCK.search((folder / "CMakeLists.txt").read_text())
    if block is None:
        raise ValueError(f"{folder.name}/CMakeLists.txt has no set(MODULE_PYTHON_SCRIPTS ...).")
    return block[0].split()


def write(folder: Path) -> None:
    """Make the list in CMakeLists.txt that of the folder."""
    lines = "".join(f"  {name}\n" for name in scripts(folder))
    cmake = folder / "CMakeLists.txt"
    cmake.write_text(BLOCK.sub(lambda _: lines, cmake.read_text(), count=1))


if __name__ == "__main__":
    for name in FOLDERS:
        write(ROOT / name)
