"""The sample study in Slicer's Sample Data module. It comes with the extension: nothing is downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from MedVLMReaderLib.resources import resource

CATEGORY, NAME = "MedVLM Reader", "MedVLMSample"
THUMBNAIL = Path(__file__).resolve().parents[1] / "Resources" / "Icons" / f"{NAME}.png"


def register():
    """List the sample study; once Slicer has started, for Sample Data has to be there."""
    import SampleData

    scan = resource("sample/sample.nii.gz")
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY, sampleName=NAME, uris=scan.as_uri(), fileNames=f"{NAME}.nii.gz", nodeNames=NAME,
        checksums=f"SHA256:{hashlib.sha256(scan.read_bytes()).hexdigest()}", thumbnailFileName=str(THUMBNAIL),
    )  # fmt: skip
