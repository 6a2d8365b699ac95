"""Which Python reads, where this program's own is not the one: Slicer's `sys.executable` is no interpreter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SETTING, VARIABLE = "MedVLMReader/python", "MEDVLM_PYTHON"
"""Where a user may choose another one: among Slicer's settings, or in the environment."""


def interpreter(chosen: object = None, executable: str = sys.executable) -> str:
    """The one that was chosen, else PythonSlicer beside the program, else the program itself."""
    wanted = str(chosen or os.environ.get(VARIABLE) or "")
    return wanted or beside(executable)


def beside(executable: str) -> str:
    """PythonSlicer beside Slicer's program, else the program itself."""
    home = Path(executable).parent
    found = (folder / name for name in ("PythonSlicer", "PythonSlicer.exe") for folder in (home, home.parent / "bin"))
    return next((str(path) for path in found if path.exists()), executable)
