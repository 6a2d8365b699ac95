"""`train FILE.toml` of the system "ms_vlm": its tables, read into a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case

TABLES: dict[str, tuple[str, ...]] = {
    "recipe": (), "sizes": (), "dino": (), "masked": (), "bridge": (), "lora": (),
    "decoder": (), "template": ("start", "turn", "end", "report"),
}  # fmt: skip


def train(
    content: Mapping[str, Any], cases: Sequence[Case], held_out: Sequence[Case], out: Path, beside: Path, minutes: float
) -> bool:
    """Train what the file in the folder `beside` says, or go on; True when finished."""
    from MedVLMReaderLib.training import ms_vlm

    return ms_vlm.run(plan_of(content, beside), cases, held_out, ms_vlm.Runs(out, minutes))


def plan_of(content: Mapping[str, Any], beside: Path = Path()) -> Any:
    """The plan of a file. ReaderError for a key that does not exist, or sizes that do not fit."""
    from MedVLMReaderLib.models.ms_vlm import Template
    from MedVLMReaderLib.models.slice_encoder import Sizes
    from MedVLMReaderLib.preparation import Recipe
    from MedVLMReaderLib.training.bridge import RANKS
    from MedVLMReaderLib.training.dino import HeadSizes, Views
    from MedVLMReaderLib.training.masked_slices import Hiding
    from MedVLMReaderLib.training.med3dvlm import Lora
    from MedVLMReaderLib.training.ms_vlm import Plan
    from MedVLMReaderLib.volume import PLANES

    planes = content.get("data", {}).get("planes", list(PLANES))
    if not set(planes) <= set(PLANES) or not planes:
        raise ReaderError(f"[data] has the planes {planes}. Known: {', '.join(PLANES)}.")
    recipe = {"pixel_mm": None, "slice_mm": [None, None, None], **content.get("recipe", {})}
    views, head, momentum, dino = _parted(content, "dino", "momentum", Views, HeadSizes)
    hiding, _, _, masked = _parted(content, "masked", "", Hiding)
    _, _, _, bridge = _parted(content, "bridge")
    ranks, _, _, lora = _parted(content, "lora", "", Lora)
    try:
        sizes, read = Sizes.from_json(content.get("sizes", {})), Recipe.from_json(recipe)
        template = Template(**content["template"]) if "template" in content else None
    except (TypeError, KeyError, ValueError) as error:
        raise ReaderError(f"[recipe], [sizes] or [template] has a field that is not allowed, or lacks one: {error}."
                          ) from None  # fmt: skip
    if read.size % sizes.patch or len(read.windows_ct) != sizes.channels:
        raise ReaderError(f"Pictures of {read.size} with {len(read.windows_ct)} windows do not fit patch {sizes.patch} "
                          f"and {sizes.channels} channels in [sizes].")  # fmt: skip
    decoder = content.get("decoder")
    if decoder and set(decoder) == {"folder"}:
        decoder = beside / decoder["folder"]
    return Plan(
        sizes, read, tuple(PLANES.index(plane) for plane in planes), dino, head or HeadSizes(), views or Views(),
        momentum or 0.996, masked, hiding or Hiding(), bridge, lora, ranks or RANKS, template, decoder,
        "made studies" if "seeds" in content.get("data", {}) else "scans",
    )  # fmt: skip


def _parted(
    content: Mapping[str, Any], stage: str, name: str = "", first: Any = None, second: Any = None
) -> tuple[Any, Any, Any, Any]:
    """A stage's table in parts: two sets of sizes, the number called `name`, and the engine's settings."""
    from MedVLMReaderLib.training.engine import Settings

    if stage not in content:
        return None, None, None, None
    rest, made = dict(content[stage]), []
    for kind in (first, second):
        own = {one.name: rest.pop(one.name) for one in fields(kind) if one.name in rest} if kind else {}
        made.append(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}) if own else None)
    return made[0], made[1], rest.pop(name, None), Settings.from_table(rest, f"[{stage}]")
