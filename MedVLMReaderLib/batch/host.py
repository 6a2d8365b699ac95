"""Facts of the machine that a reading was made on: what its speed, and in the last bits its numbers, depend on."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from MedVLMReaderLib import __version__

_PACKAGES = ("torch", "transformers", "numpy", "SimpleITK", "pydicom")


@cache
def host_facts() -> dict[str, Any]:
    """Processor, cores, system and versions; no name of the machine or of its user."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "system": platform.system(), "machine": platform.machine(),
        "python": platform.python_version(), "medvlmreader": __version__,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))}, "gpu": _gpu(),
    }  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _gpu() -> str:
    """Of torch, where it has been loaded."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else ""
