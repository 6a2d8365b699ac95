"""A report as one HTML file, to open anywhere: a click on a sentence shows where the model looked for it.

It holds no script, and nothing is fetched: choosing a sentence is a form's radio button, which needs neither.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.slices import Curve, slice_curves

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #1c1c1c;
  background: #fff }
.note { background: #fff4d6; padding: .5rem .8rem; margin: .4rem 0 }
.text { white-space: pre-wrap; font-size: 1.1rem }
label { cursor: pointer; border-bottom: 2px solid #c9820a }
label:hover { background: #fdeecb }
input.pick { position: absolute; opacity: 0 }
section { display: none } img { width: 100%; height: auto }
.curves { display: flex; gap: 1rem; flex-wrap: wrap } figure { margin: 0; flex: 1 1 300px }
figcaption, footer { color: #555; font-size: .85rem }
"""


def page(reading: Reading, pictures: Mapping[int, bytes], question: str = "", written: str = "") -> str:
    """The whole file. `pictures`: PNG files by sentence; a sentence without one cannot be clicked.

    `question` as it was asked, "" for a report; `written` says who wrote it. All of it is escaped.
    """
    numbers = [n for n in range(len(reading.sentences)) if n in pictures]
    chosen = "".join(
        f"#s{n}:checked ~ section#p{n} {{ display: block }}"
        f"#s{n}:checked ~ .text label[for=s{n}] {{ background: #f8d98a }}"
        f"#s{n}:focus-visible ~ .text label[for=s{n}] {{ outline: 2px solid #06c }}\n"
        for n in numbers
    )
    body = "\n".join(_body(reading, pictures, numbers, question, written))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width"><title>Reading</title>\n'
        f"<style>{STYLE}{chosen}</style></head><body>\n{body}\n</body></html>\n"
    )


def _body(
    reading: Reading, pictures: Mapping[int, bytes], numbers: list[int], question: str, written: str
) -> Iterator[str]:
    yield from (f'<p class="note">{escape(note)}</p>' for note in reading.notes)
    if question.strip():
        yield f"<p><b>Question:</b> {escape(question.strip())}</p>"
    if not reading.complete:
        yield '<p class="note">Incomplete: stopped, or cut off at its longest length.</p>'
    for n in numbers:
        checked = " checked" if n == numbers[0] else ""
        yield f'<input class="pick" type="radio" name="s" id="s{n}" aria-label="Sentence {n + 1}"{checked}>'
    yield f'<p class="text">{_text(reading, numbers)}</p>'
    if numbers:
        yield "<p>Click a sentence to see where the model looked. Attention, not a finding.</p>"
    for n in numbers:
        yield f'<section id="p{n}">{_shown(reading, n, pictures[n])}</section>'
    yield f"<footer>{escape(written or 'Not for clinical use.')}</footer>"


def _text(reading: Reading, numbers: list[int]) -> str:
    """The text, each sentence that has a picture as a label of its button."""
    parts, at = [], 0
    for n in numbers:
        start, stop = reading.sentences[n]
        parts.append(escape(reading.text[at:start]))
        parts.append(f'<label for="s{n}">{escape(reading.text[start:stop])}</label>')
        at = stop
    return "".join([*parts, escape(reading.text[at:])]) or "(The model wrote nothing.)"


def _shown(reading: Reading, n: int, picture: bytes) -> str:
    """A sentence's planes, and how the slices of each plane share its heatmap."""
    coded = base64.b64encode(picture).decode("ascii")
    image = f'<img alt="Three planes through the peak" src="data:image/png;base64,{coded}">'
    try:
        curves = slice_curves(reading.heatmap(n))
    except ReaderError:
        return image
    return f'{image}<div class="curves">{"".join(_drawn(curve) for curve in curves)}</div>'


def _drawn(curve: Curve) -> str:
    """A curve as a drawing: slices across, their shares up."""
    width, height = 300.0, 90.0
    first, last = float(curve.places_mm[0]), float(curve.places_mm[-1])
    top = max(float(curve.shares.max()), 1e-12)
    steps = [(x - first) / ((last - first) or 1.0) * width for x in curve.places_mm]
    points = " ".join(
        f"{x:.1f},{height - y / top * (height - 6):.1f}" for x, y in zip(steps, curve.shares, strict=True)
    )
    coordinate = {"axial": "S", "coronal": "A", "sagittal": "R"}[curve.plane]
    most = float(curve.places_mm[curve.shares.argmax()])
    return (
        f'<figure><svg viewBox="0 0 {width:.0f} {height:.0f}" width="100%" role="img" '
        f'aria-label="Attention by {curve.plane} slice"><polyline points="{points}" fill="none" stroke="#c9820a" '
        'stroke-width="2"/>'
        f'<line x1="0" x2="{width:.0f}" y1="{height:.0f}" y2="{height:.0f}" stroke="#888"/></svg>'
        f"<figcaption>{curve.plane.capitalize()} slices, {coordinate} {first:.0f} to {last:.0f} mm; "
        f"most at {most:.0f} mm with {top:.1%}.</figcaption></figure>"
    )
