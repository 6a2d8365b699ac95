"""The section 'Set-up and models': draws what `SettingUp` and `Collection` say, forwards what is clicked.

Whatever is about Pythons, packages or licences is theirs.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from MedVLMReaderLib.install.collection import Collection, described, offers
from MedVLMReaderLib.install.interpreters import loaded_here
from MedVLMReaderLib.install.setting_up import SettingUp, first_wishes
from MedVLMReaderLib.install.slicer_packaging import PackagingTransport
from MedVLMReaderLib.worker.interpreter import SETTING, VARIABLE, beside


def facts():
    """What only Slicer knows: what it has loaded, and where its PyTorch extension lies."""
    utilities = getattr(slicer.modules, "pytorchutils", None)
    return {"loaded": loaded_here(), "pytorch": Path(str(utilities.path)).parent if utilities is not None else None}


def packaged():
    """Slicer's own way to run pip, from 5.12 on; None before."""
    try:
        return PackagingTransport(importlib.import_module("slicer.packaging"))
    except ImportError:
        return None


def folder(typed):
    """What was typed as a path: ~ is the user's own folder, and the rest does not depend on where Slicer started."""
    return Path(os.path.abspath(os.path.expanduser(typed.strip())))


class SetUpView:
    """One section above the panel, closed where there is nothing to do."""

    def __init__(self, form, new_transport, use, slicer_python=""):
        """`form`: the path of its .ui; `new_transport`: makes one; `use`: told the interpreter that reads.
        `slicer_python`: where it is not the one beside this program."""
        chosen = str(slicer.app.settings().value(SETTING) or os.environ.get(VARIABLE) or "")
        slicer_python = slicer_python or beside(sys.executable)
        self.widget = slicer.util.loadUI(form)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.transports = new_transport(), new_transport()
        self.use, self.then, self.dirty, self.drawing, self.asking = use, None, True, False, False
        wished = first_wishes(slicer_python, chosen, **facts())
        self.setting_up = SettingUp(
            self.transports[0], wished, packaged=packaged(), changed=self.touched, on_ready=self.ready
        )
        self.models = Collection(
            self.transports[1], lambda: self.setting_up.wishes.interpreter, self.touched,
            lambda: self.setting_up.wishes.proxy,
        )  # fmt: skip
        self._fill()
        self.connected = self._connect()

    def _fill(self):
        ui = self.ui
        ui.placeBox.addItem(_("Slicer's own Python"), "slicer")
        ui.placeBox.addItem(_("A separate environment"), "own")
        for bar in (ui.setUpBar, ui.fetchBar):
            bar.setVisible(False)
        self.list_models()

    def _connect(self):
        ui, one = self.ui, self.setting_up
        return [
            ui.installButton.connect("clicked()", self.install),
            ui.stopSetUpButton.connect("clicked()", one.stop),
            ui.lookButton.connect("clicked()", one.look),
            ui.removeButton.connect("clicked()", self.remove),
            ui.placeBox.connect("activated(int)", self.place_chosen),
            ui.pythonBox.connect("activated(int)", lambda n: one.choose(python=ui.pythonBox.itemData(n))),
            ui.environmentEdit.connect("editingFinished()", self.environment_chosen),
            ui.environmentButton.connect("clicked()", lambda: self.browse(ui.environmentEdit, self.environment_chosen)),
            ui.wheelsEdit.connect("editingFinished()", self.wheels_chosen),
            ui.wheelsButton.connect("clicked()", lambda: self.browse(ui.wheelsEdit, self.wheels_chosen)),
            ui.proxyEdit.connect("editingFinished()", lambda: one.choose(proxy=ui.proxyEdit.text.strip())),
            ui.quantisedBox.connect("toggled(bool)", self.quantised_chosen),
            ui.setUpSection.connect("contentsCollapsed(bool)", self.opened),
            ui.fetchButton.connect("clicked()", self.fetch),
            ui.stopFetchButton.connect("clicked()", self.models.stop),
            ui.removeModelButton.connect("clicked()", self.remove_model),
            ui.modelsList.connect("currentRowChanged(int)", lambda n: self.model_chosen(n)),
        ]  # fmt: skip

    # What the module asks

    def when_ready(self, then):
        """Do something that needs the models' packages; where they are not there, open the section and say so."""
        one = self.setting_up
        if one.known_ready or one.shown().stage == "ready":
            then()
            return
        self.then = then
        if not one.busy:
            one.look()

    def advance(self):
        """From the module's timer."""
        self.setting_up.advance()
        self.models.advance()
        if self.dirty and not self.drawing:
            self.draw()

    def close(self):
        self.setting_up.close()
        self.models.stop()
        for transport in self.transports:
            transport.close()

    # What is clicked

    def touched(self):
        self.dirty = True

    def ready(self, python):
        if self.setting_up.wishes.place == "slicer":
            slicer.app.settings().remove(SETTING)
        elif not self.setting_up.wishes.chosen:
            slicer.app.settings().setValue(SETTING, python)
        self.use(python)
        then, self.then = self.then, None
        if then is not None:
            self.ui.setUpSection.collapsed = True
            then()

    def opened(self, collapsed):
        if not collapsed:
            if self.setting_up.wishes.place == "own":
                self.list_pythons()
            if self.setting_up.shown().stage == "unknown":
                self.setting_up.look()

    def place_chosen(self, number):
        place = self.ui.placeBox.itemData(number)
        self.setting_up.choose(place=place)
        if place == "own":
            self.list_pythons()

    def list_pythons(self):
        for path in self.setting_up.pythons if not self.ui.pythonBox.count else ():
            self.ui.pythonBox.addItem(path, path)

    def install(self):
        now = self.setting_up.shown()
        if slicer.util.confirmOkCancelDisplay("\n\n".join(filter(None, (now.headline, now.cost, now.notes)))):
            self.setting_up.install()

    def remove(self):
        if slicer.util.confirmOkCancelDisplay(_("Delete the separate environment with all its packages?")):
            self.setting_up.remove()

    def browse(self, edit, then):
        chosen = qt.QFileDialog.getExistingDirectory(None, _("Folder"), edit.text)
        if chosen:
            edit.setText(str(chosen))
            then()

    def environment_chosen(self):
        if self.ui.environmentEdit.text.strip() and not self.drawing:
            self.setting_up.choose(environment=folder(self.ui.environmentEdit.text))

    def wheels_chosen(self):
        self.setting_up.choose(wheels=folder(self.ui.wheelsEdit.text) if self.ui.wheelsEdit.text.strip() else None)

    def quantised_chosen(self, wanted):
        if not self.drawing:
            self.setting_up.choose(quantised=bool(wanted))

    def list_models(self):
        self.offers = offers()
        self.ui.modelsList.clear()
        for offer in self.offers:
            self.ui.modelsList.addItem(offer.line)

    def model(self):
        typed, row = self.ui.modelEdit.text.strip(), self.ui.modelsList.currentRow
        return typed or (self.offers[row].name if 0 <= row < len(self.offers) else "")

    def model_chosen(self, row):
        if 0 <= row < len(self.offers):
            self.ui.modelEdit.setText("")
            offer = self.offers[row]
            self.ui.offerLabel.setText(described(offer))

    def fetch(self):
        self.models.token = self.ui.tokenEdit.text.strip()
        self.models.fetch(self.model())

    def remove_model(self):
        name = self.model()
        if name and slicer.util.confirmOkCancelDisplay(
            _("Delete all that is on this machine of {model}?").format(model=name)
        ):
            self.models.remove(name)
            self.list_models()

    # What is drawn

    def draw(self):
        self.dirty, self.drawing = False, True
        try:
            self._draw_set_up(self.setting_up.shown())
            self._draw_models()
        finally:
            self.drawing = False
        self._ask()

    def _draw_set_up(self, now):
        ui = self.ui
        for label, text in (
            (ui.headlineLabel, now.headline), (ui.costLabel, now.cost), (ui.packagesLabel, now.packages),
            (ui.notesLabel, now.notes), (ui.setUpMessageLabel, now.message), (ui.doingLabel, now.title),
        ):  # fmt: skip
            label.setTextFormat(qt.Qt.PlainText)
            label.setText(text)
            label.setVisible(bool(text))
        for button, able in (
            (ui.installButton, now.can_install), (ui.stopSetUpButton, now.can_stop), (ui.removeButton, now.can_remove),
        ):  # fmt: skip
            button.setEnabled(able)
        for widget in (
            ui.lookButton, ui.placeBox, ui.pythonBox, ui.environmentEdit, ui.environmentButton, ui.wheelsEdit,
            ui.wheelsButton, ui.proxyEdit, ui.quantisedBox,
        ):  # fmt: skip
            widget.setEnabled(now.can_choose)
        own = now.wishes.place == "own"
        for widget in (ui.pythonLabel, ui.pythonBox, ui.environmentLabel, ui.environmentEdit, ui.environmentButton):
            widget.setVisible(own)
        ui.placeBox.setCurrentIndex(ui.placeBox.findData(now.wishes.place))
        if not ui.environmentEdit.text:
            ui.environmentEdit.setText(str(now.wishes.environment))
        if ui.detailsEdit.plainText != now.log:
            ui.detailsEdit.setPlainText(now.log)
        self._draw_bar(ui.setUpBar, bool(now.title), now.progress)
        if self.then is not None and now.stage in ("looking", "needed", "refused"):
            ui.setUpSection.collapsed = False  # Read waits for it: the reason is there to be seen

    def _draw_models(self):
        ui, models = self.ui, self.models
        ui.fetchingLabel.setText(models.message)
        ui.fetchingLabel.setVisible(bool(models.message))
        ui.fetchButton.setEnabled(not models.doing)
        ui.stopFetchButton.setEnabled(bool(models.doing))
        self._draw_bar(ui.fetchBar, bool(models.doing), models.progress or (0, 0))
        if models.message and not models.doing and [one.line for one in self.offers] != [one.line for one in offers()]:
            self.list_models()

    def _draw_bar(self, bar, visible, progress):
        done, total = progress
        bar.setVisible(visible)
        bar.setMaximum(100 if total else 0)
        bar.setValue(100 * done // total if total else 0)

    def _ask(self):
        """Each question once: the timer goes on while a dialog waits for its answer."""
        if self.asking:
            return
        self.asking = True
        try:
            if self.models.confirm:
                self.models.agree(slicer.util.confirmOkCancelDisplay(self.models.confirm))
            if self.setting_up.shown().stage == "asking":
                self.setting_up.agree(slicer.util.confirmOkCancelDisplay(self.setting_up.shown().message))
        finally:
            self.asking = False
