"""Finds a model: a name of the table, one on the Hugging Face hub, or a folder; fetches, verifies, lists and removes.

Nothing here needs torch, and nothing of a model runs: only tensors and settings are fetched, never code.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.download import (
    INDICES,
    Listing,
    absent,
    fetch,
    listing,
    offline,
    room_for,
    settings_of,
    weights_of,
)
from MedVLMReaderLib.manifest import FILE, Manifest
from MedVLMReaderLib.models import CARDS, SYSTEMS, Card
from MedVLMReaderLib.resources import resource

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LARGEST, DEEPEST = 1 << 30, 1000
Progress = Callable[[str, int, int], None]
"""Told the file, bytes done of all files, and bytes of all."""


@dataclass(frozen=True)
class Found:
    """A model's files on this machine."""

    folder: Path
    name: str
    """Shown to the user."""
    revision: str
    """The hub's commit; empty where the files themselves must tell."""
    card: Card | None = None
    precision: str = ""
    """Of the decoder, where the folder is a copy that was saved quantised."""
    notes: tuple[str, ...] = ()


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    offline_only: bool = False,
    progress: Progress = lambda *_: None,
) -> Found:
    """The model of that name, fetched if it is not here yet. ReaderError says what to do where it cannot be had."""
    card = CARDS.get(str(name))
    source = card.source if card else str(name)
    if card and card.shipped:
        return Found(resource(source), str(name), "", card)
    if not card and Path(name).is_dir():
        return in_folder(Path(name))
    if not HUB_NAME.fullmatch(source):
        raise ReaderError(
            f"No model '{name}'. Known: {', '.join(sorted(CARDS))}; or give a model's folder, or OWNER/NAME on the hub."
        )
    revision = revision or (card.revision if card else "") or None
    found = on_hub(source, revision, offline_only or offline(), progress)
    return replace(found, name=card.name, card=card) if card else found


def in_folder(folder: Path) -> Found:
    """A model in a folder; ReaderError where files that its list names are missing or of another size."""
    found = Manifest.load(folder / FILE)
    if found is None:
        return Found(folder, folder.resolve().name, "")
    if lost := found.missing(folder):
        raise ReaderError(f"'{folder}' is not whole: {lost[0]} is missing or of another size. Make the copy again.")
    return Found(folder, found.name, found.revision, None, found.precision, found.notes)


def on_hub(repository: str, revision: str | None, offline_only: bool, progress: Progress) -> Found:
    """A model of the hub. What is here and whole is used as it is; the hub is asked where nothing is, or for a branch
    or a tag, which may have moved on."""
    commit = cached_commit(repository, revision)
    may_move = revision is not None and not COMMIT.fullmatch(revision) and not offline_only
    if commit and not may_move and (here := whole(repository, commit)):
        return here
    if offline_only:
        if commit and (checked := verified_offline(repository, commit)):
            return checked
        raise ReaderError(absent(repository, revision))
    found = listing(repository, revision)
    return whole(repository, found.commit) or downloaded(found, revision, progress)


def get(name: str, revision: str | None = None, progress: Progress = lambda *_: None) -> Found:
    """A model of the hub, fetched where it is not here, every byte checked where it is."""
    repository = CARDS[name].source if name in CARDS else name
    if not HUB_NAME.fullmatch(repository) or (name in CARDS and CARDS[name].shipped):
        return find(name)
    if offline():
        raise ReaderError(absent(repository, revision))
    return downloaded(listing(repository, revision), revision, progress)


def downloaded(found: Listing, revision: str | None = None, progress: Progress = lambda *_: None) -> Found:
    """Fetch all that is needed and is not here yet, check every byte, and write the list that says so last."""
    cache, done, total = cache_folder(), 0, 0
    settings = settings_of(found)

    def counted(name: str) -> Callable[[int], None]:
        def add(count: int) -> None:
            nonlocal done
            done += count
            progress(name, done, total)

        return add

    total = sum(found.files[name].size for name in settings)
    paths = {name: fetch(found, name, cache, counted(name)) for name in sorted(settings)}
    notes = vetted(_read(paths["config.json"]), f"config.json of '{found.repository}'")
    listed = {index: list(_weight_map(paths[index]).values()) for index in INDICES if index in paths}
    weights = weights_of(found, listed)
    total += sum(found.files[name].size for name in weights)
    room_for(total - done, cache)
    for name in weights:
        fetch(found, name, cache, counted(name))
    _refer(found, revision or "main")
    return _marked(found, [*settings, *weights], notes)


def _refer(found: Listing, revision: str) -> None:
    """Keep what a branch or a tag stands for, as the hub's own library does."""
    if not COMMIT.fullmatch(revision):
        path = repository_folder(found.repository) / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found.commit)


def _marked(found: Listing, names: list[str], notes: tuple[str, ...]) -> Found:
    folder = snapshot(found.repository, found.commit)
    agreeing(folder)
    files = {name: found.files[name] for name in names}
    Manifest(found.repository, found.commit, files, notes=notes).save(mark_file(found.repository, found.commit))
    return Found(folder, found.repository, found.commit, notes=notes)


def agreeing(folder: Path) -> None:
    """ReaderError where the weight files and their index do not agree, or a file is cut short."""
    from MedVLMReaderLib.shards import Shards

    Shards.open(folder)


def whole(repository: str, commit: str) -> Found | None:
    """A snapshot that was verified once and has all its files still."""
    found = Manifest.load(mark_file(repository, commit))
    folder = snapshot(repository, commit)
    if found is None or found.missing(folder):
        return None
    return Found(folder, repository, commit, notes=found.notes)


def verified_offline(repository: str, commit: str) -> Found | None:
    """A snapshot that another program fetched, checked against the hashes that the cache names its files by."""
    from MedVLMReaderLib.manifest import Mark

    folder = snapshot(repository, commit)
    if not (folder / "config.json").is_file():
        return None
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        key = path.resolve().name
        mark = Mark(path.stat().st_size, key if len(key) == 64 else "", key if len(key) == 40 else "")
        if path.suffix in (".safetensors", ".bin", ".json") and mark.wrong(path):
            raise ReaderError(f"{path.name} of '{repository}' is damaged. {absent(repository, commit)}")
        files[path.name] = mark
    notes = vetted(_read(folder / "config.json"), f"config.json of '{repository}'")
    try:
        agreeing(folder)
    except ReaderError as error:
        raise ReaderError(f"{error}\n{absent(repository, commit)}") from None
    Manifest(repository, commit, files, notes=notes).save(mark_file(repository, commit))
    return Found(folder, repository, commit, notes=notes)


def vetted(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """What must be said of a configuration; ReaderError where it is of a kind that cannot be read here, or absurd.

    Looked at before gigabytes are fetched. Each model's own file then reads only the fields that it knows.
    """
    kind = config.get("model_type")
    if "system" not in config and kind not in SYSTEMS:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise ReaderError(
                f"{where} is of the kind '{kind}', which is known neither here nor to the installed transformers. "
                f"Known here: {', '.join(sorted(SYSTEMS))}. Code from a model's repository is never run."
            )
    for path, value in _numbers(config):
        most = DEEPEST if path.endswith(("layers", "depth")) else LARGEST
        if not (math.isfinite(value) and -LARGEST <= value <= most):
            raise ReaderError(f"{where} has {path} {value}: not a size that any model has. Choose another model.")
    if "auto_map" in config:
        return ("This model's repository brings code of its own (auto_map). It is ignored: the model is computed here "
                "by the reader's own code.",)  # fmt: skip
    return ()


def _numbers(config: Any, path: str = "") -> Iterator[tuple[str, float]]:
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for name, value in items:
        here = f"{path}.{name}" if path else str(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield here, value
        yield from _numbers(value, here)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReaderError(f"'{path}' cannot be read ({error}). Get the model again.") from None
    if not isinstance(content, dict):
        raise ReaderError(f"'{path}' should hold one JSON object. Get the model again.")
    return content


def _weight_map(path: Path) -> dict[str, str]:
    table = _read(path).get("weight_map")
    if not (isinstance(table, dict) and table and all(isinstance(file, str) for file in table.values())):
        raise ReaderError(f"'{path}' lists no weights. Choose another model.")
    return table


# Where the hub's cache keeps what


def cache_folder() -> Path:
    """The Hugging Face cache, as the hub's own library finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(named)).expanduser()


def repository_folder(repository: str) -> Path:
    """Everything that the cache has of a model."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str, commit: str) -> Path:
    """The model's files at a commit."""
    return repository_folder(repository) / "snapshots" / commit


def mark_file(repository: str, commit: str) -> Path:
    """The list that says that a snapshot is whole."""
    return repository_folder(repository) / "medvlmreader" / f"{commit}.json"


def cached_commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision stands for in the cache; without one, the commit that was fetched last."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    try:
        named = (repository_folder(repository) / "refs" / (revision or "main")).read_text().strip() or None
    except (OSError, ValueError):
        named = None
    if revision is None and not (named and mark_file(repository, named).exists()):
        marks = sorted(mark_file(repository, "x").parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return marks[-1].stem if marks else named
    return named


@dataclass(frozen=True)
class Installed:
    """A model of the hub on this machine."""

    name: str
    revision: str
    size: int
    """In bytes, with everything that belongs to it."""
    whole: bool


def installed() -> list[Installed]:
    """Models of the hub in the cache that the table knows or that were fetched here."""
    known = {card.source for card in CARDS.values()}
    out = []
    for folder in sorted(cache_folder().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        commit = cached_commit(repository, None) or ""
        if not (folder / "medvlmreader").is_dir() and repository not in known:
            continue
        is_whole = bool(commit) and whole(repository, commit) is not None
        out.append(Installed(repository, commit, _size(folder), is_whole))
    return out


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def remove(name: str) -> int:
    """Delete everything that the cache has of a model; the bytes that this frees. ReaderError where it has nothing."""
    repository = CARDS[name].source if name in CARDS else name
    folder = repository_folder(repository)
    if not HUB_NAME.fullmatch(repository) or (name in CARDS and CARDS[name].shipped):
        raise ReaderError(f"'{name}' is not a model of the hub: nothing was removed.")
    if not folder.is_dir():
        here = ", ".join(one.name for one in installed()) or "none"
        raise ReaderError(f"'{name}' is not in the cache '{cache_folder()}'. There: {here}.")
    size = _size(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ReaderError(f"'{folder}' could not be removed ({error.strerror}).") from error
    shutil.rmtree(cache_folder() / ".locks" / folder.name, ignore_errors=True)
    return size


def check_files(found: Found) -> None:
    """Read every byte of a model's files and compare; ReaderError names the first that is not what it was."""
    path = mark_file(found.name if not found.card else found.card.source, found.revision)
    manifest = Manifest.load(path) or Manifest.load(found.folder / FILE)
    if manifest and (wrong := manifest.damaged(found.folder)):
        name, why = next(iter(wrong.items()))
        raise ReaderError(f"{name} of {found.name} is damaged: {why}. Remove the model and get it again.")
