"""What pip prints, understood: how far it is, and why it gave up, in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

FETCHING = re.compile(r"\s*(?:Downloading|Using cached|Processing|Obtaining) (?:\S*/)?([A-Za-z0-9][\w.]*?)-\d\S*\.whl")
INSTALLING = re.compile(r"\s*Installing collected packages: (.+)")
PASSWORD, TOKEN = re.compile(r"//[^/\s@]+@"), re.compile(r"\bhf_\w{4,}")
NO_MATCH = re.compile(r"No matching distribution found for ([^\s;(]+)")


class PipWords:
    """How far pip is: told its lines, and what it is to fetch."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """`sizes`: bytes of each package that is to come, by name."""
        self.sizes, self.seen = dict(sizes), list[str]()
        self.installing = False

    def take(self, line: str) -> None:
        """A line that pip has printed."""
        if found := FETCHING.match(line):
            name = re.sub(r"[-_.]+", "-", found[1]).lower()
            if name not in self.seen:
                self.seen.append(name)
        elif INSTALLING.match(line):
            self.installing = True

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes that have come, of all; a package counts once the next one is begun."""
        total = sum(self.sizes.values())
        if self.installing:
            return total, total
        return sum(self.sizes.get(name, 0) for name in self.seen[:-1]), total

    @property
    def text(self) -> str:
        """What pip is at, for the user; empty before it is at anything."""
        if self.installing:
            return f"Installing {len(self.sizes) or len(self.seen)} packages"
        if not self.seen:
            return ""
        name = self.seen[-1]
        size = f", {max(1, round(self.sizes[name] / 1e6))} MB" if self.sizes.get(name) else ""
        of = f" of {len(self.sizes)}" if self.sizes else ""
        return f"Fetching {name} ({len(self.seen)}{of}{size})"


def without_passwords(text: str) -> str:
    """The text with names and passwords in addresses, and tokens of the hub, left out."""
    return TOKEN.sub("hf_…", PASSWORD.sub("//…@", text))


AGAIN = "What is there already is kept: set-up goes on from there."
TROUBLES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("windows long path support",),
     "Windows cuts off long paths. Choose a separate environment in a folder with a short path, such as C:\\medvlm, or "
     "have 'long paths' enabled."),
    (("another extension is installing",),
     "Another extension is installing packages right now. Wait until it is done, then try again."),
    (("no space left on device", "errno 28", "not enough space on the disk", "disk quota exceeded"),
     "The disk is full. Make room and try again. " + AGAIN),
    (("proxyerror", "cannot connect to proxy", "tunnel connection failed", "407 proxy"),
     "The proxy refuses, or cannot be reached. Check its address, name and password below 'Proxy' and try again."),
    (("certificate_verify_failed", "sslerror", "certificate verify failed"),
     "The server's certificate is not trusted: a proxy or a filter stands between. Ask whoever runs the network for "
     "its certificate, set PIP_CERT to that file, start Slicer again and try again."),
    (("do not match the hashes",),
     "A package arrived damaged and was thrown away. Try again; if it happens again, a proxy changes what it passes "
     "on."),
    (("permission denied", "access is denied", "winerror 5]", "errno 13", "read-only file system"),
     "A file may not be written, or another program holds it. Close other Slicer windows and try again, or choose a "
     "separate environment."),
    (("winerror 32", "being used by another process"),
     "A file is in use by another program. Close all Slicer windows but this one and try again."),
    (("externally-managed-environment",),
     "This Python belongs to the system, which does not let pip change it. Choose a separate environment."),
    (("resolutionimpossible", "conflicting dependencies"),
     "What other extensions installed into this Python does not go together with what the models need. Choose a "
     "separate environment: it leaves the others alone."),
)  # fmt: skip
"""What stands in pip's words, and what to tell the user. The first that fits is told."""
NETWORK = (
    "newconnectionerror", "name or service not known", "temporary failure in name resolution", "getaddrinfo failed",
    "connecttimeouterror", "connection refused", "read timed out", "network is unreachable", "connection broken",
    "nodename nor servname", "max retries exceeded", "connection reset", "remotedisconnected", "incompleteread",
)  # fmt: skip
OFFLINE = (
    "The network cannot be reached. Check the connection and the proxy and try again; or install from a folder of "
    "wheels that was filled on another machine. " + AGAIN
)


def trouble(printed: str, wheels: Path | None = None) -> str:
    """Why pip gave up, and what to do. `wheels`: the folder that it was to install from."""
    low = printed.lower()
    for signs, told in TROUBLES:
        if any(sign in low for sign in signs):
            return told
    if any(sign in low for sign in NETWORK):
        return OFFLINE
    if lacking := NO_MATCH.findall(printed):
        if wheels is not None:
            return (
                f"'{wheels}' has no wheel of {lacking[-1]} that fits this Python and system. Add it (on a machine of "
                "the same kind: pip download), or install with the network."
            )
        return (
            f"There is no package {lacking[-1]} for this Python and system. Update Slicer, or choose a separate "
            "environment made by another Python (3.11 to 3.13)."
        )
    errors = [line.strip() for line in printed.splitlines() if re.match(r"\s*(ERROR|.*Error)\b", line)]
    last = without_passwords(errors[-1])[:300] if errors else "nothing was said"
    return (
        f"Set-up stopped: {last}. The lines below 'Details' say more; please report them if trying again does not help."
    )
