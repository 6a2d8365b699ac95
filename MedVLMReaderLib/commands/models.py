"""`models`: the table of models."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from MedVLMReaderLib.commands.terminal import say, say_json


def show(arguments: Namespace) -> None:
    """Print the table."""
    from MedVLMReaderLib.models import CARDS
    from MedVLMReaderLib.resources import resources_folder

    rows = [asdict(card) | {"here": (resources_folder() / card.source).is_dir()} for card in CARDS.values()]
    if arguments.json:
        say_json({"models": rows})
        return
    for row in rows:
        size = f", {_millions(row['parameters'])}" if row["parameters"] else ""
        say(f"{row['name']:<12}{row['title']}{'' if row['here'] else ' (not installed)'}")
        say(f"{'':<12}{' and '.join(row['modalities'])}{size}, {row['licence']}. {row['summary']}")


def _millions(parameters: int) -> str:
    billions = parameters >= 1e9
    return f"{parameters / (1e9 if billions else 1e6):.1f} {'billion' if billions else 'million'} parameters"
