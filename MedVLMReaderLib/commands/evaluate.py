"""`evaluate`: how well a model reads studies with known findings."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import check_writable, loaded, reason, say, say_json

PROTOCOLS = "retrieval", "report", "vqa", "segmentation", "classification"
"""Those of the papers; see commands/protocols.py."""
MARKS = "<!-- figures -->", "<!-- end of figures -->"
"""Between these lines of a page stands a table that a command writes."""


def evaluate(arguments: Namespace) -> None:
    """Measure, and print the figures."""
    for file in (arguments.out, arguments.kept, arguments.page, arguments.figure):
        if file:
            check_writable(file.parent)
    if arguments.what in PROTOCOLS:
        from MedVLMReaderLib.commands.protocols import measured

        _tell(measured(arguments), arguments)
        return
    if arguments.what == "domain":
        _tell(_domain(arguments), arguments)
        return
    if arguments.seeds is None:
        raise ReaderError(f"Name the made studies for '{arguments.what}': --seeds A-B.")
    _tell(_made(arguments), arguments)


def _domain(arguments: Namespace) -> Mapping[str, Any]:
    """Which scans the model says it has not learned to read."""
    if not arguments.scans:
        raise ReaderError("Name the scans that the model should flag: --scans SCAN SCAN ...")
    from tqdm import tqdm

    from MedVLMReaderLib.evaluation import domain
    from MedVLMReaderLib.files import read

    scans = [read(path) for path in arguments.scans]
    with tqdm(total=len(scans), desc="Scans", disable=None, leave=False) as bar:
        reader = loaded(arguments.model, arguments)
        return domain.evaluate(reader, scans, lambda done: bar.update(done - bar.n))


def _made(arguments: Namespace) -> Mapping[str, Any]:
    """Figures on made studies."""
    reader = loaded(arguments.model, arguments)
    from tqdm import tqdm

    from MedVLMReaderLib.evaluation import heatmaps, phantom, verification

    with tqdm(total=len(arguments.seeds), desc="Studies", disable=None, leave=False) as bar:

        def told(done: int, _: int) -> None:
            bar.update(done - bar.n)

        if arguments.what == "verification":
            return verification.evaluate(reader, arguments.seeds, kept=arguments.kept, progress=told)
        if arguments.what == "heatmaps":
            found = heatmaps.compare(reader, arguments.seeds, kept=arguments.kept, progress=told)
            if arguments.page:
                put(heatmaps.markdown(found), arguments.page)
            return found
        return phantom.evaluate(reader, arguments.seeds, mirrored=arguments.mirrored, progress=told)


def put(table: str, page: Path) -> None:
    """Put a table into a Markdown page, between its two marks; at its end where it has none. ReaderError where the disk
    refuses."""
    from MedVLMReaderLib.reading import write_whole

    begin, end = MARKS
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        if begin not in text or end not in text:
            text = f"{text.rstrip()}\n\n{begin}\n{end}\n".lstrip()
        before, rest = text.split(begin, 1)
        write_whole({page: f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}".encode()})
    except OSError as error:
        raise ReaderError(f"'{page}' could not be written ({reason(error)}). Choose another place.") from error


def _tell(figures: Mapping[str, Any], arguments: Namespace) -> None:
    if arguments.json:
        say_json(dict(figures))
    else:
        for row in table(figures):
            say(row)
    if arguments.out:
        keep(figures, arguments)
    if arguments.figure:
        _draw(figures, arguments)


def _draw(figures: Mapping[str, Any], arguments: Namespace) -> None:
    """A picture of the figures; ReaderError where the disk refuses."""
    from MedVLMReaderLib.evaluation.drawing import draw

    try:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(figures, arguments.figure, f"{arguments.what}, {figures.get('model', '')}".strip(", "))
    except OSError as error:
        raise ReaderError(f"'{arguments.figure}' could not be written ({reason(error)}).") from error


def keep(figures: Mapping[str, Any], arguments: Namespace) -> None:
    """Write the figures to --out; ReaderError where the disk refuses."""
    from MedVLMReaderLib.reading import write_whole

    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole({arguments.out: (json.dumps(figures, indent=1) + "\n").encode()})
    except OSError as error:
        raise ReaderError(
            f"'{arguments.out}' could not be written ({reason(error)}). The figures were printed; copy them from there."
        ) from error


def table(figures: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """A line for each figure with its 95 % interval, those of a group under its name."""
    for name, value in figures.items():
        title = before + name.replace("_", " ")
        if isinstance(value, Mapping) and "value" not in value:
            yield title
            yield from table(value, before + "  ")
        elif isinstance(value, Mapping):
            yield f"{title:<32}{_interval(value)}"
        elif name == "seeds":
            yield f"{title:<32}{value[0]} to {value[-1]}"
        else:
            yield f"{title:<32}{value}"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"{'-':>8}"
    if figure["low"] is None:
        return f"{figure['value']:>8.3f}  (n = {figure['n']})"
    return f"{figure['value']:>8.3f}  ({figure['low']:.3f} to {figure['high']:.3f}, n = {figure['n']})"
