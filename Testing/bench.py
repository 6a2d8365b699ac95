"""What starting and reading cost on this machine, and how good the built-in model is: `make bench`.

CPU time, not wall time: it is the measure that another load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="500000-500049", help="unseen made studies; '' leaves the model out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measured = costs(Path(scratch))
    if options.json:
        print(json.dumps([vars(one) | {"kept": one.kept} for one in measured]))
    else:
        print(*measured, sep="\n", flush=True)
    if options.seeds:
        subprocess.run([*COMMAND, "evaluate", "phantom", "--seeds", options.seeds, "--json"], cwd=ROOT, check=True)
    return 0 if all(one.kept for one in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
