"""`calibrate`: which heads of a model point at what a sentence says."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import check_writable, loaded, reason, say, say_json


def calibrate(arguments: Namespace) -> None:
    """Find the heads and keep them beside the model."""
    reader = loaded(arguments.model, arguments)
    from tqdm import tqdm

    from MedVLMReaderLib.calibration import FILE
    from MedVLMReaderLib.evaluation import calibration

    assert reader.checkpoint is not None
    place = arguments.out or reader.checkpoint.folder / FILE
    check_writable(place.parent)
    with tqdm(total=len(arguments.seeds), desc="Studies", disable=None, leave=False) as bar:
        found = calibration.calibrate(reader, arguments.seeds, lambda done, _: bar.update(done - bar.n))
    _keep(found.to_json(), place)
    if arguments.json:
        say_json({**asdict(found), "file": place})
        return
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    say(f"{found.choice[0].upper()}{found.choice[1:]}: {heads} (layer.head, counted from 0).")
    say(f"They point at {found.pointing:.0%} of {found.findings} findings. Kept in '{place}'.")


def _keep(text: str, place: Path) -> None:
    from MedVLMReaderLib.reading import write_whole

    try:
        write_whole({place: text.encode()})
    except OSError as error:
        raise ReaderError(f"'{place}' cannot be written ({reason(error)}). Choose another place with --out.") from error
