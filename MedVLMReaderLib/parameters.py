"""What the panel is set to, kept in the scene: a typed store on a scripted-module node."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.mrml import Node

MODULE = "MedVLMReader"
FORMAT = 1
VOLUME, REGION = "volume", "region"
"""Roles of node references: they survive a scene in which nodes get other IDs."""


@dataclass(frozen=True)
class Settings:
    """What the user has chosen. Every field is plain: a text, a number, yes or no."""

    model: str = "built-in"
    precision: str = "auto"
    method: str = ""
    """How the heatmap is found: attention or relevance; "": the model's own way."""
    opacity: float = 0.6
    threshold: float = 1.0
    """Times an even spread below which nothing is drawn."""
    context: str = ""
    """What a question is about: "" the whole scan, a plane's name, or "region"."""
    kinds: str = "pdf text"
    """What a report is exported as, see `export.writing`; separated by spaces."""
    turn: int = -1
    """Of the shown heatmap: which turn of the chat; -1 where none is shown."""
    start: int = 0
    stop: int = 0
    """[start, stop) letters of its text."""


def node_of(scene: Node) -> Node:
    """Our only node of that kind, made where there is none."""
    found = scene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")
    if found is not None:
        return found
    node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
    node.UnRegister(None)
    node.SetSingletonTag(MODULE)
    node.SetModuleName(MODULE)
    node.SetName(MODULE)
    return scene.AddNode(node)


def load(scene: Node) -> Settings:
    """What the scene holds; defaults for what it does not. ReaderError where a newer version wrote it."""
    node = node_of(scene)
    written = node.GetParameter("format")
    if written and (not written.isdigit() or int(written) > FORMAT):
        raise ReaderError(
            f"This scene was saved by a newer MedVLM Reader (format {written}; this version reads up to {FORMAT}). "
            "What it holds of readings is left as it is. Update MedVLM Reader to see it."
        )
    said = {one.name: node.GetParameter(one.name) for one in fields(Settings)}
    return replace(
        Settings(), **{name: value for name, text in said.items() if (value := _value(name, text)) is not None}
    )


def _value(name: str, text: str) -> Any:
    """The field's value; None where there is none or it is damaged: settings are not worth a complaint."""
    usual = getattr(Settings(), name)
    if not text:  # never written, or written as empty, which no other default is
        return "" if name in ("method", "context") else None
    try:
        return type(usual)(text)
    except ValueError:
        return None


def store(scene: Node, settings: Settings) -> None:
    """Keep them; only what changed is written."""
    node = node_of(scene)
    for name, value in {"format": FORMAT, **vars(settings)}.items():
        if node.GetParameter(name) != str(value):
            node.SetParameter(name, str(value))


def node_at(scene: Node, role: str) -> Node | None:
    """The node that the user chose for a role; None where there is none."""
    return node_of(scene).GetNodeReference(role)


def put_node(scene: Node, role: str, node: Node | None) -> None:
    """Choose a node for a role."""
    chosen = node.GetID() if node is not None else None
    if node_of(scene).GetNodeReferenceID(role) != chosen:
        node_of(scene).SetNodeReferenceID(role, chosen)
