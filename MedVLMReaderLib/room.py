"""Whether a scan fits the memory that is free, asked before it is read: afterwards the system may end the program."""

from __future__ import annotations

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.memory import free_memory

BYTES_A_VOXEL = 12
"""What reading and preparing a scan takes at its peak: the stored numbers, a copy in 32 bits, and one on the way."""


def check_room(voxels: int) -> None:
    """Raises ReaderError where so many voxels would need more memory than is free."""
    needed = voxels * BYTES_A_VOXEL
    if needed > free_memory():  # how much is free is not said: the same scan has the same error.json
        raise ReaderError(
            f"The scan has {voxels / 1e6:,.0f} million voxels and needs about {needed / 2**30:,.1f} GB of memory, more "
            "than is free. Crop or resample it, or read it on a larger machine."
        )
