"""`heatmap`: where the model looked for a part of a kept reading."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.keeping import figures, save_whole
from MedVLMReaderLib.commands.terminal import check_writable, loaded, say, say_json, scan, unwritable, warn

if TYPE_CHECKING:
    from MedVLMReaderLib.reading import Reading
    from MedVLMReaderLib.verification import Verdict
    from MedVLMReaderLib.volume import Volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def heatmap(arguments: Namespace) -> None:
    """Write the heatmap as a volume, and a picture where the scan is given."""
    from MedVLMReaderLib.reading import Reading

    reading = Reading.load(arguments.reading)
    if arguments.sentence is not None and arguments.sentence > len(reading.sentences):
        raise ReaderError(f"No sentence {arguments.sentence}: the text has {len(reading.sentences)}, counted from 1.")
    part = arguments.words if arguments.sentence is None else arguments.sentence - 1
    if arguments.relative and not (arguments.look and arguments.method == "attention"):
        raise ReaderError("--relative is of attention that is looked up anew. Add: --look --method attention")
    if (arguments.verify or arguments.look) and not arguments.study:
        raise ReaderError("The model must see the scan for that. Name it with --study.")
    reading, verdict = _with_model(reading, part, arguments) if arguments.verify or arguments.look else (reading, None)
    heats, whole = reading.heatmaps(part, arguments.method), reading.heatmap(part, arguments.method)
    out = arguments.out or arguments.reading / f"heatmap{_mark(arguments)}.nii.gz"
    ending = next((ending for ending in ENDINGS if out.name.lower().endswith(ending)), None)
    if ending is None:
        raise ReaderError(f"'{out}' is no volume's name. End it in {', '.join(ENDINGS)}.")
    check_writable(out.parent)
    words = reading.text[slice(*reading.span(part))]
    volume = _scan_of(reading, arguments) if arguments.study else None
    files = [out]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_whole(whole, out)
        if volume is not None:
            files.append(out.with_name(out.name[: -len(ending)] + ".png"))
            _draw(volume, heats, words, files[-1])
    except OSError as error:
        raise unwritable(out, error) from error
    found = {"words": words, **figures(heats, whole), "note": " ".join(heats[0].notes), "files": files}
    _tell(found | ({"verification": verdict.to_json()} if verdict else {}), arguments)
    if verdict and not arguments.json:
        say(str(verdict))


def _with_model(reading: Reading, part: Any, arguments: Namespace) -> tuple[Reading, Verdict | None]:
    """The reading, looked at again where that was asked for, and the verdict where that was."""
    volume = scan(arguments.study, arguments.series)
    reader = loaded(arguments.model or reading.model, arguments)
    seen = reader.see(volume)
    if arguments.look:
        reading = reader.look(seen, reading, method=arguments.method or "", relative=arguments.relative)
        reading.save(arguments.reading)
    if not arguments.verify:
        return reading, None
    reading.heatmaps(part, arguments.method)  # says what the reading lacks before the long work
    with _shown() as progress:
        return reading, reader.verify(volume, seen, reading, part, method=arguments.method, progress=progress)


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """Shows how many regions have been painted over."""
    from tqdm import tqdm

    with tqdm(desc="Regions", disable=None, leave=False) as shown:

        def told(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield told


def _mark(arguments: Namespace) -> str:
    """What tells the file from that of another part of the text."""
    if arguments.sentence is not None:
        return f"-{arguments.sentence:02d}"
    slug = re.sub(r"\W+", "-", arguments.words or "").strip("-").lower()[:40]
    return f"-{slug}" if slug else ""


def _scan_of(reading: Reading, arguments: Namespace) -> Volume:
    """The scan to draw on, with a warning where it is not the file that was read."""
    volume = scan(arguments.study, arguments.series)
    if reading.preparation.get("study", volume.key) != volume.key:
        warn("This scan is not the file that was read, or has changed since. Make sure that it is the same study.")
    return volume


def _draw(volume: Volume, heats: Any, words: str, path: Path) -> None:
    from MedVLMReaderLib.pictures import overlay

    overlay(volume, heats, title=words, path=path)


def _tell(found: dict[str, Any], arguments: Namespace) -> None:
    if arguments.json:
        say_json(found)
        return
    place = ", ".join(f"{x:.1f}" for x in found["peak_ras_mm"])
    say(found["words"])
    spread = f"spread over {found['effective_cells']} of {found['cells']} cells"
    say(f"Peak at R, A, S ({place}) mm; {spread}. {found['note']}")
    say(f"Files: {', '.join(str(path) for path in found['files'])}")
