"""`Console`: what Slicer's Python console asks of the reader, on nodes of a scene that is handed in.

The reader runs in another process, torch never in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError, scene
from MedVLMReaderLib.many import studies_in, studies_of
from MedVLMReaderLib.mrml import Node
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.volume import Volume
from MedVLMReaderLib.worker.client import Client
from MedVLMReaderLib.worker.logic import Logic
from MedVLMReaderLib.worker.plain import Words


class Console:
    """`read`, `ask`, `heatmap`, `readVolumes` and `readFolder` wait, the window staying alive, and return what they
    found. With `on_event`, `read` and `ask` return at once; events are told out of Qt's loop, see `worker.events`.
    What a user can mend is raised as ReaderError."""

    def __init__(self, scene_: Node, client: Client, meanwhile: Callable[[], None]) -> None:
        """`meanwhile` is called often while something is waited for, such as `slicer.app.processEvents`."""
        self.scene, self.client, self.logic = scene_, client, Logic(client, meanwhile)

    def load(self, model: str = "built-in", precision: str = "auto", device: str | None = None) -> str:
        """Use a model from now on; its name, revision and precision."""
        return self.logic.load(model, precision, device)

    def read(self, volumeNode: Node, **options: Any) -> Reading:
        """The model's report of a volume."""
        return self.logic.read(scene.volume_from(volumeNode), **self._about(volumeNode), **options)

    def ask(self, volumeNode: Node, question: str, **options: Any) -> Reading:
        """The answer to a question about a volume; what was asked about it before is told, too."""
        return self.logic.ask(scene.volume_from(volumeNode), question, **self._about(volumeNode), **options)

    def heatmap(self, volumeNode: Node, reading: Reading, words: Words = None, method: str | None = None) -> Volume:
        """Where the model looked for some words of a reading, in patient space."""
        key = self._about(volumeNode)["key"]
        return self.logic.heatmap(scene.volume_from(volumeNode), reading, words, method, key=key)

    def readVolumes(
        self, out: str | Path, volumeNodes: Iterable[Node] | None = None, questions: Sequence[str] = (), **options: Any
    ) -> Any:
        """Read volumes, by default all of the scene, into a folder for each under `out`; a `batch.Report`.

        What is there is skipped. `progress` is told a `batch.Progress` after each; `stopped` may say True to end it.
        """
        studies = studies_in(self.scene) if volumeNodes is None else studies_of(volumeNodes)
        if not studies:
            raise ReaderError("None of these nodes is a scan that can be read. Choose CT or MR volumes.")
        return self.logic.read_studies(studies, out, tuple(questions), **options)

    def readFolder(self, folder: str | Path, out: str | Path, questions: Sequence[str] = (), **options: Any) -> Any:
        """The same of every scan under a folder: DICOM, NIfTI, NRRD, MHA."""
        return self.logic.read_folder(folder, out, tuple(questions), **options)

    def advance(self) -> None:
        """What a timer calls every 10 to 20 ms, for those who do not wait."""
        self.client.advance()

    def close(self) -> None:
        """End the reader's process."""
        self.client.close()

    def _about(self, node: Node) -> dict[str, Any]:
        scene.check_readable(node)
        key: Hashable = (node.GetID(), *scene.stamp(node))
        return {"key": key, "view": scene.view_of(self.scene, node, scene.volume_from(node))}
