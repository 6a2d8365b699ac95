"""How much memory a GPU has free, asked of its driver's own tool without waiting for it. No torch."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass

TOOL = "nvidia-smi"
QUERY = ("--query-gpu=memory.free,name", "--format=csv,noheader,nounits")
PATIENCE_S = 10.0
"""A tool that has not answered by then is ended: some hang where a driver is broken."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    free: int
    """Bytes."""


class GpuWatch:
    """`ask`, then `heard` from a timer: what is known of the GPUs is `found`. Nothing here waits or raises."""

    def __init__(self) -> None:
        self.found: tuple[Gpu, ...] = ()
        self._asked: subprocess.Popen[str] | None = None
        self._since = 0.0

    def ask(self) -> None:
        """Begin to ask; nothing happens where there is no such tool, or it is being asked already."""
        if self._asked is not None or (tool := shutil.which(TOOL)) is None:
            return
        try:
            self._asked = subprocess.Popen(
                [tool, *QUERY], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
        except OSError:
            return
        self._since = time.monotonic()

    def heard(self) -> bool:
        """Whether something else is known than before."""
        asked = self._asked
        if asked is None:
            return False
        if asked.poll() is None:
            if time.monotonic() - self._since > PATIENCE_S:
                self.close()
            return False
        said, _ = asked.communicate()
        self._asked, before = None, self.found
        self.found = gpus_from(said) if asked.returncode == 0 else ()
        return self.found != before

    def close(self) -> None:
        """Ask no more."""
        if self._asked is not None:
            self._asked.kill()
            self._asked.communicate()
            self._asked = None


def gpus_from(said: str) -> tuple[Gpu, ...]:
    """The devices that the tool listed; lines that are not understood are left out."""
    found = []
    for line in said.splitlines():
        free, _, name = line.partition(",")
        if free.strip().isdigit():
            found.append(Gpu(name.strip(), int(free) << 20))
    return tuple(found)
