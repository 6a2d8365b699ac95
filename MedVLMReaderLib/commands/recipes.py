"""`train FILE.toml`: a training of the papers, as a file says."""

from __future__ import annotations

import tomllib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import TYPES, Case, checked, made_cases, read_cases
from MedVLMReaderLib.commands import ms_vlm
from MedVLMReaderLib.commands.terminal import check_writable, loaded_packages, step

TABLES: dict[str, tuple[str, ...]] = {
    "data": ("cases", "root", "split", "seeds", "skip_faulty", "mirrored_every"),
    "model": ("start", "tokenizer", "vision", "shape", "width", "text_width", "text_hidden", "text_layers",
              "text_heads", "positions"),
    "training": (),
}  # fmt: skip
"""What a file may say, table by table; [training] has the engine's settings."""
SYSTEMS = {"siglip": TABLES, "ms_vlm": ms_vlm.TABLES}


def train_by_file(arguments: Namespace) -> bool:
    """Train, or go on; True when finished. ReaderError for a key that does not exist, before anything is loaded."""
    content = read_recipe(Path(arguments.stage))
    if arguments.out is None:
        raise ReaderError("Name the folder of the run: --out DIR.")
    check_writable(arguments.out)
    cases = _cases(content.get("data", {}), Path(arguments.stage).parent)
    loaded_packages()
    if content["system"] == "ms_vlm":
        held_out = _made(content.get("data", {}), "held_out")
        step(f"Training; figures come in log.jsonl of each stage below {arguments.out} ...")
        beside = Path(arguments.stage).parent
        return ms_vlm.train(content, cases, held_out, arguments.out, beside, arguments.minutes)
    from MedVLMReaderLib.training import siglip
    from MedVLMReaderLib.training.engine import Settings

    settings = Settings.from_table(content.get("training", {}))
    pair = _pair(content.get("model", {}), cases, arguments.out, settings.seed)
    step(f"Training; figures come in log.jsonl and for TensorBoard below {arguments.out} ...")
    skip = bool(content.get("data", {}).get("skip_faulty", False))
    return siglip.train(cases, pair, settings, arguments.out, skip_faulty=skip, minutes=arguments.minutes)


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a file, once it has no unknown key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReaderError(f"'{path}' cannot be read ({error.strerror}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ReaderError(f"'{path}' is no TOML ({error}).") from None
    if content.get("system") not in SYSTEMS:
        raise ReaderError(f"'{path}' has the system {content.get('system')!r}. Known: {', '.join(SYSTEMS)}.")
    tables = SYSTEMS[content["system"]]
    for name, table in content.items():
        if name != "system" and name not in tables:
            raise ReaderError(f"'{path}' has the key '{name}', which does not exist. Known: system, "
                              f"{', '.join(tables)}.")  # fmt: skip
        known = tables.get(name)
        if known and (wrong := sorted(set(table) - set(known))):
            raise ReaderError(f"[{name}] of '{path}' has the key '{wrong[0]}', which does not exist. Known: "
                              f"{', '.join(known)}.")  # fmt: skip
    return content


def _cases(table: Mapping[str, Any], beside: Path) -> list[Case]:
    if ("cases" in table) == ("seeds" in table):
        raise ReaderError("[data] should name a data set (cases) or made studies (seeds), one of the two.")
    if "seeds" in table:
        return _made(table, "seeds")
    root = beside / table["root"] if "root" in table else None
    found = read_cases(beside / table["cases"], root, table.get("split", ""))
    if "questions" in table:
        found += read_cases(beside / table["questions"], root)
    return checked(found, skip=bool(table.get("skip_faulty", False)), known_types=(*TYPES, ""))


def _made(table: Mapping[str, Any], name: str) -> list[Case]:
    """The made studies that a key names by the first and the last seed; none where it is not there."""
    if name not in table:
        return []
    first, last = table[name]
    seeds, every = range(first, last + 1), table.get("mirrored_every", 0)
    made = made_cases(seeds, mirrored_every=every)
    return made + made_cases(seeds, questions=True, mirrored_every=every) if table.get("questions") else made


def _pair(table: Mapping[str, Any], cases: list[Case], out: Path, seed: int) -> Any:
    """The pair to begin with: a published folder, or new ones of the sizes that the file gives."""
    from MedVLMReaderLib.models import siglip as network
    from MedVLMReaderLib.models.dcformer import SIZES
    from MedVLMReaderLib.training import siglip

    if "start" in table:
        return siglip.started(Path(table["start"]))
    vision = table.get("vision", "small")
    if vision not in SIZES:
        raise ReaderError(f"[model] has the vision encoder '{vision}'. Known: {', '.join(SIZES)}.")
    if "tokenizer" in table:
        from MedVLMReaderLib.weights import read_tokenizer

        tokenizer = read_tokenizer(Path(table["tokenizer"]), "[SEP]")
        tokenizer.pad_token = "[PAD]"
    else:
        tokenizer = siglip.made_tokenizer([case.report for case in cases], out / "tokenizer")
    sizes = network.Sizes(
        shape=tuple(table.get("shape", (128, 256, 256))), vision=SIZES[vision], vocabulary=len(tokenizer),
        **{name: table[name] for name in TABLES["model"][4:] if name in table},
    )  # fmt: skip
    return siglip.new(sizes, tokenizer, seed)
