"""How soon the built-in model heeds a stop: while it encodes, reads the question, writes, and works out heatmaps.

Prints one JSON object; `stop_s` is the longest wait on the wall clock, over stops at several moments of each.
`python -m Testing.benchmarks.stopping`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from MedVLMReaderLib.files import read
from MedVLMReaderLib.prefix import Prefix
from MedVLMReaderLib.reader import Reader, load
from MedVLMReaderLib.resources import resource
from MedVLMReaderLib.study import Seen, Stopped
from MedVLMReaderLib.volume import Volume

LONGEST = 0.5
MOMENTS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
Stop = Callable[[], bool]


def never() -> bool:
    return False


def encoding(reader: Reader, volume: Volume) -> Callable[[Stop], Iterator[object]]:
    def run(stopped: Stop) -> Iterator[object]:
        with suppress(Stopped):
            reader.see(volume, stopped=stopped)
        yield from ()

    return run


def asking(reader: Reader, seen: Seen) -> Callable[[Stop], Iterator[object]]:
    """The report, its heatmaps too; nothing is remembered of an earlier one."""

    def run(stopped: Stop) -> Iterator[object]:
        reader.prefix = Prefix()
        yield from reader.ask(seen, reader.model.report_request(), stopped=stopped)

    return run


def waits(run: Callable[[Stop], Iterator[Any]], until: Callable[[Any], bool] = lambda _: False) -> dict[str, Any]:
    """Seconds that it takes, up to what `until` says True of, and the longest wait after a stop at each moment."""
    took = _seconds(run, until)
    found, words = [], 0
    for moment in MOMENTS:
        seconds, said = _waited(run, moment * took)
        found.append(seconds)
        words = max(words, said)
    return {"took_s": round(took, 3), "longest_wait_s": round(max(found), 4), "words_after": words}


def _seconds(run: Callable[[Stop], Iterator[Any]], until: Callable[[Any], bool]) -> float:
    began = time.perf_counter()
    for part in run(never):
        if until(part):
            break
    return time.perf_counter() - began


def _waited(run: Callable[[Stop], Iterator[Any]], after: float) -> tuple[float, int]:
    began, words = time.perf_counter(), 0
    for part in run(lambda: time.perf_counter() - began >= after):
        words += isinstance(part, str) and time.perf_counter() - began >= after
    return max(time.perf_counter() - began - after, 0.0), words


def main() -> int:
    reader, volume = load("built-in"), read(resource("sample/sample.nii.gz"))
    seen = reader.see(volume)
    found = {
        "encoding": waits(encoding(reader, volume)),
        "prefill": waits(asking(reader, seen), lambda part: isinstance(part, str)),
        "answer_and_heatmaps": waits(asking(reader, seen)),
    }
    longest = max(one["longest_wait_s"] for one in found.values())
    words = max(one["words_after"] for one in found.values())
    print(json.dumps({"stop_s": longest, "words_after_stop": words, **found}))
    return int(longest > LONGEST or words > 1)


if __name__ == "__main__":
    sys.exit(main())
