"""Pythons on this machine that can make an environment for the reader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from MedVLMReaderLib.install.needs import NEWEST, OLDEST
from MedVLMReaderLib.worker.transport import environment

LATELY_S = 10
PLACES = (
    "~/.local/bin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/local/bin",
    *(f"/Library/Frameworks/Python.framework/Versions/3.{minor}/bin" for minor in range(OLDEST[1], NEWEST[1] + 1)),
)  # fmt: skip
"""Where Pythons are that programs which were started by a click do not have on their PATH."""


def suitable() -> list[str]:
    """Paths of Pythons 3.11 to 3.13 that are found by name and do start, newest first. Takes tenths of a second."""
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)] + ["python3", "python"]
    where = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(os.path.expanduser, PLACES)])
    found = [*(path for name in names if (path := shutil.which(name, path=where))), *_by_launcher()]
    paths = dict.fromkeys(os.path.abspath(path) for path in found if path and "WindowsApps" not in path)
    known: dict[str, str] = {}
    for path in paths:
        if (really := _starts(path)) and really not in known.values():
            known[path] = really
    return list(known)


def _starts(path: str) -> str:
    """Which interpreter a path really is; empty where it does not start, or is of another version."""
    program = "import sys; print(sys.version_info[0], sys.version_info[1], sys.base_exec_prefix, sep='|')"
    try:
        told = subprocess.run(
            [path, "-I", "-c", program], capture_output=True, text=True, timeout=LATELY_S, check=True,
            env=environment(path), creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ).stdout  # fmt: skip
        major, minor, prefix = told.strip().split("|")
        return prefix if OLDEST <= (int(major), int(minor)) <= NEWEST else ""
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""


def _by_launcher() -> list[str]:
    """Those that Windows' launcher knows."""
    if os.name != "nt" or not (launcher := shutil.which("py")):
        return []
    try:
        told = subprocess.run([launcher, "-0p"], capture_output=True, text=True, timeout=LATELY_S, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    wanted = tuple(f"3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))
    lines = [line.strip() for line in told.splitlines() if any(version in line.split(" ")[0] for version in wanted)]
    return [line.split(maxsplit=1)[-1].lstrip("* ") for line in lines]


LOADED = {
    "numpy": "numpy", "scipy": "scipy", "simpleitk": "SimpleITK", "pydicom": "pydicom", "pillow": "PIL",
    "matplotlib": "matplotlib", "tqdm": "tqdm", "regex": "regex", "huggingface-hub": "huggingface_hub",
}  # fmt: skip
"""Packages that the reader needs and that Slicer or another extension may have loaded, with their modules."""


def loaded_here() -> dict[str, str]:
    """Versions of needed packages that this program has loaded: replaced under its feet, they may stop working."""
    found = {}
    for name, module in LOADED.items():
        if module in sys.modules:
            with suppress(PackageNotFoundError):
                found[name] = version(name)
    return found
