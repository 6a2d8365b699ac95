"""Whether a model notices that a scan is unlike what it has learned from, even with the right grey levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.study import OUT_OF_DOMAIN
from MedVLMReaderLib.volume import Volume

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

QUANTILES = np.linspace(0, 1, 1025)
FIRST_SEED = 900_000
"""Where the search for a made study of the same modality starts."""


def evaluate(
    reader: Reader, scans: Iterable[Volume], progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Of each scan, in order, whether it is flagged as it is and with the histogram of a made study; and the shares."""
    rows = []
    for count, scan in enumerate(scans, 1):
        like = _made_like(scan)
        rows.append(
            {"as_it_is": flagged(reader, scan), "histogram_matched": flagged(reader, matched(scan, like)),
             "modality": scan.modality, "matched_to": like.source}
        )  # fmt: skip
        progress(count)
    return {
        "scans": len(rows),
        **{f"flagged_{how}": sum(bool(row[how]) for row in rows) for how in ("as_it_is", "histogram_matched")},
        "each": {str(n): row for n, row in enumerate(rows, 1)},
    }


def flagged(reader: Reader, scan: Volume) -> bool:
    """Whether the model says that the scan is out of its domain."""
    return any(note.startswith(OUT_OF_DOMAIN) for note in reader.see(scan).notes)


def matched(scan: Volume, like: Volume) -> Volume:
    """The scan with the grey levels of another: its q-th quantile becomes the other's."""
    known = like.values.astype(np.float32)
    found, places = np.unique(np.quantile(scan.values.astype(np.float32), QUANTILES), return_index=True)
    wanted: Array = np.quantile(known, _middles(places))
    values = np.interp(scan.values.astype(np.float32), found, wanted).astype(np.float32)
    return replace(scan, values=values, modality=like.modality)


def _middles(first: Sequence[int] | Array) -> Array:
    """The quantile in the middle of those that share a value, from the index of the first of each."""
    ends = np.append(np.asarray(first)[1:], len(QUANTILES)) - 1
    middles = (QUANTILES[np.asarray(first)] + QUANTILES[ends]) / 2
    middles[-1] = 1.0
    return np.asarray(middles)


def _made_like(scan: Volume) -> Volume:
    """The first made study of the scan's modality; of MR where the scan does not say."""
    wanted = scan.modality or "MR"
    seed = FIRST_SEED
    while (study := made_study(seed)).volume.modality != wanted:
        seed += 1
    return study.volume
