"""Loading a model from a folder, as the reader does, without the reader."""

from pathlib import Path

from MedVLMReaderLib.models import ms_vlm
from MedVLMReaderLib.weights import Checkpoint, fingerprint


def load(folder: Path, name: str) -> ms_vlm.MSVLM:
    return ms_vlm.load(Checkpoint(folder, name, fingerprint(folder)))
