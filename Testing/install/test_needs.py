"""What is installed, and what the page says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from MedVLMReaderLib.install import needs
from MedVLMReaderLib.install.plan import MB, megabytes
from Testing.list_requirements import FOLDER, content

PAGE = Path(__file__).parents[2] / "docs" / "setting-up.md"


def test_the_shipped_lists_are_those_of_the_project() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.txt")} == content(), "run 'make lists'"


def test_nothing_that_runs_foreign_code_is_ever_installed() -> None:
    names = {needs.name_of(one) for one in needs.requirements()}
    assert not names & {"kernels", "torchvision", "timm", "torchao"}
    assert {"torch", "transformers", "safetensors"} <= names


@pytest.mark.parametrize(
    ("requirement", "name"),
    [("SimpleITK>=2.4", "simpleitk"), ("huggingface_hub>=2.0,<3", "huggingface-hub"), ("torch", "torch"),
     ("fhir.resources>=8; python_version > '3'", "fhir-resources"), (" x [y] >=1", "x")],
)  # fmt: skip
def test_a_package_has_one_spelling(requirement: str, name: str) -> None:
    assert needs.name_of(requirement) == name


def test_the_page_names_the_sizes_of_the_table() -> None:
    page, names = PAGE.read_text(), {needs.name_of(one) for one in needs.requirements()}
    plain, cuda = needs.about(names, False), needs.about(names, True)
    for size in (plain.fetched, plain.installed, cuda.fetched, cuda.installed):
        assert megabytes(int(size * MB)) in page
    assert f"{needs.SIZES['torch'].fetched:.0f} of them PyTorch" in page


def test_the_large_packages_are_all_in_the_table() -> None:
    small = {"tqdm", "pylibjpeg", "accelerate", "jsonschema", "dicomweb-client"}
    assert {needs.name_of(one) for one in needs.requirements()} - small <= set(needs.SIZES)
