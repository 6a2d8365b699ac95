"""`train FILE.toml` of the system "med3dinsight": its tables, read into a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case

TABLES: dict[str, tuple[str, ...]] = {
    "recipe": (), "captions": ("model", "questions", "each", "more", "thick_mm"), "teacher": (), "encoder": (),
    "transformer": ("width", "depth", "heads", "inner", "queries", "places"), "training": (),
}  # fmt: skip


def train(content: Mapping[str, Any], cases: Sequence[Case], out: Path, beside: Path, minutes: float) -> bool:
    """Pre-train what the file in the folder `beside` says, or go on; True when finished. Reports are not read."""
    from MedVLMReaderLib.training import insight
    from MedVLMReaderLib.training.prepared import Prepared, prepare
    from MedVLMReaderLib.training.slice_captions import QUESTIONS, Ask, asked_of

    plan, table = plan_of(content, beside), content.get("captions", {})

    def ask() -> Ask:
        from MedVLMReaderLib.reader import load

        return asked_of(load(table.get("model", "built-in")), table.get("questions", QUESTIONS))

    skip = bool(content.get("data", {}).get("skip_faulty", False))
    kept, left_out = prepare(cases, Prepared(out / "blocks", plan.recipe), skip=skip)
    for fault in left_out:
        print(f"Left out: {fault}")
    names = list(dict.fromkeys(case.volume for case in kept))
    if len(names) < plan.training.batch:
        raise ReaderError(f"{len(names)} scans cannot fill a batch of {plan.training.batch}. Lower 'batch' in "
                          "[training].")  # fmt: skip
    return insight.train(insight.told(names, plan, ask, out), plan, out, minutes)


def plan_of(content: Mapping[str, Any], beside: Path = Path()) -> Any:
    """The plan of a file. ReaderError for a key that does not exist, or sizes that do not fit."""
    from MedVLMReaderLib.block import BlockRecipe
    from MedVLMReaderLib.models.med3d_insight import Sizes
    from MedVLMReaderLib.models.pyramid import EncoderSizes
    from MedVLMReaderLib.training.engine import Settings
    from MedVLMReaderLib.training.insight import OBJECTIVES, Plan
    from MedVLMReaderLib.training.teacher import TeacherSizes

    captions = content.get("captions", {})
    training, teacher = dict(content.get("training", {})), dict(content.get("teacher", {}))
    objective = training.pop("objective", OBJECTIVES[0])
    if objective not in OBJECTIVES:
        raise ReaderError(f"[training] has the objective '{objective}'. Known: {', '.join(OBJECTIVES)}.")
    folder = teacher.pop("folder", None)
    if folder is not None and teacher:
        raise ReaderError("[teacher] names the folder of a CLIP, which learns no more: leave its other keys out.")
    small = {one.name: teacher.pop(one.name) for one in fields(TeacherSizes) if one.name in teacher}
    try:
        recipe = BlockRecipe.from_json(content.get("recipe", {}))
        encoder = EncoderSizes.from_json({**content.get("encoder", {}), "shape": list(recipe.shape)})
        sizes = Sizes(encoder, **content.get("transformer", {}))
        teacher_sizes = TeacherSizes(**small)
    except (TypeError, ValueError) as error:
        raise ReaderError(
            f"[recipe], [encoder] or [transformer] has a field that is not allowed, or lacks one: {error}."
        ) from None
    return Plan(
        recipe, sizes, Settings.from_table(training), objective,
        **{name: captions[name] for name in ("each", "more", "thick_mm") if name in captions},
        teacher=None if folder is None else beside / folder, teacher_sizes=teacher_sizes,
        teacher_training=Settings.from_table(teacher, "[teacher]"),
    )  # fmt: skip
