"""Readings in the scene: a text for people under the scan, and beside it, hidden, all that a reading holds."""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.mrml import ROLE, SOURCE, Node, at_once, below, made, ours, remove
from MedVLMReaderLib.place import Place
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.session import Turn

TEXT, RECORD = "reading", "record"
FORMAT = 1


@dataclass(eq=False)
class Kept:
    """A turn of the chat as the scene keeps it."""

    turn: Turn
    moved: Array
    """(4, 4) the transform above the scan when it was read."""
    edited: str | None = None
    """What the radiologist has made of the text; None where it is untouched."""
    is_report: bool = False
    key: str = ""
    """`Volume.key` of the scan as it was read."""

    @cached_property
    def packed(self) -> str:
        """The reading's arrays as letters; made once, because a text is edited often."""
        file = io.BytesIO()
        np.savez(file, **self.turn.reading.plain()[1])  # type: ignore[arg-type]
        return base64.b64encode(zlib.compress(file.getvalue(), 1)).decode("ascii")

    @property
    def text(self) -> str:
        """As it is now."""
        return self.turn.reading.text if self.edited is None else self.edited


def provenance(reading: Reading) -> str:
    """Who wrote it, how and when; goes wherever the text goes."""
    precision = reading.options.get("precision")
    parts = [reading.model, f"revision {reading.revision}", *([str(precision)] if precision else []), reading.created]
    cut = "" if reading.complete else "Incomplete: stopped or cut off. "
    return f"{cut}Written by {', '.join(parts)}. Not for clinical use."


def for_people(kept: Kept) -> str:
    """The text with its question and where it comes from: to be copied, saved and read in the scene."""
    asked = "" if kept.is_report else f"Question: {kept.turn.question}\n\n"
    notes = "".join(f"Note: {note}\n" for note in kept.turn.reading.notes)
    edited = "Edited after it was written.\n" if kept.edited is not None else ""
    return f"{asked}{kept.text.strip() or '(nothing)'}\n\n{notes}{edited}{provenance(kept.turn.reading)}\n"


def keep(scene: Node, scan: Node, number: int, kept: Kept) -> None:
    """Write a turn into the scene, in the place of the one of that number and of all after it."""
    remove(scene, [node for node in of_scan(scene, scan) if _number(node) >= number])
    name = "Report" if kept.is_report else f"Answer {number + 1}"
    text = made(scene, TEXT, "vtkMRMLTextNode", f"MedVLM {name}")
    record = made(scene, RECORD, "vtkMRMLTextNode", f"MedVLM record {number + 1}", kept=True)
    record.SetHideFromEditors(True)
    for node in (text, record):
        node.SetForceCreateStorageNode(node.CreateStorageNodeAlways)
        node.SetAttribute("MedVLM.turn", str(number))
        node.SetNodeReferenceID(SOURCE, scan.GetID())
    reading = kept.turn.reading
    for one in ("question", "model", "revision", "created"):
        text.SetAttribute(f"MedVLM.{one}", str(getattr(reading, one)))
    below(scene, scan, text)
    _write(text, record, kept)


def rewrite(scene: Node, scan: Node, number: int, kept: Kept) -> None:
    """Write a turn whose text was edited, or that was looked at again."""
    found = {node.GetAttribute(ROLE): node for node in of_scan(scene, scan) if _number(node) == number}
    if TEXT in found and RECORD in found:
        _write(found[TEXT], found[RECORD], kept)
    else:  # somebody has deleted one of them
        keep(scene, scan, number, kept)


def _write(text: Node, record: Node, kept: Kept) -> None:
    for node, content in ((text, for_people(kept)), (record, json.dumps(_plain(kept), default=_listed))):
        if node.GetText() != content:
            with at_once(node):
                node.SetText(content)


def of_scan(scene: Node, scan: Node) -> list[Node]:
    """The nodes of a scan's readings."""
    return [one for one in (*ours(scene, TEXT), *ours(scene, RECORD)) if one.GetNodeReference(SOURCE) is scan]


def orphans(scene: Node) -> list[Node]:
    """Nodes of ours whose scan is gone, as after it was deleted."""
    found = [one for role in (TEXT, RECORD, "attention", "curve") for one in ours(scene, role)]
    return [one for one in found if one.GetNodeReferenceID(SOURCE) is None or one.GetNodeReference(SOURCE) is None]


def kept_of(scene: Node, scan: Node) -> list[Kept]:
    """The turns of a scan's chat, in their order. ReaderError where one is damaged or of a newer version."""
    records = [node for node in of_scan(scene, scan) if node.GetAttribute(ROLE) == RECORD]
    return [_from_plain(node.GetText() or "") for node in sorted(records, key=_number)]


def _number(node: Node) -> int:
    said = node.GetAttribute("MedVLM.turn") or ""
    return int(said) if said.isdigit() else 0


def _listed(value: Any) -> Any:
    """numpy's numbers and arrays for JSON."""
    return value.tolist()


def _plain(kept: Kept) -> dict[str, Any]:
    content, _ = kept.turn.reading.plain()
    place = kept.turn.place
    return {
        "format": FORMAT, "question": kept.turn.question, "place": place and place.plain(), "edited": kept.edited,
        "is_report": kept.is_report, "moved": kept.moved.tolist(), "key": kept.key, "reading": content,
        "arrays": kept.packed,
    }  # fmt: skip


def _from_plain(text: str) -> Kept:
    try:
        content = json.loads(text)
        number = int(content["format"])
        if number > FORMAT:
            raise ReaderError(
                f"This scene's readings were saved by a newer MedVLM Reader (format {number}; this version reads up to "
                f"{FORMAT}). They are left as they are. Update MedVLM Reader to see them."
            )
        with np.load(io.BytesIO(zlib.decompress(base64.b64decode(content["arrays"]))), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        place, moved = content["place"], np.array(content["moved"], np.float64).reshape(4, 4)
        turn = Turn(
            str(content["question"]), Reading.from_plain(content["reading"], arrays), place and Place.from_plain(place)
        )
        edited = content["edited"]
        is_report, key = bool(content["is_report"]), str(content["key"])
        return Kept(turn, moved, None if edited is None else str(edited), is_report, key)
    except ReaderError:
        raise
    except Exception as damage:  # zip files, base64, json and numpy each raise their own
        raise ReaderError(f"A reading in this scene is damaged ({damage!r}). Read the scan again.") from damage
