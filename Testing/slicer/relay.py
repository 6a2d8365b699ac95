"""A Python that starts the real worker and passes its lines on; tests have it hold them back, or write garbage.

`Relay(folder)` writes the program; `python` is what a view starts. After three words of an answer it looks into the
folder: while there is a file "hold", nothing more is passed on; where there is "garbage", that comes instead, once.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = """#!{python}
import os, pathlib, subprocess, sys, time
here = pathlib.Path({folder!r})
real = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)
words = 0
for line in real.stdout:
    words = 0 if b'"event":"done"' in line else words + (b'"event":"word"' in line)
    if words >= 3 and b'"event":"word"' in line:
        while (here / "hold").exists():
            time.sleep(0.005)
        if (here / "garbage").exists():
            (here / "garbage").unlink()
            line = b"Segmentation <b>fault</b>\\n"
    os.write(1, line)
sys.exit(real.wait())
"""


class Relay:
    """See above."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "relay"
        self.path.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
        self.path.chmod(0o700)

    @property
    def python(self) -> str:
        return str(self.path)

    def hold(self) -> None:
        """From now on, no more than three words of an answer."""
        (self.folder / "hold").touch()

    def go_on(self, garbage: bool = False) -> None:
        """The rest, or garbage in its place."""
        if garbage:
            (self.folder / "garbage").touch()
        (self.folder / "hold").unlink()
