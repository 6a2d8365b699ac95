"""DICOM as input: series found in folders and on servers, told apart, put in order, and read."""

from MedVLMReaderLib.dicom.folder import (
    SeriesFiles,
    check_readable,
    files_of,
    list_series,
    read_series,
    series_files,
)  # fmt: skip
from MedVLMReaderLib.dicom.series import Series, Stack, by_series, depths, is_key, parts, volume_of, with_damaged
from MedVLMReaderLib.dicom.slices import is_dicom

__all__ = [
    "Series", "SeriesFiles", "Stack", "by_series", "check_readable", "depths", "files_of", "is_dicom", "is_key",
    "list_series", "parts", "read_series", "series_files", "volume_of", "with_damaged",
]  # fmt: skip
