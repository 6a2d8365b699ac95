"""Draws MedVLMReader/Resources/Icons: the icon from its SVG, the sample study's thumbnail from its voxels.

`python -m Testing.icons`; needs PySide6, as the tests of the module do.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from MedVLMReaderLib.files import read

ROOT = Path(__file__).resolve().parents[1]
ICONS = ROOT / "MedVLMReader" / "Resources" / "Icons"
WINDOW = -160, 240


def icon() -> None:
    """The SVG as a picture of 128 x 128."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6 import QtGui, QtSvg

    application = QtGui.QGuiApplication([])
    picture = QtGui.QImage(128, 128, QtGui.QImage.Format.Format_ARGB32)
    picture.fill(QtGui.QColor(0, 0, 0, 0))
    painter = QtGui.QPainter(picture)
    QtSvg.QSvgRenderer(str(ICONS / "MedVLMReader.svg")).render(painter)
    painter.end()
    picture.save(str(ICONS / "MedVLMReader.png"))
    application.quit()


def thumbnail() -> None:
    """The middle axial slice in a soft tissue window, the patient's right on the left."""
    volume = read(ROOT / "Resources" / "sample" / "sample.nii.gz")
    middle = volume.values[volume.values.shape[0] // 2].astype(np.float32)
    sign_j, sign_i = np.sign(volume.grid.affine[1, 1]), np.sign(volume.grid.affine[0, 2])
    turned = middle[:: -1 if sign_j > 0 else 1, :: -1 if sign_i > 0 else 1]
    grey = np.clip((turned - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    Image.fromarray((grey * 255).astype(np.uint8)).resize((192, 192)).save(ICONS / "MedVLMSample.png", optimize=True)


if __name__ == "__main__":
    icon()
    thumbnail()
