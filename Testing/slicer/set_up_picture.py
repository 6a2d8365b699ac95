"""docs/pictures/set-up.png: the section 'Set-up and models' before anything is installed (`make screenshots`)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore, missing
from Testing.slicer.host import Host

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "pictures" / "set-up.png"
LABEL = "Made on the Slicer core without the desktop."


def main() -> int:
    """Look at an environment that is not there yet, and take the picture."""
    if why := missing():
        print(f"No picture: {why}")
        return 1
    host = Host(SlicerCore())
    host.application.setFont(host.qt.QFont("DejaVu Sans", 9))
    panel = host.load()
    view, one = panel.set_up, panel.set_up.setting_up
    with tempfile.TemporaryDirectory() as folder:
        view.ui.environmentEdit.setText("~/.local/share/MedVLMReader/environment")
        one.choose(place="own", python=sys.executable, environment=Path(folder) / "environment")
        host.until(lambda: not one.busy)
        view.draw()
        for section in (view.ui.setUpSection, view.ui.modelsSection):
            section.collapsed = False
        view.ui.modelsList.setCurrentRow(next(n for n, offer in enumerate(view.offers) if offer.gated))
        view.ui.pythonBox.clear()
        view.ui.pythonBox.addItem("/usr/bin/python3.12")
        view.draw()
        view.ui.costLabel.setText(view.ui.costLabel.text.replace(folder, "~/.local/share/MedVLMReader"))
        view.widget.setParent(None)
        view.widget.resize(620, 820)
        view.widget.show()
        host.qt.QApplication.processEvents()
        picture = view.widget.grab()
        painter = host.qt.QPainter(picture)
        painter.drawText(8, picture.height() - 6, LABEL)
        painter.end()
        OUT.parent.mkdir(parents=True, exist_ok=True)
        picture.save(str(OUT))
    panel.cleanup()
    print(OUT.relative_to(ROOT))
    return 0 if not pythonqt.slot_errors else 1


if __name__ == "__main__":
    sys.exit(main())
