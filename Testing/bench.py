"""Every figure of this project on this machine, each beside its baseline of the same run: `make bench`.

One JSON object on stdout; progress and a table of targets on stderr; exit code 1 where a target is missed. Costs are
CPU time, not wall time: it is the measure that another load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib.resources import resource

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "MedVLMReaderLib.cli"]
# The recipe is the built-in model's; its own module would bring torch, which this step can do without.
PREPARE = """
import sys
from MedVLMReaderLib.files import read
from MedVLMReaderLib.preparation import Recipe, stacks
windows_ct = (-1000.0, -600.0), (-100.0, 260.0), (-1000.0, 600.0)
recipe = Recipe(128, 3.2, (5.0, 10.0, 10.0), windows_ct, ((0.0, 0.5), (0.25, 1.0), (0.0, 1.5)))
print([stack.channels(recipe).shape for stack in stacks(read(sys.argv[1]), recipe)])
"""
# Noise of 512 x 512 x 300 voxels, int16: what a chest CT weighs. Written by a program of its own, because the memory of
# a parent counts as its children's.
LARGE = """
import sys
from pathlib import Path
import numpy as np
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.volume import Volume
values = np.random.default_rng(0).integers(-1000, 1000, (300, 512, 512), dtype=np.int16)
affine = np.array([[0, 0, -0.7, 180], [0, -0.7, 0, 180], [1, 0, 0, 0], [0, 0, 0, 1]])
Volume(values, Grid(values.shape, affine)).save(Path(sys.argv[1]))
"""


@dataclass(frozen=True)
class Cost:
    """What a program took, and the most it should."""

    what: str
    seconds: float
    """CPU, user and system."""
    megabytes: float
    """Largest resident memory."""
    seconds_allowed: float
    megabytes_allowed: float = float("inf")

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity: a limit that there is none of is null."""
        limits = {name: None if value == math.inf else value for name, value in vars(self).items()}
        return {**limits, "kept": self.kept}

    @property
    def kept(self) -> bool:
        return self.seconds <= self.seconds_allowed and self.megabytes <= self.megabytes_allowed

    def __str__(self) -> str:
        mark = "" if self.kept else "   OVER"
        return f"{self.what:<58}{self.seconds:7.2f} s (<= {self.seconds_allowed:g}){self.megabytes:8.0f} MB{mark}"


def cost(what: str, command: list[str], seconds_allowed: float, megabytes_allowed: float = float("inf")) -> Cost:
    """Run a program and measure it. Its output is shown only where it fails."""
    with tempfile.TemporaryFile() as said:
        program = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        if program.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read().decode(errors='replace')[-3000:]}")
    per_megabyte = 2**20 if sys.platform == "darwin" else 2**10
    return Cost(what, used.ru_utime + used.ru_stime, used.ru_maxrss / per_megabyte, seconds_allowed, megabytes_allowed)


def costs(scratch: Path) -> list[Cost]:
    """Each promise about time and memory, measured."""
    large = str(scratch / "large.nii")
    cost("", [sys.executable, "-c", LARGE, large], float("inf"))
    sample = str(resource("sample/sample.nii.gz"))
    return [
        cost("import MedVLMReaderLib", [sys.executable, "-c", "import MedVLMReaderLib"], 0.3),
        cost("medvlmreader --help", [*COMMAND, "--help"], 0.3),
        cost("read of the sample", [*COMMAND, "read", sample, "--out", str(scratch / "out")], 25, 2048),
        cost("512 x 512 x 300 NIfTI to prepared input", [sys.executable, "-c", PREPARE, large], 5),
    ]


# ---- All of them ----------------------------------------------------------------------------------------------------

BENCHMARKS = {
    "dcformer": (), "loading": ("--json",), "followup": (), "heatmaps": (), "stopping": (), "memory": ("--json",),
    "fidelity": ("--json",), "worker": (), "view": (), "batch": (),
}  # fmt: skip
"""Modules of Testing.benchmarks, and how each prints one JSON object."""


@dataclass(frozen=True)
class Target:
    """A figure of a benchmark, and what it must reach: at least, or at most."""

    name: str
    benchmark: str
    least: float | None = None
    most: float | None = None
    baseline: tuple[str, ...] = ()
    """Figures of the same run that it is held against; the first is what costs less."""

    def kept(self, value: float | None) -> bool:
        return value is not None and (-math.inf if self.least is None else self.least) <= value <= (
            math.inf if self.most is None else self.most
        )

    def row(self, value: float | None, found: dict[str, Any]) -> str:
        bound = f">= {self.least:g}" if self.most is None else f"<= {self.most:g}"
        shown = "not measured" if value is None else f"{value:.4g}"
        held = ", ".join(f"{name} {_shown(_at(found, name))}" for name in self.baseline)
        return f"{self.name:<32}{shown:>14}  {bound:<9}{'' if self.kept(value) else 'MISSED':<8}{held}"


TARGETS = (
    Target("encoder_speedup_fp32", "dcformer", least=1.5, baseline=("seconds.fp32", "seconds.plain")),
    Target("encoder_speedup_bf16", "dcformer", least=3, baseline=("seconds.bf16", "seconds.plain")),
    Target("nf4_load_speedup", "loading", least=3, baseline=("nf4 copy.seconds", "nf4.seconds")),
    Target("followup_first_word_ratio", "followup", most=1 / 8, baseline=("followup_s", "first_s")),
    Target("heatmap_time_overhead", "heatmaps", most=0.08, baseline=("heatmap_s", "heatmap_answer_s")),
    Target("heatmap_extra_mb", "heatmaps", most=200, baseline=("heatmap_extra_mb", "eager_extra_mb")),
    Target("eager_extra_mb", "heatmaps", least=0, baseline=("heatmap_extra_mb", "eager_extra_mb")),
    Target("eager_times_heatmap_mb", "heatmaps", least=4, baseline=("heatmap_extra_mb", "eager_extra_mb")),
    Target("stop_s", "stopping", most=0.5, baseline=("encoding.took_s", "answer_and_heatmaps.took_s")),
    Target("words_after_stop", "stopping", most=1),
    Target("memory_estimate_off", "memory", most=0.15),
    Target("int8_top_1", "fidelity", least=0.9),
    Target("crash_to_message_s", "worker", most=1),
    Target("gap_p99_ms", "view", most=50),
    Target("click_to_overlay_s.median", "view", most=0.4),
    Target("overhead", "batch", most=0.05),
    Target("pipelining_gain", "batch", least=0.15, baseline=("ahead_s", "one_thread_s")),
    Target("real_gain", "batch", least=0.15, baseline=("real_ahead_s", "real_one_thread_s")),
    Target("two_workers", "batch", least=1.5, baseline=("two_workers_an_hour", "one_worker_an_hour")),
    Target("memory_bytes_a_study", "batch", most=20_000, baseline=("memory_noise_bytes",)),
    Target("index_second_s", "batch", most=2, baseline=("index_second_s", "index_first_s")),
)


def _at(found: dict[str, Any], path: str) -> Any:
    """The figure under "group.name"."""
    value: Any = found
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"


def measured(name: str) -> dict[str, Any]:
    """What a benchmark prints; nothing, and the reason on stderr, where it breaks down."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"Testing.benchmarks.{name}", *BENCHMARKS[name]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        print(f"{name} gave no figures (exit code {done.returncode}).", file=sys.stderr, flush=True)
        return {}


def headline(benchmarks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every figure of TARGETS; None where it was not measured."""
    figures = {one.name: _at(benchmarks.get(one.benchmark, {}), one.name) for one in TARGETS}
    heatmaps, rows = benchmarks.get("heatmaps", {}), benchmarks.get("memory", {}).get("memory_estimate")
    if {"eager_extra_mb", "heatmap_extra_mb"} <= set(heatmaps):
        figures["eager_times_heatmap_mb"] = round(
            heatmaps["eager_extra_mb"] / max(heatmaps["heatmap_extra_mb"], 0.1), 2
        )
    if rows:
        figures["memory_estimate_off"] = round(max(abs(row["off"]) for row in rows), 4)
    for row in benchmarks.get("fidelity", {}).get("fidelity", ()):
        figures[f"{row['precision']}_top_1"] = row["top_1"]
    return figures


def reading(seeds: str) -> dict[str, Any]:
    """How well the built-in model reads made studies."""
    print("The built-in model on made studies ...", file=sys.stderr, flush=True)
    command = [*COMMAND, "evaluate", "phantom", "--seeds", seeds, "--json"]
    return dict(json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout))


def pointing(seeds: str) -> dict[str, Any]:
    """How well its heatmaps point, the best way of looking beside the raw last layer on the same studies."""
    print("Its heatmaps ...", file=sys.stderr, flush=True)
    command = [*COMMAND, "evaluate", "heatmaps", "--seeds", seeds, "--json"]
    found = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    best, last = (found["methods"][way]["pointing"]["value"] for way in (found["best"], "last layer"))
    return {"pointing_best": best, "pointing_last_layer": last, "built_in_heatmaps": found}


def main() -> int:
    """One JSON object on stdout; what is going on and the table of targets on stderr; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="500000-500049", help="unseen made studies; '' leaves the model out")
    parser.add_argument("--only", nargs="*", choices=[*BENCHMARKS, "costs"], help="some of the benchmarks")
    options = parser.parse_args()
    wanted = [*BENCHMARKS, "costs"] if options.only is None else options.only
    benchmarks = {name: measured(name) for name in BENCHMARKS if name in wanted}
    paid: list[Cost] = []
    if "costs" in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            paid = costs(Path(scratch))
    found = headline(benchmarks)
    told = {**found, **benchmarks, "costs": [one.plain() for one in paid]}
    if options.seeds and options.only is None:
        told |= {"built_in_model": reading(options.seeds), **pointing(options.seeds)}
    print(json.dumps(told))
    rows = [one for one in TARGETS if one.benchmark in wanted]
    print(*(one.row(found[one.name], benchmarks[one.benchmark]) for one in rows), *paid, sep="\n", file=sys.stderr)
    return int(not all(one.kept(found[one.name]) for one in rows) or not all(one.kept for one in paid))


if __name__ == "__main__":
    sys.exit(main())
