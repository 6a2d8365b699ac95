"""A clock that stands still while this thread waits for a core that other programs have: what a free machine shows."""

from __future__ import annotations

import time
from pathlib import Path

SCHEDULED = Path("/proc/thread-self/schedstat")


def unhindered() -> float:
    """Seconds; only differences mean something. The wall clock, less what the thread stood in line for a core."""
    try:
        waited = int(SCHEDULED.read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        waited = 0.0
    return time.perf_counter() - waited
