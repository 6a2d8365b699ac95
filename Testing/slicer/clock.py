"""A clock that stands still while this program waits for a core that others have: what a free machine shows."""

from __future__ import annotations

import time
from pathlib import Path

THREADS = Path("/proc/self/task")


def unhindered() -> float:
    """Seconds; only differences mean something. The wall clock, less what threads of this program stood in line.

    Of all threads: a window that draws waits for those that fill its pixels. Where several stand in line at once, more
    is taken off than was waited, so that a time is never less than the CPU time of the same stretch: see `Stopwatch`.
    """
    waited = 0
    for thread in THREADS.glob("*/schedstat"):
        try:
            waited += int(thread.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
    return time.perf_counter() - waited * 1e-9


class Stopwatch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self.wall, self.free, self.cpu = time.perf_counter(), unhindered(), time.process_time()

    def by_the_clock(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self.wall

    def used(self) -> float:
        """Seconds of CPU since then, of all threads."""
        return time.process_time() - self.cpu

    def unhindered(self) -> float:
        """Seconds since then as a free machine shows them, not less than `used`."""
        return max(unhindered() - self.free, self.used())
