"""`train FILE.toml`: a training of the papers, as a file says."""

from __future__ import annotations

import tomllib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import TYPES, Case, checked, made_cases, read_cases
from MedVLMReaderLib.commands import insight, ms_vlm
from MedVLMReaderLib.commands.terminal import check_writable, loaded_packages, step

DATA = "cases", "root", "split", "seeds", "skip_faulty", "mirrored_every"
SIGLIP_MODEL = (
    "start", "tokenizer", "vision", "shape", "width", "text_width", "text_hidden", "text_layers", "text_heads",
    "positions", "t_prime", "bias", "scale", "gain",
)  # fmt: skip
AUGMENT = "rotate", "flip", "scale", "shift", "move"
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "siglip": {"data": DATA, "model": SIGLIP_MODEL, "augment": AUGMENT, "text": (), "image": (), "match": (),
               "training": ()},
    "med3dvlm": {
        "data": (*DATA, "kinds", "open_too"),
        "model": ("start", "pair", "decoder", "low", "high", "layers", "trains", "longest", "keep_features",
                  "together", "evened"),
        "lora": ("rank", "alpha", "dropout", "targets"), "augment": AUGMENT, "training": (),
    },
    "ms_vlm": {"data": (*DATA, "kinds", "held_out", "planes"), **ms_vlm.TABLES},
    "med3dinsight": {"data": DATA, **insight.TABLES},
}  # fmt: skip
"""What a file of each system may say, table by table; [training] has the engine's settings, as have the others without
keys here, and these are looked at when they are read."""
KINDS = {
    "siglip": ("report",),
    "med3dinsight": ("report",),
    **dict.fromkeys(("med3dvlm", "ms_vlm"), ("report", "closed", "open")),
}
"""Of cases that a system learns from: a report, a question with choices, one without."""


def train_by_file(arguments: Namespace) -> bool:
    """Train, or go on; True when finished. ReaderError for a key that does not exist, before anything is loaded."""
    path = Path(arguments.stage)
    content = read_recipe(path)
    if arguments.out is None:
        raise ReaderError("Name the folder of the run: --out DIR.")
    check_writable(arguments.out)
    cases = _cases(content.get("data", {}), path.parent, KINDS[content["system"]])
    loaded_packages()
    if content["system"] == "ms_vlm":
        _begin(arguments)
        return ms_vlm.train(content, cases, _held_out(content), arguments.out, path.parent, arguments.minutes)
    if content["system"] == "med3dinsight":
        _begin(arguments)
        return insight.train(content, cases, arguments.out, path.parent, arguments.minutes)
    from MedVLMReaderLib.training.engine import Settings

    without = content["system"] == "siglip" and "image" in content and "training" not in content
    settings = None if without else Settings.from_table(content.get("training", {}))
    return {"siglip": _siglip, "med3dvlm": _med3dvlm}[content["system"]](arguments, content, cases, settings)


def _held_out(content: Mapping[str, Any]) -> list[Case]:
    """The made studies of `held_out`, first and last seed: only measured on."""
    table = content.get("data", {})
    return _made({**table, "seeds": table["held_out"]}, ("report",)) if "held_out" in table else []


def _siglip(arguments: Namespace, content: Mapping[str, Any], cases: list[Case], settings: Any) -> bool:
    from MedVLMReaderLib.training import siglip
    from MedVLMReaderLib.training.augment import Augment

    augment = Augment.from_table(content.get("augment", {}))
    starts = _starts(content)
    pair = _pair(content.get("model", {}), cases, Path(arguments.stage).parent, arguments.out,
                 (settings or starts.image).seed)  # fmt: skip
    _begin(arguments)
    return siglip.train(cases, pair, settings, arguments.out, augment=augment, starts=starts,
                        skip_faulty=_skips(content), minutes=arguments.minutes)  # fmt: skip


def _starts(content: Mapping[str, Any]) -> Any:
    """The stages [text], [image] and [match] that come before a pair, where the file has them."""
    from MedVLMReaderLib.training.engine import Settings
    from MedVLMReaderLib.training.siglip import Starts

    text, image, match = (dict(content.get(name, {})) for name in ("text", "image", "match"))
    if type(aligned := match.pop("aligned", Starts.aligned)) is not bool:
        raise ReaderError(f"[match] has aligned = {aligned!r}; it should be true or false.")
    dropped, evened = text.pop("dropped", Starts.dropped), image.pop("evened", Starts.evened)
    if isinstance(dropped, bool) or not isinstance(dropped, (int, float)) or not 0 <= dropped < 1:
        raise ReaderError(
            f"[text] has dropped = {dropped!r}; it should be a share of the sentences, from 0 to below 1."
        )
    stages = [
        Settings.from_table(table, f"[{name}]") if name in content else None
        for name, table in (("text", text), ("image", image), ("match", match))
    ]
    if type(evened) is not int or evened < 0 or (stages[1] and 0 < evened < stages[1].batch):
        raise ReaderError(f"[image] has evened = {evened!r}; it should be a number of scans, at least a batch, or 0.")
    return Starts(stages[0], dropped, stages[1], evened, stages[2], aligned)


def _med3dvlm(arguments: Namespace, content: Mapping[str, Any], cases: list[Case], settings: Any) -> bool:
    from MedVLMReaderLib.training import med3dvlm
    from MedVLMReaderLib.training.augment import Augment

    table, beside = content.get("model", {}), Path(arguments.stage).parent
    lora = med3dvlm.Lora.from_table(content["lora"]) if "lora" in content else None
    stage = med3dvlm.Stage(
        tuple(table.get("trains", med3dvlm.LORA_STAGE if lora else med3dvlm.PROJECTOR_STAGE)), lora,
        Augment.from_table(content.get("augment", {})),
        **{name: table[name] for name in ("longest", "keep_features", "together", "evened") if name in table},
    )  # fmt: skip
    parts = {name: beside / table[name] for name in ("start", "pair", "decoder") if name in table}
    if set(parts) not in ({"start"}, {"pair", "decoder"}):
        raise ReaderError("[model] should name a model to go on from (start), or a trained pair and a decoder.")
    model = med3dvlm.started(parts["start"]) if "start" in parts else med3dvlm.assembled(
        parts["pair"], parts["decoder"], table.get("low", (192, 128)), table.get("high", (64, 128)),
        table.get("layers", 2), settings.seed,
    )  # fmt: skip
    _begin(arguments)
    return med3dvlm.train(cases, model, stage, settings, arguments.out, skip_faulty=_skips(content),
                          minutes=arguments.minutes)  # fmt: skip


def _begin(arguments: Namespace) -> None:
    step(f"Training; figures come in log.jsonl and for TensorBoard below {arguments.out} ...")


def _skips(content: Mapping[str, Any]) -> bool:
    return bool(content.get("data", {}).get("skip_faulty", False))


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a file, once it has no unknown key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ReaderError(f"'{path}' is no TOML ({error}).") from None
    system = content.get("system")
    if system not in TABLES:
        raise ReaderError(f"'{path}' has the system {system!r}. Known: {', '.join(TABLES)}.")
    tables = TABLES[system]
    for name, table in content.items():
        if name != "system" and name not in tables:
            raise ReaderError(f"'{path}' has the key '{name}', which does not exist. Known: system, "
                              f"{', '.join(tables)}.")  # fmt: skip
        if name != "system" and not isinstance(table, dict):
            raise ReaderError(f"'{path}' has {name} = {table!r}; it should be a table: [{name}].")
        known = tables.get(name)
        if known and (wrong := sorted(set(table) - set(known))):
            raise ReaderError(f"[{name}] of '{path}' has the key '{wrong[0]}', which does not exist. Known: "
                              f"{', '.join(known)}.")  # fmt: skip
    return content


def _cases(table: Mapping[str, Any], beside: Path, known: Sequence[str]) -> list[Case]:
    """The cases of [data] without faults, of the kinds that are wanted among those that the system learns from."""
    if ("cases" in table) == ("seeds" in table):
        raise ReaderError("[data] should name a data set (cases) or made studies (seeds), one of the two.")
    kinds = table.get("kinds", known)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ReaderError(f"[data] has the kind of case '{unknown[0]}'. Known: {', '.join(known)}.")
    found = _made(table, kinds) if "seeds" in table else _read(table, beside)
    if table.get("open_too"):
        found += [replace(case, choices=()) for case in found if case.closed]
    found = [case for case in found if _kind(case) in kinds]
    skip = bool(table.get("skip_faulty", False))
    return checked(found, skip=skip, known_types=(*TYPES, "size", "open", "") if "seeds" in table else (*TYPES, ""))


def _made(table: Mapping[str, Any], kinds: Sequence[str]) -> list[Case]:
    first, last = table["seeds"]
    seeds, mirrored = range(first, last + 1), table.get("mirrored_every", 0)
    found = made_cases(seeds, mirrored_every=mirrored) if "report" in kinds else []
    asks = "closed" in kinds or "open" in kinds
    return [*found, *(made_cases(seeds, questions=True, mirrored_every=mirrored) if asks else ())]


def _read(table: Mapping[str, Any], beside: Path) -> list[Case]:
    root = beside / table["root"] if "root" in table else None
    names = table["cases"] if isinstance(table["cases"], list) else [table["cases"]]
    return [case for name in names for case in read_cases(beside / name, root, _split(table, name))]


def _split(table: Mapping[str, Any], name: str) -> str:
    """Only M3D-Cap's JSON has splits."""
    return str(table.get("split", "")) if name.lower().endswith(".json") else ""


def _kind(case: Case) -> str:
    return "report" if not case.question else "closed" if case.closed else "open"


def _pair(table: Mapping[str, Any], cases: list[Case], beside: Path, out: Path, seed: int) -> Any:
    """The pair to begin with: a published folder, or new ones of the sizes that the file gives."""
    from MedVLMReaderLib.models import siglip as network
    from MedVLMReaderLib.models.dcformer import SIZES
    from MedVLMReaderLib.training import siglip

    if "start" in table:
        return siglip.started(beside / table["start"])
    vision = table.get("vision", "small")
    if vision not in SIZES:
        raise ReaderError(f"[model] has the vision encoder '{vision}'. Known: {', '.join(SIZES)}.")
    if "tokenizer" in table:
        from MedVLMReaderLib.weights import read_tokenizer

        tokenizer = read_tokenizer(beside / table["tokenizer"], "[SEP]")
        tokenizer.pad_token = "[PAD]"
    else:
        tokenizer = siglip.made_tokenizer([case.report for case in cases], out / "tokenizer")
    sizes = network.Sizes(
        shape=tuple(table.get("shape", (128, 256, 256))), vision=SIZES[vision], vocabulary=len(tokenizer),
        **{name: table[name] for name in SIGLIP_MODEL[4:10] if name in table},
    )  # fmt: skip
    first = {name: float(table[name]) for name in SIGLIP_MODEL[10:] if name in table}
    return siglip.new(sizes, tokenizer, seed, **first)
