"""The panel's part about many scans at once: the scene's volumes, or a folder, into a folder of readings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError, scene
from MedVLMReaderLib.ground import said
from MedVLMReaderLib.mrml import Node
from MedVLMReaderLib.needs import to_fetch
from MedVLMReaderLib.paper import UIDS, Paper
from MedVLMReaderLib.study import Stopped
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.logic import Logic

Tell = Callable[[Any], None]
"""Is told a `batch.Progress` after each scan."""


class Many(Paper):
    """See `panel.Panel`. Each of these waits until all is read; `meanwhile` lets the window live."""

    def __init__(
        self, scene_: Node, client: Client, changed: Callable[[], None], file_of: Callable[[str], str],
        meanwhile: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(scene_, client, changed, file_of, meanwhile)
        self.logic = Logic(client, meanwhile)
        self.reading_many = False

    @said
    def read_scene(self, out: Path, tell: Tell, stopped: Callable[[], bool]) -> None:
        """Draft a report of every scan in the scene; one folder each under `out`, what is there is skipped."""
        studies = studies_in(self.scene)
        self._read_many(lambda: self.logic.read_studies(studies, out, progress=tell, stopped=stopped))

    @said
    def read_folder(self, folder: Path, out: Path, tell: Tell, stopped: Callable[[], bool]) -> None:
        """The same of every scan under a folder."""
        self._read_many(lambda: self.logic.read_folder(folder, out, progress=tell, stopped=stopped))

    def _read_many(self, read: Callable[[], Any]) -> None:
        if self.reading_many:
            raise ReaderError("Many scans are being read already. Wait for them, or cancel them.")
        if to_fetch(self.settings.model):
            raise ReaderError(
                "The chosen model is not on this machine yet. Read one scan with it first: that fetches it."
            )
        self.reading_many, self.message, self.note = True, "", ""
        try:
            chosen = self.settings.model, self.settings.precision
            if chosen != self._loaded_choice or self.client.loaded is None:
                self._loaded_choice = chosen
                self.logic.load(*chosen)
            self.note = told(read())
        except Stopped:  # while the model was loaded, or because all was closed
            self.note = "Stopped."
        finally:
            self.reading_many, self.status, self.progress = False, "", None


def studies_in(scene_: Node) -> list[Any]:
    """What `batch` reads of a scene: each scan that can be read, by an id that its name cannot be told from.

    Ids are of the DICOM instances where Slicer knows them, else of the voxels, so that the same scan is skipped when it
    comes again. Raises ReaderError where there is none.
    """
    found = studies_of(scene.scans(scene_))
    if not found:
        raise ReaderError("The scene holds no scan that can be read. Load CT or MR volumes.")
    return found


def studies_of(nodes: Iterable[Node]) -> list[Any]:
    """The same of some volume nodes; those that are no scans are left out."""
    from MedVLMReaderLib.batch.studies import GivenStudy, opaque

    found: dict[str, Any] = {}
    for node in nodes:
        try:
            volume = scene.volume_from(node)
        except ReaderError:
            continue
        uids = node.GetAttribute(UIDS)
        name = opaque("scene", uids or volume.key)
        found.setdefault(name, GivenStudy(name, volume, (node.GetName(), *(uids or "").split())))
    return list(found.values())


def told(report: Any) -> str:
    """What came of it, in a line."""
    parts = [f"{report.read} read"]
    parts += [f"{report.there} there before"] * bool(report.there)
    parts += [f"{report.failed} failed: see error.json"] * bool(report.failed)
    parts += [f"{report.missing} left"] * bool(report.missing)
    return f"{'Stopped. ' if report.stopped else ''}{', '.join(parts)}, of {report.total}."


def how_far(progress: Any) -> str:
    """Of a `batch.Progress`, in a line."""
    failed = f", {progress.failed} failed" if progress.failed else ""
    left = "" if progress.left_s is None or progress.done >= progress.total else f"; {_duration(progress.left_s)} left"
    return f"{progress.done} of {progress.total} scans{failed}{left}"


def _duration(seconds: float) -> str:
    """About so long: two figures are enough."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
