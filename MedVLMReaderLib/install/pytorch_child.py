"""Runs in Slicer's Python: has Slicer's PyTorch extension install torch, which it then imports, here and not in Slicer.

`pytorch_child.py FOLDER REQUIREMENT`: where the extension's PyTorchUtils.py lies, and torch's versions, such as >=2.10.
Whoever started it closes its input to end it, with all that it has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import types


def main(folder: str, wanted: str) -> int:
    """Install; 0 where torch is there afterwards."""
    threading.Thread(target=end_with_input, daemon=True).start()
    if os.name == "posix":
        os.setpgid(0, 0)
    for name in ("qt", "ctk"):  # only Slicer's own program has them; the logic that is called here needs none
        stand_in(name)
    sys.path.insert(0, folder)
    from PyTorchUtils import PyTorchUtilsLogic  # type: ignore[import-not-found,unused-ignore]

    found = PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=wanted)
    return 0 if found is not None else 1


def stand_in(name: str) -> None:
    """An empty module where there is none that can be imported."""
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = types.ModuleType(name)


def end_with_input() -> None:
    """Wait until the input is closed, then end this program and those that it has started."""
    while os.read(0, 1 << 12):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    if os.name == "posix":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    subprocess.run(["taskkill", "/F", "/T", "/PID", str(os.getpid())], check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
