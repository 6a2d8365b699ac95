"""`segment`: masks of what a trained segmenter finds in a study, on the study's own voxels."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from MedVLMReaderLib.commands.terminal import check_writable, loaded_packages, say, say_json, scan, step, unwritable


def segment(arguments: Namespace) -> None:
    """Write the label map; print what was found."""
    out: Path = arguments.out
    check_writable(out.parent)
    volume = scan(arguments.study, arguments.series)
    loaded_packages()
    from MedVLMReaderLib.models import segmenter

    model = segmenter.load(arguments.model)
    step("Looking ...")
    labels = model.labels(volume)
    try:
        labels.save(out)
    except (OSError, RuntimeError) as error:
        raise unwritable(out, error if isinstance(error, OSError) else OSError(str(error))) from error
    found = model.found(labels)
    if arguments.json:
        classes = dict(enumerate(model.classes))
        say_json({"labels": out, "classes": classes, "found": [vars(one) for one in found], "notes": volume.notes})
        return
    for one in found:
        r, a, s = one.centre
        say(f"{one.name:<24}{one.millilitres:>10.1f} ml   around R {r:.0f}, A {a:.0f}, S {s:.0f} mm")
    if not found:
        say("None of the classes was found: " + ", ".join(model.classes[1:]) + ".")
    say(f"Label map: {out}. A network drew it; nobody checked it.")
