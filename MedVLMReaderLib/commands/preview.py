"""`preview`: what the model will be shown of a study, after preparation."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import check_writable, loaded, say, say_json, scan, unwritable

if TYPE_CHECKING:
    from MedVLMReaderLib.preparation import Recipe
    from MedVLMReaderLib.volume import Volume


def preview(arguments: Namespace) -> None:
    """Draw the sheet of pictures."""
    from MedVLMReaderLib.pictures import sheet

    recipe = recipe_of(arguments.model, arguments)
    volume = scan(arguments.study, arguments.series)
    out = arguments.out or Path("readings") / volume.source / "preview.png"
    check_writable(out.parent)
    shown, notes = _shown(volume, recipe, arguments)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet(list(shown.values()), path=out, titles=list(shown))
    except OSError as error:
        raise unwritable(out, error) from error
    if arguments.json:
        stacks = [
            {"title": title, "shape": stack.grid.shape, "spacing_mm": [round(float(x), 4) for x in stack.grid.spacing]}
            for title, stack in shown.items()
        ]
        plain = recipe.to_json() if recipe else None
        say_json({"model": arguments.model, "recipe": plain, "notes": notes, "stacks": stacks, "file": out})
        return
    for note in notes:
        say(f"Note: {note}")
    for title, stack in shown.items():
        count, rows, columns = stack.grid.shape
        say(f"{title}: {count} pictures of {rows} x {columns}, {stack.grid.spacing[0]:.1f} mm apart")
    say(f"File: {out}")


def recipe_of(model: str, how: Namespace | None = None) -> Recipe | None:
    """The recipe in the model's config.json, without loading the model; None where it has none of its own."""
    from MedVLMReaderLib.hub import find
    from MedVLMReaderLib.preparation import Recipe

    folder = find(model, revision=how.revision if how else None, offline_only=bool(how and how.offline)).folder
    try:
        config = json.loads((folder / "config.json").read_text())
        return Recipe.from_json(config["recipe"]) if "recipe" in config else None
    except FileNotFoundError:
        raise ReaderError(f"'{folder}' is not a model's folder: it has no config.json.") from None
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ReaderError(f"config.json of '{folder}' cannot be read ({error}). Get the model again.") from None


def _shown(volume: Volume, recipe: Recipe | None, arguments: Namespace) -> tuple[dict[str, Volume], tuple[str, ...]]:
    """Stacks by their titles, and what was assumed."""
    if recipe is None:
        prepared: Any = loaded(arguments.model, arguments).model.prepared([volume], None)
        return {f"stack {n}": stack for n, stack in enumerate(prepared, start=1)}, volume.notes
    from MedVLMReaderLib.preparation import notes, stacks

    found = stacks(volume, recipe)
    shown = {s.plane.capitalize(): replace(s.volume, values=s.channels(recipe)[:, -1]) for s in found}
    return shown, (*volume.notes, *notes(volume, recipe))
