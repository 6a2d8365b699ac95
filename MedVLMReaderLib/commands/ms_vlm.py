"""`train FILE.toml` of the system "ms_vlm": its tables, read into a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case

TABLES: dict[str, tuple[str, ...]] = {
    "data": ("cases", "root", "split", "seeds", "skip_faulty", "mirrored_every", "held_out", "planes"),
    "recipe": (), "sizes": (), "dino": (), "masked": (),
}  # fmt: skip


def train(content: Mapping[str, Any], cases: Sequence[Case], held_out: Sequence[Case], out: Path, minutes: float
          ) -> bool:  # fmt: skip
    """Train what the file says, or go on; True when finished."""
    from MedVLMReaderLib.training import ms_vlm

    return ms_vlm.run(plan_of(content), cases, held_out, ms_vlm.Runs(out, minutes))


def plan_of(content: Mapping[str, Any]) -> Any:
    """The plan of a file. ReaderError for a key that does not exist, or sizes that do not fit."""
    from MedVLMReaderLib.models.ms_vlm import Sizes
    from MedVLMReaderLib.preparation import Recipe
    from MedVLMReaderLib.training.dino import HeadSizes, Views
    from MedVLMReaderLib.training.ms_vlm import Plan
    from MedVLMReaderLib.volume import PLANES

    planes = content.get("data", {}).get("planes", list(PLANES))
    if not set(planes) <= set(PLANES) or not planes:
        raise ReaderError(f"[data] has the planes {planes}. Known: {', '.join(PLANES)}.")
    recipe = {"pixel_mm": None, "slice_mm": [None, None, None], **content.get("recipe", {})}
    views, head, momentum, dino = _parted(content.get("dino"), Views, HeadSizes, "momentum")
    _, _, share, masked = _parted(content.get("masked"), None, None, "share")
    try:
        sizes, read = Sizes.from_json(content.get("sizes", {})), Recipe.from_json(recipe)
    except (TypeError, KeyError, ValueError) as error:
        raise ReaderError(f"[recipe] or [sizes] has a field that is not allowed, or lacks one: {error}.") from None
    if read.size % sizes.patch or len(read.windows_ct) != sizes.channels:
        raise ReaderError(f"Pictures of {read.size} with {len(read.windows_ct)} windows do not fit patch {sizes.patch} "
                          f"and {sizes.channels} channels in [sizes].")  # fmt: skip
    return Plan(sizes, read, tuple(PLANES.index(plane) for plane in planes), dino, head or HeadSizes(),
                views or Views(), momentum or 0.996, masked, share or 0.3)  # fmt: skip


def _parted(table: Mapping[str, Any] | None, views: Any, head: Any, name: str) -> tuple[Any, Any, Any, Any]:
    """A stage's table in parts: two sets of sizes, the number called `name`, and the engine's settings."""
    from MedVLMReaderLib.training.engine import Settings

    if table is None:
        return None, None, None, None
    rest, made = dict(table), []
    for kind in (views, head):
        own = {one.name: rest.pop(one.name) for one in fields(kind) if one.name in rest} if kind else {}
        made.append(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}) if kind else None)
    number = rest.pop(name, None)
    return made[0], made[1], number, Settings.from_table(rest, f"[{'dino' if head else 'masked'}]")
