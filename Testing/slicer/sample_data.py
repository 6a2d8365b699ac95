"""Slicer's Sample Data module as far as an extension uses it: registering a source, and loading one by name."""

from __future__ import annotations

import hashlib
import sys
import types
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedVLMReaderLib.files import read
from Testing.slicer.core import SlicerCore


@dataclass
class Source:
    """As Slicer's SampleDataSource."""

    sampleName: str
    uris: str
    fileNames: str
    nodeNames: str
    checksums: str
    thumbnailFileName: str


class SampleData:
    """The module `SampleData`."""

    def __init__(self, core: SlicerCore) -> None:
        self.core, self.sources = core, dict[str, list[Source]]()
        module: Any = types.ModuleType("SampleData")
        module.SampleDataLogic = types.SimpleNamespace(registerCustomSampleDataSource=self.register)
        module.downloadSample = self.load
        sys.modules["SampleData"] = module

    def register(self, category: str = "Custom", **told: Any) -> None:
        """With the names of Slicer's arguments, and no others; twice is once."""
        source = Source(**told)
        if source not in self.sources.setdefault(category, []):
            self.sources[category].append(source)

    def load(self, name: str) -> Any:
        """Into the cache, checked, and into the scene."""
        source = next(one for found in self.sources.values() for one in found if one.sampleName == name)
        path, _ = urllib.request.urlretrieve(source.uris, Path(self.core.folder) / source.fileNames)
        kind, _, digest = source.checksums.partition(":")
        assert hashlib.new(kind, Path(path).read_bytes()).hexdigest() == digest
        volume = read(Path(path))
        node = self.core.volume(volume.values, volume.grid.affine, source.nodeNames)
        self.core.window(node, 400, 40)
        self.core.show(node)
        return node
