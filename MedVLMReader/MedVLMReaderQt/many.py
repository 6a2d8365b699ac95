"""Folders that the user is asked for, and the dialog that stands while many scans are read."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from MedVLMReaderLib.many import how_far


def folder(title):
    """The folder that was chosen; None where the user changed their mind."""
    chosen = qt.QFileDialog.getExistingDirectory(None, title)
    return Path(str(chosen)) if chosen else None


def read_many(read, closed):
    """Call `read(out, tell, stopped)` with a dialog that says how far it is and can cancel; the window lives meanwhile.

    `closed`: whether the module was closed under it.
    """
    out = folder(_("Where to keep the readings"))
    if out is None:
        return
    dialog = slicer.util.createProgressDialog(
        maximum=0, labelText=_("Starting the reader"), windowTitle=_("MedVLM Reader"), autoClose=False, autoReset=False
    )
    dialog.show()

    def tell(progress):
        dialog.setMaximum(progress.total)
        dialog.setValue(progress.done)
        dialog.setLabelText(how_far(progress))

    try:
        read(out, tell, lambda: dialog.wasCanceled or closed())
    finally:
        dialog.close()
