"""A model's files from the Hugging Face hub: taken up again where they broke off, and never taken for whole before
every byte has been checked."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.manifest import Mark

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all."""
SETTINGS = (".json", ".txt", ".model", ".jinja")
"""Endings of the small files that are fetched beside the weights; never a .py."""
LARGEST_SETTING = 64 << 20
INDICES = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SINGLES = "model.safetensors", "pytorch_model.bin"
TRIES = 3
"""How often a broken connection is taken up again before the user is told."""


@dataclass(frozen=True)
class Listing:
    """What the hub has of a model."""

    repository: str
    commit: str
    files: Mapping[str, Mark]


def listing(repository: str, revision: str | None) -> Listing:
    """The files of a model at a revision (a branch, a tag, a commit; the newest). ReaderError where there is none."""
    from huggingface_hub import HfApi

    with told(repository, revision):
        found = HfApi().model_info(repository, revision=revision or "main", files_metadata=True)
    files = {}
    for one in found.siblings or ():
        lfs = getattr(one, "lfs", None)
        sha256 = _hash(lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else ""
        files[str(one.rfilename)] = Mark(int(one.size or 0), sha256, "" if sha256 else _hash(one.blob_id))
    if not (commit := _hash(found.sha)):
        raise ReaderError(f"The hub names no commit for '{repository}'. Try again later.")
    return Listing(repository, commit, files)


def _hash(found: Any) -> str:
    """A hash that names a file of the cache; empty for anything else."""
    return str(found) if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", str(found)) else ""


def settings_of(found: Listing) -> list[str]:
    """The small files: configuration, tokenizer, index. ReaderError where there is no configuration."""
    if "config.json" not in found.files:
        raise ReaderError(f"'{found.repository}' on the hub has no config.json: it is no model that can be read here.")
    return [
        name for name, mark in found.files.items()
        if PurePosixPath(name).name == name and name.endswith(SETTINGS) and mark.size <= LARGEST_SETTING
    ]  # fmt: skip


def weights_of(found: Listing, listed: Mapping[str, Sequence[str]]) -> list[str]:
    """The weight files, safetensors if there are any; `listed` has the files that each fetched index names."""
    for index, single in zip(INDICES, SINGLES, strict=True):
        wanted = sorted(set(listed.get(index, ()))) if index in found.files else [single]
        if lost := [name for name in wanted if name not in found.files or PurePosixPath(name).name != name]:
            if index in found.files:
                raise ReaderError(f"'{found.repository}' on the hub lacks {lost[0]}, which its {index} lists.")
            continue
        return wanted
    raise ReaderError(f"'{found.repository}' on the hub has no {SINGLES[0]}: its weights cannot be read here.")


def room_for(size: int, folder: Path) -> None:
    """ReaderError where a disk has not so many bytes left."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if (free := shutil.disk_usage(place).free) < size:
        raise ReaderError(
            f"The model needs {size / 1e9:.1f} GB and the disk of '{place}' has {free / 1e9:.1f} GB left. "
            "Make room, or set HF_HUB_CACHE to a folder on another disk."
        )


def fetch(found: Listing, name: str, cache: Path, progress: Callable[[int], None] = lambda _: None) -> Path:
    """The file in the hub's cache, its content checked; what had arrived before is kept. ReaderError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    mark, repository = found.files[name], found.repository
    folder = f"models--{repository.replace('/', '--')}"
    if key := mark.sha256 or mark.git:
        blob, lock = cache / folder / "blobs" / key, cache / ".locks" / folder / f"{key}.medvlmreader.lock"
        try:
            for place in (blob, lock):
                place.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if blob.exists() and mark.wrong(blob):
                    blob.unlink()
                if not blob.exists():
                    _arrive(found, name, blob, progress)
        except OSError as error:
            raise ReaderError(f"'{cache}' cannot be written ({error.strerror or error}).") from None
    with told(repository, found.commit):
        path = Path(hf_hub_download(repository, name, revision=found.commit, cache_dir=cache))
    if path.stat().st_size != mark.size or (not key and mark.wrong(path)):
        path.unlink(missing_ok=True)
        raise ReaderError(f"{name} of '{repository}' is damaged. The same command fetches it again.")
    return path


def _arrive(found: Listing, name: str, blob: Path, progress: Callable[[int], None]) -> None:
    """Fetch a file beside its place, check it, and only then give it its name."""
    part, mark = blob.with_name(f"{blob.name}.medvlmreader.part"), found.files[name]
    if part.exists() and part.stat().st_size > mark.size:
        part.unlink()
    for left in reversed(range(TRIES)):
        try:
            with told(found.repository, found.commit, name):
                _transfer(found, name, part, mark.size, progress)
            break
        except BrokenOff:
            if not left:
                raise
    if wrong := mark.wrong(part):
        part.unlink()
        raise ReaderError(
            f"{name} of '{found.repository}' arrived damaged: {wrong}. It was removed; the same command fetches it "
            "again."
        )
    part.replace(blob)


class BrokenOff(ReaderError):
    """A transfer that ended too early; what has arrived is kept."""


def _transfer(found: Listing, name: str, part: Path, size: int, progress: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = part.stat().st_size if part.exists() else 0
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    progress(start)
    if start < size or not size:
        url = hf_hub_url(found.repository, name, revision=found.commit)
        with get_session().stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as answer:
            if answer.status_code >= 400:
                answer.read()
            hf_raise_for_status(answer)
            with part.open("ab" if answer.status_code == 206 else "wb") as file:
                if answer.status_code != 206:
                    progress(-start)
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    progress(len(chunk))
    if part.stat().st_size < size:
        raise BrokenOff(_broken(found.repository, name))


def _broken(repository: str, name: str) -> str:
    return (
        f"The transfer of {name or 'the list of files'} of '{repository}' broke off. What has arrived is kept: "
        "the same command goes on from there."
    )


@contextmanager
def told(repository: str, revision: str | None, name: str = "") -> Iterator[None]:
    """Turns what the hub and the network raise into what the user can do. A token never gets into a message."""
    from huggingface_hub import errors

    http = importlib.import_module(errors.HTTPError.__module__.split(".")[0])  # the client library that the hub's uses
    where = f"'{repository}' on the hub"
    try:
        yield
    except errors.GatedRepoError:
        raise ReaderError(gated(repository)) from None
    except errors.RevisionNotFoundError:
        raise ReaderError(
            f"{where} has no revision '{revision}'. Those it has: https://huggingface.co/{repository}/commits/main"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise BrokenOff(_broken(repository, name)) from None
    except errors.EntryNotFoundError:
        raise ReaderError(f"{where} has no {name or 'such file'} any more. Name another revision.") from None
    except errors.RepositoryNotFoundError:
        raise ReaderError(
            f"There is no model {where[:-11]}, or it is private. Look for a slip in the name; for a private one run "
            "'hf auth login' first."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ReaderError(absent(repository, revision)) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise ReaderError(f"The hub answered {code} when asked for '{repository}'. Try again later.") from None
    except (http.ConnectError, http.ConnectTimeout, http.ProxyError) as error:
        raise ReaderError(
            f"The hub cannot be reached ({type(error).__name__}). Check the connection and the proxy, or work with "
            "what is on this machine: --offline."
        ) from None
    except http.HTTPError:
        raise BrokenOff(_broken(repository, name)) from None


def gated(repository: str) -> str:
    """How to get at a model whose makers ask for an agreement first."""
    return (
        f"'{repository}' is gated: its makers ask you to accept their terms first.\n"
        f"1. Open https://huggingface.co/{repository}, log in and accept the terms.\n"
        "2. In Slicer put a token of that account into 'Token' ('Set-up and models', 'Models') and fetch the model "
        "there. Elsewhere run 'hf auth login' on this machine (or set HF_TOKEN) with it; then the same command goes on."
    )


def absent(repository: str, revision: str | None) -> str:
    """What to do where a model is not on this machine and the network may not be used."""
    pin = f" --revision {revision}" if revision else ""
    return (
        f"'{repository}'{f' at {revision}' if revision else ''} is not on this machine, or not whole, and the network "
        f"is off. With a connection run once: medvlmreader models --get {repository}{pin}"
    )


def offline() -> bool:
    """Whether the network may not be used, by the environment."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


OFFLINE = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"
