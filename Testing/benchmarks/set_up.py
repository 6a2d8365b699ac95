"""From nothing to a read study: an environment filled from a folder of real wheels, then the sample read in it.

    pip download -d FOLDER -r Resources/requirements/reader.txt -r Resources/requirements/export.txt \\
        -r Resources/requirements/quantised.txt \\
        -c Resources/requirements/tested.txt
    python -m Testing.benchmarks.set_up FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from MedVLMReaderLib.files import read
from MedVLMReaderLib.install.plan import Wishes, megabytes
from MedVLMReaderLib.install.setting_up import SettingUp
from MedVLMReaderLib.resources import resource
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.logic import Logic
from MedVLMReaderLib.worker.transport import SubprocessTransport


def settled(one: SettingUp, transport: SubprocessTransport, seconds: dict[str, float]) -> None:
    """Drive it to its end; wall seconds of each step are added."""
    last, since = "", time.monotonic()
    while one.busy:
        transport.poll(0.02)
        one.advance()
        now = one.running.step.kind if one.running.busy and one.running.step else "look"
        if now != last:
            seconds[last] = seconds.get(last, 0) + time.monotonic() - since
            last, since = now, time.monotonic()
    seconds[last] = seconds.get(last, 0) + time.monotonic() - since


def main(wheels: Path) -> int:
    """Say what it took."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        transport = SubprocessTransport()
        wishes = Wishes("own", sys.executable, Path(folder) / "environment", wheels=wheels)
        one = SettingUp(transport, wishes, home=Path(folder) / "home")
        one.look()
        settled(one, transport, seconds)
        said = one.shown()
        print(said.headline, said.cost, said.notes, sep="\n")
        one.install()
        settled(one, transport, seconds)
        shown = one.shown()
        print(shown.headline or shown.message)
        inside = sum(
            path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()
        )
        print(f"{megabytes(inside)} on the disk;", ", ".join(f"{n} {s:.0f} s" for n, s in seconds.items() if n))
        if shown.stage != "ready":
            print(shown.log[-3000:])
            return 1
        client = Client(SubprocessTransport(), python=one.wishes.interpreter)
        began = time.monotonic()
        reading = Logic(client).read(read(resource("sample/sample.nii.gz")))
        client.close()
        same = reading.text == json.loads(resource("sample/reference.json").read_text())["text"]
        print(
            f"Read in {time.monotonic() - began:.0f} s; the report is {'' if same else 'NOT '}the one that was shipped."
        )
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
