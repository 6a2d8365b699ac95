"""The pictures of a reading as files in memory: one a sentence, and the page that shows them by a click."""

from __future__ import annotations

import tempfile
from pathlib import Path

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.pictures import overlay
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.report_page import page
from MedVLMReaderLib.volume import Volume


def sentence_pictures(reading: Reading, volume: Volume) -> dict[str, bytes]:
    """sentence-01.png ... for every sentence that has a heatmap, and report.html."""
    pictures: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="medvlmreader-") as scratch:
        path = Path(scratch) / "picture.png"
        for number, span in enumerate(reading.sentences):
            try:
                heats = reading.heatmaps(number)
            except ReaderError:
                continue  # a sentence without attention has no picture
            overlay(volume, heats, title=reading.text[slice(*span)], path=path)
            pictures[number] = path.read_bytes()
    written = f"Written by {reading.model}, revision {reading.revision}. Not for clinical use."
    files = {f"sentence-{number + 1:02d}.png": content for number, content in pictures.items()}
    return files | {"report.html": page(reading, pictures, reading.question, written).encode()}
