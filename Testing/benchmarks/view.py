"""How long the event loop of the Slicer module stands still, and how soon a click shows a heatmap: one JSON object.

On the Slicer core without the desktop, with a real worker and the built-in model. Ticks of 10 ms are counted while the
model loads, reads and answers; CPU time is that of each slot. The click is on a 512 x 512 x 300 CT, until all three
views are rendered. Where other programs share the core, what the window's thread stood in line for it is taken off
(the time by the clock is given, too): that is what a machine shows that is not shared. Exits with 1 where a target is
missed.
`python -m Testing.benchmarks.view`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.files import read
from MedVLMReaderLib.volume import Volume, resampled
from Testing.slicer import pythonqt
from Testing.slicer.clock import Stopwatch, unhindered
from Testing.slicer.core import SlicerCore, missing
from Testing.slicer.host import Host

ROOT = Path(__file__).resolve().parents[2]
GAP_MS, SLOT_MS, SHOW_MS, CLICK_S = 50.0, 50.0, 150.0, 0.4


class Ticks:
    """Gaps in milliseconds between ticks of 10 ms: by the clock, and less what this thread waited for a core."""

    def __init__(self, host: Host) -> None:
        self.clock, self.free = [], []
        self.last = time.perf_counter(), unhindered()
        self.timer = host.qt.QTimer()
        self.timer.setInterval(10)
        self.timer.connect("timeout()", self.tick)
        self.timer.start()

    def tick(self) -> None:
        now = time.perf_counter(), unhindered()
        self.clock.append(1000 * (now[0] - self.last[0]) - 10)
        self.free.append(1000 * (now[1] - self.last[1]) - 10)
        self.last = now


def big(volume: Volume) -> Volume:
    """The sample as a CT of 512 x 512 x 300, about as large as a patient."""
    shape = (300, 512, 512)
    fine = resampled(volume, volume.grid.resize(shape), -1000)
    return Volume(fine.values.astype(np.int16), fine.grid, "CT")


def measured(host: Host, core: SlicerCore) -> dict[str, Any]:
    volume = big(read(ROOT / "Resources" / "sample" / "sample.nii.gz"))
    node = core.volume(volume.values, volume.grid.affine, "CT")
    core.window(node, 400, 40)
    for view in core.views.values():
        view.size = (512, 512)
        view.window.SetSize(512, 512)
    core.show(node)
    core.pictures()
    widget = host.load()
    ticks = Ticks(host)
    pythonqt.slot_ms.clear()
    widget.ui.readButton.setEnabled(True)
    widget.ui.readButton.click()
    done(host, widget, 1)
    widget.ui.questionEdit.setText("Is there a dark lesion in the liver?")
    widget.ui.askButton.setEnabled(True)
    widget.ui.askButton.click()
    done(host, widget, 2)
    ticks.timer.stop()
    reading = slots(pythonqt.slot_ms)
    pythonqt.slot_ms.clear()
    waits, free, cpu, spans = [], [], [], widget.panel.case.kept[0].turn.reading.sentences
    for start, stop in spans[:6]:
        watch, widget.panel.case.heat = Stopwatch(), None
        widget.ui.reportBrowser.anchorClicked.emit(host.qt.QUrl(f"sentence:0/{start}-{stop}"))
        host.until(lambda: widget.panel.case.heat is not None or bool(widget.panel.message), 30)
        core.pictures()
        free.append(watch.unhindered())
        waits.append(watch.by_the_clock())
        cpu.append(watch.used())
    showing = slots(pythonqt.slot_ms)
    message = widget.panel.message
    widget.cleanup()
    return {
        "gap_p99_ms": float(np.percentile(ticks.free, 99)), "gap_longest_ms": max(ticks.free),
        "gap_p99_by_the_clock_ms": float(np.percentile(ticks.clock, 99)), "ticks": len(ticks.free),
        "slot_cpu_ms": reading, "slot_cpu_showing_ms": showing,
        "click_to_overlay_s": {"median": float(np.median(free)), "longest": max(free)},
        "click_to_overlay_by_the_clock_s": {"median": float(np.median(waits)), "longest": max(waits)},
        "click_to_overlay_cpu_s": {"median": float(np.median(cpu)), "longest": max(cpu)}, "message": message,
    }  # fmt: skip


def slots(times: dict[str, list[float]]) -> dict[str, float]:
    """The longest call of each slot, the five longest of all."""
    longest = sorted(((max(ms), name) for name, ms in times.items()), reverse=True)[:5]
    return {name: round(ms, 2) for ms, name in longest}


def done(host: Host, widget: Any, turns: int) -> None:
    host.until(lambda: len(widget.panel.case.kept) >= turns or bool(widget.panel.message), 3000)


def main() -> int:
    if why := missing():
        print(f"Not measured: {why}")
        return 0
    core = SlicerCore()
    found = measured(Host(core), core)
    reached = {
        "gap": found["gap_p99_ms"] <= GAP_MS,
        "slots": max(found["slot_cpu_ms"].values()) <= SLOT_MS,
        "heatmap": max(found["slot_cpu_showing_ms"].values()) <= SHOW_MS,
        "click": found["click_to_overlay_s"]["median"] <= CLICK_S,
        "no message": found["message"] == "",
    }
    print(json.dumps({**found, "reached": reached}))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
