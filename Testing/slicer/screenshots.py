"""Pictures for the documentation: `make screenshots`.

The panel beside the three slice views goes to docs/pictures, a sentence with its heatmap to docs/images. With `--dark`
and `--scale 2` the panel is drawn as in a dark theme and on a display of 200 %, to be looked at.

Made on the Slicer core without the desktop: the real module file, its real form, real slice views and a real worker;
the stand-ins for Slicer's own widgets look plainer than theirs, and the picture says what it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.files import read
from MedVLMReaderLib.pictures import overlay
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore, missing
from Testing.slicer.host import Host

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs"
SAMPLE = ROOT / "Resources" / "sample" / "sample.nii.gz"
PATIENCE_S = 3000
DARK = {  # Slicer's dark theme, about
    "Window": (53, 53, 53), "WindowText": (240, 240, 240), "Base": (35, 35, 35), "AlternateBase": (53, 53, 53),
    "Text": (240, 240, 240), "Button": (53, 53, 53), "ButtonText": (240, 240, 240), "Midlight": (80, 80, 80),
    "Highlight": (42, 130, 218), "HighlightedText": (0, 0, 0), "Link": (110, 170, 240),
    "PlaceholderText": (150, 150, 150), "ToolTipBase": (53, 53, 53), "ToolTipText": (240, 240, 240),
}  # fmt: skip
LABEL = (
    "Made on the Slicer core without the desktop. The sample study, read by the built-in model. Not for clinical use."
)


def picture_of(host: Host, panel: Any, width: int = 560) -> Any:
    """The panel as wide as a module's, as high as it wants to be."""
    qt = host.qt
    panel.show()
    for _ in range(3):  # texts that wrap ask for their height once they know their width
        panel.resize(width, panel.layout().totalHeightForWidth(width) + 8)
        qt.QApplication.processEvents()
    return panel.grab()


def beside(host: Host, core: SlicerCore, panel: Any, scale: float = 1) -> Any:
    """The panel on the left, the views below each other on the right, what it is underneath."""
    qt, left = host.qt, picture_of(host, panel, int(560 * scale))
    side = (left.height() - 8) // 3
    for view in core.views.values():
        view.size = (side, side)
        view.window.SetSize(side, side)
        offset = view.node.GetSliceOffset()
        view.fit()
        view.node.SetSliceOffset(offset)
    whole = qt.QPixmap(left.width() + side + 8, left.height() + int(28 * scale))
    whole.fill(qt.QApplication.palette().color(qt.QPalette.Window))
    painter = qt.QPainter(whole)
    painter.drawPixmap(0, 0, left)
    for n, picture in enumerate(core.pictures().values()):
        rows, columns, _ = picture.shape
        data = np.ascontiguousarray(picture)
        image = qt.QImage(data.tobytes(), columns, rows, 3 * columns, qt.QImage.Format_RGB888)
        painter.drawImage(left.width() + 8, n * (side + 4), image)
    painter.setPen(qt.QApplication.palette().color(qt.QPalette.WindowText))
    painter.drawText(8, whole.height() - 9, LABEL)
    painter.end()
    return whole


def themed(host: Host, dark: bool, scale: float) -> None:
    """Make the application look as it would on another display, before anything is made."""
    qt = host.qt
    host.application.setStyle("Fusion")
    host.application.setFont(qt.QFont("DejaVu Sans", int(9 * scale)))
    if dark:
        palette = qt.QPalette()
        for role, colour in DARK.items():
            palette.setColor(getattr(qt.QPalette, role), qt.QColor(*colour))
        host.application.setPalette(palette)


def prepared(core: SlicerCore) -> None:
    """The sample study in three views of one size."""
    for view in core.views.values():
        view.size = (360, 360)
        view.window.SetSize(360, 360)
    volume = read(SAMPLE)
    node = core.volume(volume.values, volume.grid.affine, "Sample study")
    core.window(node, 400, 40)
    core.show(node)


def told(host: Host, view: Any) -> None:
    """A report, a question, and the click on the sentence about the liver."""
    panel = view.panel
    panel.views_changed()
    panel.read()
    host.until(lambda: bool(panel.case.kept) or bool(panel.message), PATIENCE_S)
    number = next(n for n, kept in enumerate(panel.case.kept) if kept.is_report)
    reading = panel.case.kept[number].turn.reading
    start, stop = next(span for span in reading.sentences if "liver" in reading.text[slice(*span)])
    panel.ask("Is there a dark lesion in the liver?")
    host.until(lambda: len(panel.case.kept) == 2 or bool(panel.message), PATIENCE_S)
    panel.click(f"sentence:{number}/{start}-{stop}")
    host.until(lambda: panel.case.heat is not None or bool(panel.message), PATIENCE_S)
    host.until(lambda: not view.dirty, PATIENCE_S)


def sentence(view: Any, path: Path) -> None:
    """The sentence that was clicked, on three planes, as the command line draws it."""
    heat = view.panel.case.heat
    reading = view.panel.case.kept[heat.turn].turn.reading
    overlay(read(SAMPLE), reading.heatmaps(heat.span), title=reading.text[slice(*heat.span)], path=path)


def exporting(ui: Any) -> None:
    """The report as it is edited, exports and many scans; the other sections closed."""
    ui.reportTabs.setCurrentIndex(1)
    for section, closed in (
        (ui.inputSection, True), (ui.chatSection, True), (ui.heatSection, True),
        (ui.exportSection, False), (ui.manySection, False),
    ):  # fmt: skip
        section.collapsed = closed


def main() -> int:
    """Read the sample, click a sentence, and take the pictures."""
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--dark", action="store_true")
    wanted.add_argument("--scale", type=float, default=1)
    wanted.add_argument("--out", type=Path, default=OUT)
    arguments = wanted.parse_args()
    if why := missing():
        print(f"No pictures: {why}")
        return 1
    core = SlicerCore()
    host = Host(core)
    themed(host, arguments.dark, arguments.scale)
    prepared(core)
    view = host.load()
    told(host, view)
    pictures, one = arguments.out / "pictures", arguments.out / "images" / "sentence.png"
    for folder in (pictures, one.parent):
        folder.mkdir(parents=True, exist_ok=True)
    beside(host, core, view.parent, arguments.scale).save(str(pictures / "panel.png"))
    sentence(view, one)
    exporting(view.ui)
    picture_of(host, view.parent, int(560 * arguments.scale)).save(str(pictures / "panel-export.png"))
    print("pictures/panel.png, pictures/panel-export.png, images/sentence.png")
    view.cleanup()
    return 0 if not pythonqt.slot_errors and not view.panel.message else 1


if __name__ == "__main__":
    sys.exit(main())
