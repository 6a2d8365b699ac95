"""Tiny wheels of packages that are needed, a server for them on loopback, and Pythons to install them into."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from MedVLMReaderLib.install import needs
from MedVLMReaderLib.worker.transport import SubprocessTransport

VERSIONS = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "huggingface-hub": "2.4.0",
    "pydicom": "3.0.2",
    "numpy": "2.4.6",
}
MODULES = {"huggingface-hub": "huggingface_hub", "simpleitk": "SimpleITK", "python-gdcm": "gdcm", "pillow": "PIL"}
BELOW = {"torch": ("sympy>=1.13", "networkx"), "transformers": ("huggingface_hub>=2.0", "numpy")}


def wheel(
    folder: Path, name: str, version: str, requires: Sequence[str] = (), files: dict[str, bytes] | None = None
) -> Path:
    """A wheel of a package with one module; `files` beside it."""
    module = MODULES.get(name, name.replace("-", "_"))
    stem = f"{name.replace('-', '_')}-{version}"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    content = {
        f"{module}/__init__.py": f'__version__ = "{version}"\n'.encode(),
        f"{module}/part.py": b"PART = 1\n",
        **(files or {}),
        f"{stem}.dist-info/METADATA": ("\n".join(lines) + "\n").encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(one)},{len(one)}" for path, one in content.items()]
    content[f"{stem}.dist-info/RECORD"] = "\n".join([*rows, f"{stem}.dist-info/RECORD,,"]).encode()
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, one in content.items():
            archive.writestr(inside, one)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def fill(folder: Path, leave_out: Sequence[str] = ()) -> Path:
    """Wheels of all that is needed, directly or below."""
    folder.mkdir(parents=True, exist_ok=True)
    tested = dict(line.split(";")[0].split("==") for line in needs.lines("tested.txt"))
    pins = {needs.name_of(name): version.strip() for name, version in tested.items()}
    names = {needs.name_of(one) for one in needs.requirements()} | {"sympy", "networkx"}
    for name in sorted(names - set(leave_out)):
        wheel(folder, name, VERSIONS.get(name) or pins.get(name, "1.0"), BELOW.get(name, ()))
    return folder


def unpack(python: Path, wheels: Path, leave_out: Sequence[str] = ()) -> Path:
    """The wheels of a folder in the site-packages of a Python, as pip would leave them; that folder."""
    site = site_of(python)
    for path in wheels.glob("*.whl"):
        if needs.name_of(path.name.split("-")[0]) not in leave_out:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(site)
    for folder in site.glob("*.dist-info"):
        if not (folder / "INSTALLER").exists():
            (folder / "INSTALLER").write_text("pip\n")
            with (folder / "RECORD").open("a") as file:
                file.write(f"\n{folder.name}/INSTALLER,,")
    return site


def copied(environment: Path, to: Path) -> Path:
    """The Python of a copy of an environment."""
    shutil.copytree(environment, to, symlinks=True)
    return to / "bin" / "python"


def site_of(python: Path) -> Path:
    """Where the packages of an environment's Python lie."""
    (found,) = (python.parent.parent / "lib").glob("python3.*/site-packages")
    return found


def driven(one: Any, transport: SubprocessTransport, until: Callable[[], bool], seconds: float = 240) -> None:
    """Advance as a timer would, until something holds."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it took too long"
        transport.poll(0.02)
        one.advance()


@contextmanager
def index(folder: Path, *, slow_s: float = 0.0, refuse: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A package index on loopback that has the wheels of a folder, or a proxy behind which there is one: its address
    and what it was asked. `refuse`: the status of every answer; `slow_s`: before each wheel."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_content: bool) -> None:
            status, kind, content = self.found()
            self.send_response(refuse or status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content and not refuse:
                time.sleep(slow_s if kind == "application/zip" else 0)
                self.wfile.write(content)

        def found(self) -> tuple[int, str, bytes]:
            parts = [one for one in self.path.split("/") if one]
            asked.append(self.path)
            if "files" in parts and (folder / parts[-1]).is_file():
                return 200, "application/zip", (folder / parts[-1]).read_bytes()
            ours = [p.name for p in sorted(folder.glob("*.whl")) if needs.name_of(p.name.split("-")[0]) == parts[-1]]
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in ours)
            return (200 if ours else 404), "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ends(number: int, seconds: float = 10) -> bool:
    """Whether a program of that number ends soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
