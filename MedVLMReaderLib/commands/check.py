"""`check`: does this installation read the shipped sample as it should?"""

from __future__ import annotations

from argparse import Namespace

from MedVLMReaderLib.commands import FINE, WRONG
from MedVLMReaderLib.commands.terminal import loaded, say, say_json


def check(arguments: Namespace) -> int:
    """Read the sample and compare; with --regenerate write what was found as the new reference."""
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
