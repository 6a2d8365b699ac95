"""A hub on loopback, as huggingface_hub's client expects one: a list of files, files with ranges; it can break."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee00" * 5


@dataclass
class SmallHub:
    """What it serves, how it breaks, and what it was asked."""

    folder: Path
    """Of the model."""
    repository: str = "clinic/tiny"
    commit: str = COMMIT
    gated: bool = False
    licence: str = ""
    """As the model's page names it."""
    token: str = ""
    """Without it a gated model's files are refused."""
    cut_after: int | None = None
    """Bytes of a large file after which the connection is closed, every time."""
    flip: str = ""
    """A file of which one byte is sent wrong."""
    large: int = 4096
    """Bytes from which on a file is kept apart, with a SHA-256."""
    endpoint: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of every request."""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content, without the range."""
        name = path.split("?")[0]
        if name.startswith("/api/models/"):
            return self._info(name)
        wanted = f"/{self.repository}/resolve/"
        file = self.folder / name.removeprefix(wanted).partition("/")[2]
        if not name.startswith(wanted) or not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b""
        content = file.read_bytes()
        size, etag = str(len(content)), self._key(file)[1]
        if file.name == self.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit, "X-Linked-Size": size}, content

    def _info(self, name: str) -> tuple[int, dict[str, str], bytes]:
        found, _, revision = name.removeprefix("/api/models/").partition("/revision/")
        if found == f"{self.repository}/tree/{self.commit}":
            return 200, {"Content-Type": "application/json"}, json.dumps(self._tree()).encode()
        if found != self.repository:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("", "main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = []
        for file in sorted(self.folder.iterdir()):
            large, key = self._key(file)
            size = file.stat().st_size
            one = {"rfilename": file.name, "size": size, "blobId": "0" * 40 if large else key}
            siblings.append(one | ({"lfs": {"sha256": key, "size": size, "pointerSize": 130}} if large else {}))
        content = {"id": self.repository, "sha": self.commit, "siblings": siblings, "gated": self.gated, "tags": []}
        content |= {"cardData": {"license": self.licence}} if self.licence else {}
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _tree(self) -> list[dict[str, object]]:
        found = []
        for file in sorted(self.folder.iterdir()):
            large, key = self._key(file)
            one = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40 if large else key}
            found.append(one | ({"lfs": {"oid": key, "size": one["size"], "pointerSize": 130}} if large else {}))
        return found

    def _key(self, file: Path) -> tuple[bool, str]:
        """Whether it is kept apart, and the hash it is known by."""
        content = file.read_bytes()
        if len(content) >= self.large:
            return True, hashlib.sha256(content).hexdigest()
        return False, hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    @contextmanager
    def running(self) -> Iterator[SmallHub]:
        """Serving on a port of its own."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def ranges(self, ending: str) -> list[str]:
        """The ranges that were asked for of files whose name ends so."""
        return [asked for method, path, asked in self.asked if method == "GET" and path.endswith(ending)]


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        hub, asked = self.hub, self.headers.get("Range", "")
        hub.asked.append((self.command, self.path, asked))
        status, headers, content = hub.answer(urlsplit(self.path)._replace(scheme="", netloc="").geturl())
        if hub.gated and "/resolve/" in self.path and self.headers.get("Authorization") != f"Bearer {hub.token}":
            status, headers, content = 401, {"X-Error-Code": "GatedRepo"}, b""
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0) if asked else 0
        if asked and status == 200:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_content:
            self._send(content[start:], large=len(content) >= hub.large and "/resolve/" in self.path)

    def _send(self, content: bytes, *, large: bool) -> None:
        if large and self.hub.cut_after is not None:
            content = content[: self.hub.cut_after]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
