"""The report as PDF: what must be known first, the sections, key images, edits; the warning on every page.

Letters come from fonts inside the file: DejaVu Sans, then installed TrueType fonts that have them. Chinese, Japanese
and Korean without such a font use the viewer's own; a letter that no font has is written as its number, [U+1F9B4].
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.report import BANNER, UNSIGNED, Edit, Report

PLAIN, BOLD = "DejaVuSans", "DejaVuSans-Bold"
VIEWERS = (  # fonts that every PDF viewer is to have, by the letters that each writes
    ("HeiseiMin-W3", ((0x3040, 0x30FF), (0x31F0, 0x31FF))),
    ("HYSMyeongJo-Medium", ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF))),
    ("STSong-Light", ((0x2E80, 0x303F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xFF00, 0xFFEF))),
)
GREY, AMBER = "#555555", "#fff4d6"


def pdf(report: Report, pictures: Sequence[tuple[str, Array]] = ()) -> bytes:
    """The file, A4, the same for the same report. `pictures`: words and (rows, columns, 3) uint8."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import SimpleDocTemplate

    _fonts()
    file = io.BytesIO()
    page = SimpleDocTemplate(
        file, pagesize=A4, leftMargin=20 * mm, rightMargin=20 * mm, topMargin=26 * mm, bottomMargin=20 * mm,
        title=BANNER, author="MedVLM Reader", subject="Draft report", invariant=1,
    )  # fmt: skip
    parts = [*_top(report), *_sections(report), *_verdicts(report.verdicts)]
    parts += [*_pictures(pictures, page.width), *_edits(report.edits)]

    def frame(canvas: Any, _: Any) -> None:
        _frame(canvas, A4, report)

    page.build(parts, onFirstPage=frame, onLaterPages=frame)
    return file.getvalue()


# ---- Parts ----------------------------------------------------------------------------------------------------------


def _top(report: Report) -> Iterator[Any]:
    yield _paragraph("Draft report", 18, bold=True, after=6)
    yield _boxed([f"{BANNER}. {UNSIGNED}", *report.provenance.notes])
    yield _paragraph(report.said, 8.5, colour=GREY, after=2)
    if report.provenance.question:
        yield _paragraph(f"Asked: {report.provenance.question}", 8.5, colour=GREY, after=2)


def _sections(report: Report) -> Iterator[Any]:
    for section in report.sections:
        yield _paragraph(section.heading, 13, bold=True, before=12, after=3, keep=True)
        for line in (section.text or "(nothing)").split("\n"):
            yield _paragraph(line, 10.5, after=3)


def _verdicts(lines: Sequence[str]) -> Iterator[Any]:
    if lines:
        yield _paragraph("Verification", 13, bold=True, before=12, after=3, keep=True)
    for line in lines:
        yield _paragraph(line, 10.5, after=3)


def _pictures(pictures: Sequence[tuple[str, Array]], width: float) -> Iterator[Any]:
    from reportlab.platypus import Image, KeepTogether

    for n, (words, pixels) in enumerate(pictures):
        rows, columns = pixels.shape[:2]
        parts = [_paragraph("Key images", 13, bold=True, before=12, after=3, keep=True)] if n == 0 else []
        parts.append(Image(io.BytesIO(png(pixels)), width, width * rows / columns))
        parts.append(_paragraph(f"{n + 1}. {words} Attention, not a finding.", 8.5, colour=GREY, after=8))
        yield KeepTogether(parts)


def _edits(edits: Sequence[Edit]) -> Iterator[Any]:
    if edits:
        yield _paragraph("Edits", 13, bold=True, before=12, after=3, keep=True)
    for edit in edits:
        yield _paragraph(f"{edit.at}: {edit.heading}", 8.5, bold=True, after=1, keep=True)
        for name, text in (("Before", edit.before), ("After", edit.after)):
            said = "(no such section)" if text is None else text or "(nothing)"
            for line in f"{name}: {said}".split("\n"):
                yield _paragraph(line, 8.5, colour=GREY, after=2)


def _frame(canvas: Any, size: tuple[float, float], report: Report) -> None:
    """The warning at the top, model and page at the bottom, and DRAFT behind the text."""
    wide, high = size
    canvas.saveState()
    canvas.setFillGray(0.94)
    canvas.setFont(BOLD, 96)
    canvas.translate(wide / 2, high / 2)
    canvas.rotate(50)
    canvas.drawCentredString(0, -30, "DRAFT")
    canvas.restoreState()
    canvas.saveState()
    canvas.setFillColor(AMBER)
    canvas.rect(0, high - 46, wide, 46, stroke=0, fill=1)
    canvas.setFillGray(0.1)
    canvas.setFont(BOLD, 11)
    canvas.drawCentredString(wide / 2, high - 28, BANNER.upper())
    canvas.setFont(PLAIN, 8)
    said = f"{report.provenance.model}, revision {report.provenance.revision}"[:90]
    canvas.drawString(57, 30, "".join(letter if font == PLAIN else "?" for letter, font in _lettered(said, PLAIN)))
    canvas.drawRightString(wide - 57, 30, f"{BANNER}. Page {canvas.getPageNumber()}")
    canvas.restoreState()


def _boxed(lines: Sequence[str]) -> Any:
    from reportlab.platypus import Table, TableStyle

    rows = [[_paragraph(line, 9.5, bold=n == 0)] for n, line in enumerate(lines)]
    style = [("BACKGROUND", (0, 0), (-1, -1), AMBER), ("TOPPADDING", (0, 0), (-1, -1), 2)]
    return Table(rows, colWidths=["100%"], style=TableStyle(style), spaceAfter=6)


def _paragraph(
    text: str, size: float, *, bold: bool = False, colour: str = "#111111", before: float = 0, after: float = 0,
    keep: bool = False,
) -> Any:  # fmt: skip
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    name = BOLD if bold else PLAIN
    style = ParagraphStyle(
        "text", fontName=name, fontSize=size, leading=size * 1.4, textColor=colour, spaceBefore=before,
        spaceAfter=after, keepWithNext=keep, wordWrap="CJK" if _mostly_unspaced(text) else None,
    )  # fmt: skip
    return Paragraph(_marked_up(text, name), style)


def _mostly_unspaced(text: str) -> bool:
    """Whether lines may be broken between any two letters."""
    return sum(0x2E80 <= ord(letter) <= 0xD7AF for letter in text) * 2 > len(text)


def png(pixels: Array) -> bytes:
    """A picture as PNG."""
    from matplotlib.image import imsave

    packed = io.BytesIO()
    imsave(packed, pixels, format="png", metadata={"Software": "MedVLM Reader"})
    return packed.getvalue()


# ---- Fonts ----------------------------------------------------------------------------------------------------------


def _marked_up(text: str, name: str) -> str:
    """Text for a paragraph, with the font of each stretch that `name` does not have."""
    runs: list[tuple[str, str]] = []
    for letter, font in _lettered(text.replace("\t", "    "), name):
        if runs and runs[-1][0] == font:
            runs[-1] = (font, runs[-1][1] + letter)
        else:
            runs.append((font, letter))
    return "".join(
        escape(part) if font == name else f'<font name="{font}">{escape(part)}</font>' for font, part in runs
    )


def _lettered(text: str, name: str) -> Iterator[tuple[str, str]]:
    """(letter or its number, font)."""
    for letter in text:
        font = name if letter in " \n" or _has(name, ord(letter)) else _font_for(ord(letter))
        yield (letter, font) if font else (f"[U+{ord(letter):04X}]", name)


@cache
def _fonts() -> None:
    """Register the fonts that every report uses; matplotlib brings them along."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (PLAIN, BOLD):
        _register(name, folder / f"{name}.ttf")


def _register(name: str, path: Path) -> None:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    pdfmetrics.registerFont(TTFont(name, str(path)))


def _has(name: str, code: int) -> bool:
    from reportlab.pdfbase import pdfmetrics

    return code in pdfmetrics.getFont(name).face.charToGlyph


@cache
def _font_for(code: int) -> str:
    """A registered font that has a letter; "" where there is none."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont

    for name, path in _installed():
        if code in _letters(path):
            _register(name, Path(path))
            return name
    for name, blocks in VIEWERS:
        if any(first <= code <= last for first, last in blocks):
            pdfmetrics.registerFont(UnicodeCIDFont(name))
            return name
    return ""


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """(name, path) of the TrueType fonts of this machine; in any order the same."""
    from matplotlib.font_manager import findSystemFonts

    paths = sorted(path for path in findSystemFonts(fontext="ttf") if path.lower().endswith(".ttf"))
    return tuple((f"Font{n}", path) for n, path in enumerate(paths))


@cache
def _letters(path: str) -> frozenset[int]:
    """The letters of a font that reportlab can take: TrueType outlines, readable."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or ()) if "glyf" in font else frozenset()
    except (OSError, TTLibError):
        return frozenset()
