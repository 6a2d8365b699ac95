"""Exporting: a reading's report and heatmap as files of the kinds asked for, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.identity import written
from MedVLMReaderLib.export.made import short
from MedVLMReaderLib.export.source import Source
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.reading import Reading, Span, write_whole
from MedVLMReaderLib.report import Report
from MedVLMReaderLib.volume import Volume

DICOM = ("sr", "dicom-pdf", "sc", "pmap", "seg")
OTHER = ("text", "markdown", "pdf", "fhir", "json")
KINDS = (*DICOM, *OTHER)
PACKAGES = {"highdicom": DICOM, "fhir.resources": ("fhir",), "reportlab": ("pdf", "dicom-pdf")}
"""What each kind needs installed."""
MOST = 6
"""Key images at most."""


@dataclass(frozen=True, eq=False)
class Draft:
    """What is exported: a report, the reading that it is made from, and what is known of the scan."""

    report: Report
    reading: Reading
    source: Source | None = None
    """Needed for DICOM."""
    volume: Volume | None = None
    """The scan, for key images where there is no source."""
    words: str | Span | int | None = None
    """What the heatmap objects are of; None: the whole text."""
    least: float = 0.5
    """Share of the heatmap's largest value from which the segmentation marks."""
    subject: str = ""
    """FHIR: the patient's reference on the server."""

    @cached_property
    def pictures(self) -> tuple[tuple[str, Array], ...]:
        """Words and picture of each key image: of sentences that the report still has, findings first of all."""
        volume = self.source.volume if self.source else self.volume
        if volume is None:
            return ()
        return tuple((self.reading.text[slice(*span)], _drawn(self, volume, span)) for span in self._shown())

    def _shown(self) -> list[Span]:
        text = "\n".join(section.text for section in self.report.sections)
        told = {one.sentence for one in self.report.findings if not one.empty}
        spans = [span for span in self.reading.sentences if self.reading.text[slice(*span)] in text]
        chosen = [span for span in spans if self.reading.text[slice(*span)] in told] or spans
        return [span for span in chosen if self._has_heatmap(span)][:MOST]

    def _has_heatmap(self, span: Span) -> bool:
        try:
            return bool(self.reading.heatmaps(span))
        except ReaderError:
            return False

    @cached_property
    def captures(self) -> tuple[Any, ...]:
        """The key images as secondary captures."""
        from MedVLMReaderLib.export.images import secondary_captures

        assert self.source is not None
        return secondary_captures(self.report, self.source, self.pictures)

    @cached_property
    def pdf(self) -> bytes:
        """The report as PDF, with the key images."""
        from MedVLMReaderLib.report_pdf import pdf

        return pdf(self.report, self.pictures)


def _drawn(draft: Draft, volume: Volume, span: Span) -> Array:
    from MedVLMReaderLib.pictures import overlay

    words = draft.reading.text[slice(*span)]
    return overlay(volume, draft.reading.heatmaps(span), title=f"AI generated: {words}")


def files(draft: Draft, kinds: Sequence[str]) -> dict[str, bytes]:
    """File names and contents, nothing written. ReaderError with the reason where one of them cannot be made."""
    for kind in kinds:
        if kind not in KINDS:
            raise ReaderError(f"There is no kind '{kind}'. Known: {', '.join(KINDS)}.")
    draft.report.check_words()
    if draft.source is None and (wanted := [kind for kind in kinds if kind in DICOM]):
        raise ReaderError(
            f"{', '.join(wanted)}: a DICOM object belongs to a patient and a study. Name the DICOM series that was "
            "read as the source."
        )
    out: dict[str, bytes] = {}
    for kind in dict.fromkeys(kinds):
        out |= _dicom(draft, kind, kinds) if kind in DICOM else _other(draft, kind, kinds)
    return out


def export(draft: Draft, kinds: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Write the files; all or none. ReaderError as `files`, OSError where the folder cannot be written."""
    made = files(draft, kinds)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole({folder / name: content for name, content in made.items()})
    return tuple(folder / name for name in made)


def _dicom(draft: Draft, kind: str, kinds: Sequence[str]) -> dict[str, bytes]:
    from MedVLMReaderLib.export import images
    from MedVLMReaderLib.export.sr import structured_report

    source, report = draft.source, draft.report
    assert source is not None
    objects: dict[str, Any]
    if kind == "sr":
        objects = {"report-sr.dcm": structured_report(report, source, draft.captures if "sc" in kinds else ())}
    elif kind == "dicom-pdf":
        objects = {"report-pdf.dcm": images.encapsulated(report, source, draft.pdf)}
    elif kind == "sc":
        if not draft.captures:
            raise ReaderError("There are no key images: no sentence of the report has a heatmap. Leave 'sc' out.")
        objects = {f"key-image-{n:02d}.dcm": one for n, one in enumerate(draft.captures, 1)}
    else:
        heat = draft.reading.heatmap(draft.words)
        words = short(draft.reading.text[slice(*draft.reading.span(draft.words))], 900)
        if kind == "pmap":
            objects = {"attention-map.dcm": images.parametric_map(report, source, heat, words)}
        else:
            objects = {"attention-region.dcm": images.segmentation(report, source, heat, words, draft.least)}
    return {name: written(one, source.identity) for name, one in objects.items()}


def _other(draft: Draft, kind: str, kinds: Sequence[str]) -> dict[str, bytes]:
    import json

    from MedVLMReaderLib.export.fhir import diagnostic_report
    from MedVLMReaderLib.report_pdf import png

    if kind == "text":
        return {"report.txt": draft.report.text().encode()}
    if kind == "markdown":
        names = [(words, f"key-image-{n:02d}.png") for n, (words, _) in enumerate(draft.pictures, 1)]
        drawn = {name: png(pixels) for (_, name), (_, pixels) in zip(names, draft.pictures, strict=True)}
        return {"report.md": draft.report.markdown(names).encode(), **drawn}
    if kind == "pdf":
        return {"report.pdf": draft.pdf}
    if kind == "json":
        return {"report.json": json.dumps(draft.report.plain(), indent=1, ensure_ascii=False).encode()}
    captures = draft.captures if draft.source and "sc" in kinds else ()
    pdf = draft.pdf if "pdf" in kinds or "dicom-pdf" in kinds else b""
    return {"report-fhir.json": diagnostic_report(draft.report, draft.source, captures, pdf, draft.subject).encode()}
