"""What the Python that reads needs, and about how many megabytes that is before anybody has asked a server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from MedVLMReaderLib.resources import resource

OLDEST, NEWEST = (3, 11), (3, 13)
"""Pythons that can read."""
MODULES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "monai", "scipy", "SimpleITK", "pydicom",
    "highdicom", "reportlab",
)  # fmt: skip
"""What is loaded at the end, to see whether it can be."""


@dataclass(frozen=True)
class Size:
    """Of a package, in megabytes."""

    fetched: float
    installed: float


OTHER = Size(1, 4)
"""A package that is not in the table."""
SIZES: dict[str, Size] = {
    "torch": Size(191.8, 747.0), "simpleitk": Size(52.8, 275.7), "bitsandbytes": Size(43.1, 129.6),
    "scipy": Size(35.3, 135.1), "numpy": Size(16.9, 66.5), "transformers": Size(13.3, 106.0),
    "python-gdcm": Size(13.3, 44.2), "matplotlib": Size(9.9, 33.1), "pillow": Size(7.1, 21.6),
    "sympy": Size(6.3, 53.0), "fonttools": Size(5.5, 28.2), "hf-xet": Size(4.3, 11.7), "tokenizers": Size(3.4, 11.8),
    "pydicom": Size(2.4, 13.9), "pydantic-core": Size(2.3, 5.6), "networkx": Size(2.1, 13.5),
    "pylibjpeg-openjpeg": Size(2.0, 6.5), "monai": Size(1.7, 12.9), "kiwisolver": Size(1.4, 5.6),
    "pygments": Size(1.3, 9.2), "setuptools": Size(0.9, 5.6), "huggingface-hub": Size(0.9, 6.6),
    "pyyaml": Size(0.8, 3.1), "regex": Size(0.8, 3.4), "mpmath": Size(0.5, 3.9), "safetensors": Size(0.5, 1.4),
    "pyjpegls": Size(2.7, 8.1), "fhir-resources": Size(2.3, 29.1), "reportlab": Size(2.0, 7.9),
    "pynetdicom": Size(1.7, 9.7), "highdicom": Size(1.1, 27.3),
}  # fmt: skip
"""Measured, Linux wheels for Python 3.11 (`python -m Testing.measure_wheels FOLDER`)."""
CUDA = Size(3200, 5700)
"""torch with the libraries that a CUDA build brings."""


def requirements(quantised: bool = True) -> tuple[str, ...]:
    """The lines of Resources/requirements."""
    files = ("reader.txt", "export.txt", *(("quantised.txt",) if quantised else ()))
    return tuple(line for name in files for line in lines(name))


def lines(name: str) -> list[str]:
    """A requirements file without its comments."""
    text = resource(f"requirements/{name}").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """The package's name, in the one spelling."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[(]", requirement.strip(), maxsplit=1)[0]).lower()


def size_of(name: str, cuda: bool = False) -> Size:
    """About how large a package is."""
    return CUDA if name == "torch" and cuda else SIZES.get(name, OTHER)


def about(names: set[str], cuda: bool) -> Size:
    """About how large packages are together. Where torch or transformers is among them, what they bring is counted."""
    brought = {name for top, below in BRINGS.items() if top in names for name in below}
    sizes = [size_of(name, cuda) for name in names | brought]
    return Size(sum(one.fetched for one in sizes), sum(one.installed for one in sizes))


BRINGS = {
    "torch": (
        "sympy",
        "mpmath",
        "networkx",
        "jinja2",
        "markupsafe",
        "filelock",
        "fsspec",
        "typing-extensions",
        "setuptools",
    ),
    "transformers": ("pyyaml", "packaging", "typer", "rich", "pygments", "click"),
    "huggingface-hub": ("hf-xet", "httpx2", "httpcore2", "h11", "anyio", "certifi", "idna"),
    "matplotlib": ("contourpy", "fonttools", "kiwisolver", "cycler", "pyparsing", "python-dateutil", "six"),
    "accelerate": ("psutil",),
    "fhir-resources": ("fhir-core", "pydantic", "pydantic-core", "annotated-types"),
    "jsonschema": ("attrs", "referencing", "rpds-py"),
    "highdicom": ("pyjpegls",),
}
"""What comes along with a package and is worth counting."""
