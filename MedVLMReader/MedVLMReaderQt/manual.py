"""The documentation in a window of its own: the pages of the web site, as they came along, without a network."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from MedVLMReaderLib.resources import manual_folder

FIRST, SIZE = "index.md", (1000, 800)


class Manual:
    """A window that is made when it is first opened. Links lead from page to page, others to the web browser."""

    def __init__(self):
        self.window = self.browser = None
        self.connected = []

    def open(self, page=FIRST):
        """Show a page. Raises ReaderError where the documentation did not come along."""
        folder = manual_folder()
        if self.window is None:
            self._make()
        self.browser.setSearchPaths([str(folder)])
        self.browser.setSource(qt.QUrl(page))
        self.window.show()
        self.window.raise_()
        self.browser.setFocus()

    def close(self):
        """Take the window away."""
        if self.window is not None:
            self.window.close()
            self.window.deleteLater()
            self.window = self.browser = None

    def _make(self):
        self.window = qt.QWidget()
        self.window.setWindowTitle(_("MedVLM Reader: manual"))
        self.window.resize(*SIZE)
        self.browser = qt.QTextBrowser()
        self.browser.setOpenExternalLinks(True)
        self.browser.setAccessibleName(_("Manual"))
        row, column = qt.QHBoxLayout(), qt.QVBoxLayout()
        for text, call in ((_("&Start"), self.browser.home), (_("&Back"), self.browser.backward)):
            button = qt.QPushButton(text)
            self.connected.append(button.connect("clicked()", call))
            row.addWidget(button)
        row.addStretch(1)
        column.addLayout(row)
        column.addWidget(self.browser)
        self.window.setLayout(column)
        self._keys()

    def _keys(self):
        self.shortcuts = []
        for keys, call in (("Alt+Left", self.browser.backward), ("Esc", self.window.close)):
            shortcut = qt.QShortcut(self.window)
            shortcut.setKey(qt.QKeySequence(keys))
            self.connected.append(shortcut.connect("activated()", call))
            self.shortcuts.append(shortcut)
