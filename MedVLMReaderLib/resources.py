"""What comes with the reader: the built-in model, the sample study, reference outputs.

They lie in `Resources/`: inside the library in an installed wheel or Slicer extension, beside it in a checkout.
"""

from __future__ import annotations

from pathlib import Path

from MedVLMReaderLib import ReaderError

LIBRARY = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The file or folder `name`, such as "sample/sample.nii.gz", under Resources/.

    Raises ReaderError where it is missing.
    """
    path = resources_folder() / name
    if not path.exists():
        raise ReaderError(
            f"'{name}' should have come with MedVLM Reader, but is not there. Install again "
            "('pip install --force-reinstall medvlmreader'), or in a checkout run 'git checkout -- Resources'."
        )
    return path


def manual_folder() -> Path:
    """Where the pages of the documentation lie, as Markdown. Raises ReaderError where they did not come along."""
    for folder in (LIBRARY / "docs", LIBRARY.parent / "docs"):
        if (folder / "index.md").is_file():
            return folder
    raise ReaderError("The manual did not come with this installation. Read it in the repository, below docs.")


def resources_folder() -> Path:
    """Where the shipped files lie.

    An installed library has them inside: a `Resources` beside it then belongs to somebody else, say a Slicer module.
    """
    inside = LIBRARY / "Resources"
    return inside if inside.is_dir() else LIBRARY.parent / "Resources"
