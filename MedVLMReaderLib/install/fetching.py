"""Runs in the Python that reads: says what a model of the hub is, or fetches it. Lines of JSON behind MARK.

`python -m MedVLMReaderLib.install.fetching about NAME`, or `get NAME`.
"""

from __future__ import annotations

import sys
import time

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install.child import say

OFTEN_S = 0.25


def about(name: str) -> dict[str, object]:
    """Licence, bytes and whether it is gated, as the hub says them now."""
    from huggingface_hub import HfApi

    from MedVLMReaderLib.download import INDICES, listing, settings_of, told, weights_of
    from MedVLMReaderLib.models import CARDS

    repository = CARDS[name].source if name in CARDS else name
    found = listing(repository, None)
    with told(repository, None):
        page = HfApi().model_info(repository)
    card = page.card_data
    licence = str(getattr(card, "license_name", "") or getattr(card, "license", "") or "") if card else ""
    single = not any(index in found.files for index in INDICES)
    wanted = weights_of(found, {}) if single else [one for one in found.files if one.endswith((".safetensors", ".bin"))]
    size = sum(found.files[one].size for one in {*settings_of(found), *wanted})
    return {"name": name, "repository": repository, "licence": licence, "bytes": size, "gated": bool(page.gated)}


def get(name: str) -> dict[str, object]:
    """Fetch it, saying how far it is; revision and notes."""
    from MedVLMReaderLib import hub

    said = 0.0

    def progress(file: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > OFTEN_S or done == total:
            said = time.monotonic()
            say({"progress": [done, total], "file": file})

    found = hub.get(name, progress=progress)
    return {"name": name, "revision": found.revision, "notes": list(found.notes)}


def main(what: str, name: str) -> int:
    """Say what came of it; a refusal is said, too."""
    try:
        say({"done": {"about": about, "get": get}[what](name)})
    except ReaderError as error:
        say({"refused": str(error)})
    except ModuleNotFoundError as error:
        say({"refused": f"The Python that reads lacks '{error.name}'. Set up the models first."})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
