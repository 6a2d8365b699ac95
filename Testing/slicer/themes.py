"""Panel and set-up in a dark theme and at 200 %, to be looked at: `python -m Testing.slicer.themes FOLDER`.

Nothing is read or installed: words are put where they would stand, so that it takes seconds.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.install.plan import Wishes
from MedVLMReaderLib.install.setting_up import Shown
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.results import Kept
from MedVLMReaderLib.session import Turn
from MedVLMReaderLib.transcript import report
from Testing.slicer.core import SlicerCore, missing
from Testing.slicer.host import Host

DARK = {  # Slicer's dark theme, about
    "Window": (53, 53, 53), "WindowText": (240, 240, 240), "Base": (35, 35, 35), "AlternateBase": (53, 53, 53),
    "Text": (240, 240, 240), "Button": (53, 53, 53), "ButtonText": (240, 240, 240), "Midlight": (80, 80, 80),
    "Highlight": (42, 130, 218), "HighlightedText": (0, 0, 0), "Link": (110, 170, 240),
    "PlaceholderText": (150, 150, 150), "ToolTipBase": (53, 53, 53), "ToolTipText": (240, 240, 240),
}  # fmt: skip
TEXT = "Findings: The right lung is clear. Dark lesion of 27 mm in the liver.\nImpression: Dark lesion in the liver."

NOTE = "This model has learned from made studies only. It shows how the reader works; it means nothing on a real scan."


def themed(host: Host, dark: bool, scale: float) -> None:
    """Make the application look as it would on another display, before anything is made."""
    qt = host.qt
    host.application.setStyle("Fusion")
    host.application.setFont(qt.QFont("DejaVu Sans", int(9 * scale)))
    palette = qt.QPalette()
    for role, colour in DARK.items() if dark else ():
        palette.setColor(getattr(qt.QPalette, role), qt.QColor(*colour))
    if dark:
        for role in ("ButtonText", "Text", "WindowText"):
            palette.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor(127, 127, 127))
        host.application.setPalette(palette)


def filled(view: Any) -> None:
    """Everything that can stand on the panel, without a model."""
    reading = Reading("", TEXT, True, (), (), "built-in", "5e8dbd489162", notes=(NOTE,))
    kept = Kept(Turn("", reading), np.eye(4), is_report=True)
    html = report(0, kept, (0, reading.sentences[1]))
    state = replace(
        view.panel.state(), report=html, chat=html, has_text=True, message="'chest' has no voxels. Load it again.",
        provenance="Written by built-in, revision 5e8dbd489162. Not for clinical use.", findings=TEXT, can_read=True,
        heat="Relevance: peak 626 times even at R, A, S (177, -79, -144) mm. Attention, not a finding.", can_ask=True,
    )  # fmt: skip
    view.panel.state = lambda: state
    view.dirty = True
    view.draw()


def set_up_filled(view: Any) -> None:
    """Everything that can stand in 'Set-up and models': a plan, a step on its way, a refusal, a gated model."""
    one, environment = view.set_up, Path("~/.local/share/MedVLMReader/environment")
    shown = Shown(
        "running", "The models need 26 packages that are not installed.",
        f"Into the environment '{environment}': about 462 MB to fetch, about 2.0 GB on the disk.",
        "numpy, scipy, simpleitk, pydicom, python-gdcm, pylibjpeg, pylibjpeg-openjpeg, matplotlib and 18 more",
        "There is an NVIDIA GPU: PyTorch comes with CUDA, which is most of the size.",
        "The proxy refuses, or cannot be reached. Check its address, name and password below 'Proxy' and try again.",
        "Fetching torch (1 of 26, 192 MB)", (231, 462), "Collecting torch>=2.10\n  Downloading torch-2.13.0+cpu.whl",
        can_stop=True, can_choose=True, wishes=Wishes("own", environment=environment),
    )  # fmt: skip
    one.setting_up.shown = lambda: shown
    one.models.doing, one.models.progress = "get", (3_100_000_000, 8_600_000_000)
    one.models.message = "google/medgemma-1.5-4b-it is gated. Accept its terms on its page and put a token in 'Token'."
    for section in (one.ui.setUpSection, one.ui.detailsSection, one.ui.modelsSection):
        section.collapsed = False
    one.ui.modelsList.setCurrentRow(next(n for n, offer in enumerate(one.offers) if offer.gated))
    one.ui.pythonBox.addItem("/usr/bin/python3.12")
    one.ui.tokenEdit.setText("a token")
    one.draw()


def pictured(host: Host, widget: Any, path: Path, width: float, more: int) -> None:
    """A widget, as high as it wants to be and `more`, into a file."""
    widget.resize(int(width), widget.sizeHint().height() + more)
    widget.show()
    host.qt.QApplication.processEvents()
    widget.grab().save(str(path))
    print(path)


def main() -> int:
    """Pictures of panel and set-up into the folder that is named."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/themes")
    if why := missing():
        print(f"No pictures: {why}")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    host = Host(SlicerCore())
    for name, dark, scale in (("large", False, 2), ("dark-and-large", True, 2)):
        themed(host, dark, scale)
        view = host.load()
        filled(view)
        pictured(host, view.parent, folder / f"{name}.png", 500 * scale, 200)
        set_up_filled(view)
        view.set_up.widget.setParent(None)
        pictured(host, view.set_up.widget, folder / f"set-up-{name}.png", 500 * scale, 400)
        view.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
