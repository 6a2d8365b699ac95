"""Writes Resources/requirements/ out of setup.py and constraints.txt: what set-up installs in Slicer (`make lists`)."""

from __future__ import annotations

import ast
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from MedVLMReaderLib.install.needs import BRINGS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "Resources" / "requirements"
INSTALLED = ("BASE", "MODELS", "QUANTISED", "EXPORT")
HEADS = {
    "reader.txt": "# What the process that reads needs: BASE and MODELS of setup.py. Written by `make lists`.",
    "export.txt": "# For reports as PDF, DICOM and FHIR: EXPORT of setup.py. Written by `make lists`.",
    "quantised.txt": "# For int8 and NF4: QUANTISED of setup.py. Written by `make lists`.",
    "tested.txt": "# The versions that the tests ran with: constraints.txt. Written by `make lists`.",
}


def declared() -> dict[str, list[str]]:
    """The lists of requirements of setup.py, by name."""
    found = {}
    for one in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.List) and isinstance(one.targets[0], ast.Name):
            found[one.targets[0].id] = [part.value for part in one.value.elts if isinstance(part, ast.Constant)]
    return found


def tested() -> list[str]:
    """The pins of what is installed in Slicer; what else comes along is left to pip."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonicalize_name(Requirement(line).name): line for line in lines if line and not line.startswith("#")}
    lists = declared()
    wanted = {canonicalize_name(Requirement(one).name) for key in INSTALLED for one in lists[key]}
    return [pins[name] for name in sorted(pins) if name in wanted | {one for below in BRINGS.values() for one in below}]


def content() -> dict[str, str]:
    """What each file should hold."""
    lists = declared()
    lines = {"reader.txt": lists["BASE"] + lists["MODELS"], "quantised.txt": lists["QUANTISED"]}
    lines |= {"export.txt": lists["EXPORT"], "tested.txt": tested()}
    return {name: "\n".join([HEADS[name], *found]) + "\n" for name, found in lines.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in content().items():
        (FOLDER / name).write_text(text)
