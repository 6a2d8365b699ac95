"""What runs in the Python that is set up, by its path and without this library: looks at what is there, and cleans up.

Speaks one line of JSON behind MARK. Must start in any Python from 3.8 on, so that it can say that one is too old.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

MARK = "@medvlm "
CODE = (".py", ".so", ".pyd", ".dll", ".dylib")
LATELY_S, PATIENCE = 20, 3
"""Seconds that pip is given; sizes that a server may leave out before it is asked no more."""


def say(content: dict[str, Any]) -> None:
    """One line for the program that asked."""
    print(MARK + json.dumps(content), flush=True)


def words() -> Any:
    """The package `packaging`, or pip's own copy; None where neither is there."""
    for name in ("packaging", "pip._vendor.packaging"):
        try:
            return __import__(f"{name}.requirements", fromlist=["Requirement"]).Requirement
        except ImportError:
            continue
    return None


# ---- What is there ---------------------------------------------------------------------------------------------------


def survey(asked: dict[str, Any]) -> dict[str, Any]:
    """Python, pip, room and the state of every package that is needed, directly or by another."""
    site = Path(asked.get("site") or sysconfig.get_paths()["purelib"])
    place = existing(site)
    return {
        "python": ".".join(str(part) for part in sys.version_info[:3]), "executable": sys.executable,
        "site": str(site), "writable": writable(place), "pip": pip_version(), "venv": can("venv") and can("ensurepip"),
        "free": shutil.disk_usage(str(place)).free, "free_temporary": shutil.disk_usage(tempfile.gettempdir()).free,
        "same_disk": os.stat(str(place)).st_dev == os.stat(tempfile.gettempdir()).st_dev,
        "nvidia": bool(shutil.which("nvidia-smi")), "system": sys.platform, "own_index": own_index(),
        "packages": [] if asked.get("bare") else packages(asked["requirements"]),
        "leftovers": [] if asked.get("bare") else leftovers(site),
    }  # fmt: skip


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that there is."""
    return next(one for one in (path, *path.parents) if one.exists())


def writable(folder: Path) -> bool:
    """Whether files can be made there: asked by making one, for rights alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=str(folder)):
            return True
    except OSError:
        return False


def can(module: str) -> bool:
    """Whether there is a module of that name."""
    from importlib.util import find_spec

    return find_spec(module) is not None


def pip_version() -> str:
    """Of this Python's pip; empty without one."""
    try:
        return metadata.version("pip")
    except metadata.PackageNotFoundError:
        return "?" if can("pip") else ""


def own_index() -> bool:
    """Whether pip was told of another place than the usual one to fetch from."""
    if os.environ.get("PIP_INDEX_URL") or os.environ.get("PIP_NO_INDEX") or os.environ.get("PIP_FIND_LINKS"):
        return True
    try:
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            timeout=LATELY_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return any(name in told for name in ("index-url", "no-index", "find-links"))


def packages(requirements: list[str]) -> list[dict[str, str]]:
    """Each needed package with its state: fits, missing, wrong (another version), broken (not whole)."""
    requirement = words()
    if requirement is None:  # without packaging and pip nothing can be compared, nor installed
        return [{"name": re.split(r"[^\w.-]", one)[0], "wanted": one, "version": "", "state": "missing", "by": ""}
                for one in requirements]  # fmt: skip
    found: dict[str, dict[str, str]] = {}
    waiting = [(requirement(one), "") for one in requirements]
    seen = set()
    while waiting:
        wanted, by = waiting.pop(0)
        name = canonical(wanted.name)
        if (name, str(wanted.specifier), tuple(sorted(wanted.extras))) in seen or not applies(wanted, ""):
            continue
        seen.add((name, str(wanted.specifier), tuple(sorted(wanted.extras))))
        there = distribution(name)
        state = state_of(there, wanted)
        one = {"name": name, "wanted": str(wanted), "version": version(there), "state": state, "by": by}
        if name not in found or found[name]["state"] == "fits":
            found[name] = one
        if state == "fits" and there is not None:
            below = (requirement(line) for line in there.requires or ())
            waiting += [(two, name) for two in below if any(applies(two, extra) for extra in ("", *wanted.extras))]
    return list(found.values())


def canonical(name: str) -> str:
    """A package's name as all its spellings are written."""
    return re.sub(r"[-_.]+", "-", name).lower()


def applies(wanted: Any, extra: str) -> bool:
    """Whether a requirement is meant for this Python."""
    return wanted.marker is None or bool(wanted.marker.evaluate({"extra": extra}))


def distribution(name: str) -> metadata.Distribution | None:
    """An installed package."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def version(there: metadata.Distribution | None) -> str:
    """Of an installed package; empty where its description is lost."""
    try:
        return str(there.version or "") if there is not None else ""
    except (KeyError, TypeError):
        return ""


def state_of(there: metadata.Distribution | None, wanted: Any) -> str:
    """fits, missing, wrong or broken."""
    if there is None:
        return "missing"
    number = version(there)
    if not number or not whole(there):
        return "broken"
    return "fits" if wanted.specifier.contains(number, prereleases=True) else "wrong"


def whole(there: metadata.Distribution) -> bool:
    """Whether what the package lists is there. pip writes the list last, so that half an install has none.

    Only code counts, and no tests: who repackages a Python leaves such out.
    """
    files = there.files
    if files is None:
        by = (there.read_text("INSTALLER") or "pip").strip()
        folder = getattr(there, "_path", None)
        return by != "pip" or folder is None or Path(str(folder)).suffix != ".dist-info"
    for one in files:
        if one.suffix not in CODE or one.size is None or {"test", "tests", "testing"} & set(one.parts):
            continue
        try:
            if os.stat(str(one.locate())).st_size != one.size:
                return False
        except OSError:
            return False
    return True


def leftovers(site: Path) -> list[str]:
    """Names that pip gives what it is about to remove: it was ended before it could."""
    return sorted(path.name for path in site.glob("~*")) if site.is_dir() else []


# ---- Cleaning up -----------------------------------------------------------------------------------------------------


def clean(asked: dict[str, Any]) -> dict[str, Any]:
    """Take away broken packages, so that pip installs them anew; what was removed."""
    site = Path(sysconfig.get_paths()["purelib"])
    gone = leftovers(site)
    for name in gone:
        remove(site / name)
    listed = []
    for name in asked["broken"]:
        there = distribution(name)
        if there is None:
            continue
        if there.files is None:
            remove(Path(str(there._path)))  # type: ignore[attr-defined]
            gone.append(name)
        else:
            listed.append(name)
    if listed:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-y", *listed], check=True)
    return {"removed": gone + listed}


def remove(path: Path) -> None:
    """A file or a folder."""
    if path.is_dir():
        shutil.rmtree(str(path))
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


# ---- What pip would fetch --------------------------------------------------------------------------------------------


def resolve(asked: dict[str, Any]) -> dict[str, Any]:
    """What `pip install` with these arguments would fetch, with sizes in bytes; 0 where the server does not say."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--report", str(report), *asked["arguments"]],
            stdout=sys.stderr, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.returncode)
        content = json.loads(report.read_text(encoding="utf-8"))
    fetched: list[dict[str, Any]] = []
    silent = 0
    for one in content["install"]:
        size = size_of(one["download_info"]["url"]) if silent < PATIENCE else 0
        silent += not size
        fetched.append({"name": canonical(one["metadata"]["name"]), "bytes": size})
    return {"fetch": fetched}


def size_of(url: str) -> int:
    """Bytes of a file by its address; 0 where that cannot be learned."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            return os.stat(url2pathname(parts.path)).st_size
        return told_size(url)
    except (OSError, ValueError, ImportError):
        return 0


def told_size(url: str) -> int:
    """Bytes, as the server says; asked as pip asks, with its proxy and certificates."""
    from pip._vendor import requests  # type: ignore[import-untyped,unused-ignore]

    proxy = os.environ.get("PIP_PROXY")
    head: Any = requests.head  # type: ignore[attr-defined,unused-ignore]
    answer = head(url, timeout=10, allow_redirects=True, proxies={"http": proxy, "https": proxy} if proxy else None)
    return int(answer.headers.get("Content-Length", 0)) if answer.ok else 0


# ---- Whether it works ------------------------------------------------------------------------------------------------


def attempt(asked: dict[str, Any]) -> dict[str, Any]:
    """Import what was installed: what is there need not load, say where the system lacks a library."""
    import importlib

    loaded, failed = {}, {}
    for name in asked["modules"]:
        try:
            module = importlib.import_module(name)
            loaded[name] = str(getattr(module, "__version__", ""))
        except Exception as error:  # a broken package may raise anything
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    return {"loaded": loaded, "failed": failed}


if __name__ == "__main__":
    say(
        {"survey": survey, "clean": clean, "resolve": resolve, "attempt": attempt}[sys.argv[1]](json.loads(sys.argv[2]))
    )
