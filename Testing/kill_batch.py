"""Reads a folder again and again, each time killed at a random moment, and at last undisturbed.

`python -m Testing.kill_batch INPUT MODEL OUT KILLS`: each try is a fork of one process that has loaded the model, so
that ten kills cost no ten starts. Prints how many kills came in the midst of the work.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from MedVLMReaderLib.batch import Desk, Settings, here, read_all
from MedVLMReaderLib.batch.shelf import shelf
from MedVLMReaderLib.batch.studies import studies_of
from MedVLMReaderLib.reader import Options, Reader, load

QUESTIONS = ("Describe the findings.", "Is there a nodule?")


def attempt(reader: Reader, source: Path, out: Path) -> None:
    """One run to its end."""
    settings = Settings(reader.model.name, reader.model.revision, QUESTIONS, Options())
    place = shelf(out)
    read_all(here(Desk(reader), place, settings), studies_of(source), place, settings)


def main(source: str, model: str, out: str, kills: str) -> int:
    torch.set_num_threads(1)
    reader, rng, hit = load(model), random.Random(7), 0
    for n in range(int(kills) + 1):
        child = os.fork()
        if child == 0:
            attempt(reader, Path(source), Path(out))
            os._exit(0)
        if n < int(kills):
            time.sleep(rng.uniform(0.05, 0.6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hit += os.WIFSIGNALED(status)
    print(hit)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
