"""Prints the table of `install.needs.SIZES` for a folder of wheels: megabytes fetched, and installed.

pip download -d FOLDER -r Resources/requirements/reader.txt -r Resources/requirements/export.txt \\
        -r Resources/requirements/quantised.txt
python -m Testing.measure_wheels FOLDER
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from MedVLMReaderLib.install.needs import name_of


def rows(folder: Path) -> list[tuple[str, float, float]]:
    """Name, megabytes of the wheel, and of what it is once installed; the largest first."""
    found = []
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
            compiled = sum(one.file_size for one in files if one.filename.endswith(".py"))  # pip makes a .pyc of each
            inside = sum(one.file_size for one in files) + compiled
        found.append((name_of(path.name.split("-")[0]), path.stat().st_size / 1e6, inside / 1e6))
    return sorted(found, key=lambda row: -row[1])


if __name__ == "__main__":
    for name, fetched, inside in rows(Path(sys.argv[1])):
        if fetched >= 0.5:
            print(f'    "{name}": Size({fetched:.1f}, {inside:.1f}),')
