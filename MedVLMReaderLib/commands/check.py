"""`check`: does this installation read the shipped sample as it should, and what do fewer bits cost a model?"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from MedVLMReaderLib.commands import FINE, WRONG
from MedVLMReaderLib.commands.terminal import arriving, loaded, loaded_packages, say, say_json, step


def check(arguments: Namespace) -> int:
    """Read the sample and compare; with --regenerate write what was found as the new reference."""
    if arguments.model:
        return _fidelity(arguments)
    from MedVLMReaderLib.check import MODEL, differences, measured, reference, regenerate, sample

    volume = sample()
    expected = None if arguments.regenerate else reference()
    found = measured(loaded(MODEL), volume)
    if expected is None:
        path, changes = regenerate(found)
        if arguments.json:
            say_json({"file": path, "changes": changes})
        else:
            say("\n".join(changes) or "Nothing has changed.")
            say(f"\nWritten: {path}")
        return FINE
    wrong = differences(expected, found)
    if arguments.json:
        say_json({"right": not wrong, "model": found["model"], "revision": found["revision"], "differences": wrong})
    elif wrong:
        say("Not right. The reading of the sample differs from the one that was shipped:\n")
        say("\n".join(wrong))
    else:
        say(f"right: {found['model']}, revision {found['revision']}, reads the sample as it should.")
    return WRONG if wrong else FINE


def _fidelity(arguments: Namespace) -> int:
    """Read every byte of a model's files, then compare each precision that fits with the fullest."""
    from MedVLMReaderLib.check import sample

    step(f"Loading the model '{arguments.model}' ...")
    loaded_packages()
    from MedVLMReaderLib.choice import precisions_of
    from MedVLMReaderLib.fidelity import fidelities
    from MedVLMReaderLib.hub import check_files
    from MedVLMReaderLib.reader import prepared

    with arriving(arguments.model) as progress:
        found, build, checkpoint = prepared(
            arguments.model, arguments.device, arguments.revision, arguments.offline, progress
        )
    check_files(found)
    rows = []
    if not arguments.json:
        say(f"{checkpoint.name}, revision {checkpoint.revision}, on {checkpoint.device}; its files are right.")
        say(f"{'precision':<12}{'same next word':>16}{'divergence':>12}{'same report':>13}")
    for one in fidelities(build, checkpoint, sample(), precisions_of(checkpoint, arguments.precision)):
        rows.append(asdict(one))
        if not arguments.json:
            full = "" if len(rows) > 1 else "  (the full one here)"
            say(f"{one.precision:<12}{one.top_1:>16.3f}{one.divergence:>12.4f}{one.report:>13.2f}{full}")
    if arguments.json:
        say_json({"model": checkpoint.name, "revision": checkpoint.revision, "fidelity": rows})
    return FINE
