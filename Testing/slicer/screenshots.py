"""Pictures of the panel beside the three slice views, for docs/pictures: `make screenshots`.

Made on the Slicer core without the desktop: the real module file, its real form, real slice views and a real worker;
the stand-ins for Slicer's own widgets look plainer than theirs, and the picture says what it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from MedVLMReaderLib.files import read
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore, missing
from Testing.slicer.host import Host

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "pictures"
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


def beside(host: Host, core: SlicerCore, panel: Any) -> Any:
    """The panel on the left, the views below each other on the right, what it is underneath."""
    qt, left = host.qt, picture_of(host, panel)
    side = (left.height() - 8) // 3
    for view in core.views.values():
        view.size = (side, side)
        view.window.SetSize(side, side)
        offset = view.node.GetSliceOffset()
        view.fit()
        view.node.SetSliceOffset(offset)
    whole = qt.QPixmap(left.width() + side + 8, left.height() + 28)
    whole.fill(qt.QColor(255, 255, 255))
    painter = qt.QPainter(whole)
    painter.drawPixmap(0, 0, left)
    for n, picture in enumerate(core.pictures().values()):
        rows, columns, _ = picture.shape
        data = np.ascontiguousarray(picture)
        image = qt.QImage(data.tobytes(), columns, rows, 3 * columns, qt.QImage.Format_RGB888)
        painter.drawImage(left.width() + 8, n * (side + 4), image)
    painter.drawText(8, left.height() + 19, LABEL)
    painter.end()
    return whole


def main() -> int:
    """Read the sample, click a sentence, and take the picture."""
    if why := missing():
        print(f"No pictures: {why}")
        return 1
    core = SlicerCore()
    for view in core.views.values():
        view.size = (360, 360)
        view.window.SetSize(360, 360)
    host = Host(core)
    font = host.qt.QFont("DejaVu Sans", 9)
    host.application.setFont(font)
    volume = read(ROOT / "Resources" / "sample" / "sample.nii.gz")
    node = core.volume(volume.values, volume.grid.affine, "Sample study")
    core.window(node, 400, 40)
    core.show(node)
    view = host.load()
    view.panel.views_changed()
    view.panel.read()
    host.until(lambda: bool(view.panel.case.kept) or bool(view.panel.message))
    number = next(n for n, kept in enumerate(view.panel.case.kept) if kept.is_report)
    reading = view.panel.case.kept[number].turn.reading
    start, stop = next(span for span in reading.sentences if "liver" in reading.text[slice(*span)])
    view.panel.ask("Is there a lesion in the liver?")
    host.until(lambda: len(view.panel.case.kept) == 2 or bool(view.panel.message))
    view.panel.click(f"sentence:{number}/{start}-{stop}")
    host.until(lambda: view.panel.case.heat is not None or bool(view.panel.message))
    host.until(lambda: not view.dirty)
    OUT.mkdir(parents=True, exist_ok=True)
    beside(host, core, view.parent).save(str(OUT / "panel.png"))
    view.ui.reportTabs.setCurrentIndex(1)
    for section, closed in (
        (view.ui.inputSection, True), (view.ui.chatSection, True), (view.ui.heatSection, True),
        (view.ui.exportSection, False), (view.ui.manySection, False),
    ):  # fmt: skip
        section.collapsed = closed
    picture_of(host, view.parent).save(str(OUT / "panel-export.png"))
    view.cleanup()
    print("panel.png, panel-export.png")
    return 0 if not pythonqt.slot_errors and not view.panel.message else 1


if __name__ == "__main__":
    sys.exit(main())
