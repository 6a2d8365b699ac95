"""docs/images/sentence.png, the first picture of README and documentation: `make screenshots`."""

from __future__ import annotations

import sys
from pathlib import Path

from MedVLMReaderLib.files import read
from MedVLMReaderLib.pictures import overlay
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.resources import resource

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "sentence.png"


def main() -> int:
    """Read the sample and draw the last finding in the liver, as `read` does; 1 where the report has none."""
    scan, reader = read(resource("sample/sample.nii.gz")), load()
    reading = reader.report(reader.see(scan))
    said = [n for n, span in enumerate(reading.sentences) if "mm in the liver" in reading.text[slice(*span)]]
    if not said:
        print("The report of the sample names nothing in the liver.")
        return 1
    overlay(scan, reading.heatmaps(said[-1]), title=reading.text[slice(*reading.sentences[said[-1]])], path=OUT)
    print(OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
