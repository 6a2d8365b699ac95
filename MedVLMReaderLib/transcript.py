"""A chat as HTML for a view: sentences and places are links, everything that a model wrote is text and never HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reading import Span, sentence_spans
from MedVLMReaderLib.results import Kept, provenance

_PLACE = re.compile(r"ras:\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)")
_SENTENCE = re.compile(r"sentence:(\d{1,6})/(\d{1,9})-(\d{1,9})")
_HEADING = re.compile(
    r"^[ \t*#]*(findings|impressions?|conclusions?)[*]*[ \t]*:[ \t]*[*]*", re.IGNORECASE | re.MULTILINE
)
NOTE = '<p style="background-color: #fff4d6; color: #1c1c1c">{}</p>'
VERIFY = "verify:"
CHOSEN = "background-color: #f8d98a; color: #1c1c1c"


@dataclass(frozen=True)
class Link:
    """What was clicked: a stretch of a turn's text, a place, or the question whether the image supports the text."""

    turn: int = -1
    span: Span = (0, 0)
    ras: tuple[float, float, float] | None = None
    verify: bool = False


def link(address: str) -> Link:
    """What an address of ours means. ReaderError for any other."""
    if found := _SENTENCE.fullmatch(address):
        turn, start, stop = (int(part) for part in found.groups())
        return Link(turn, (start, stop))
    if found := _PLACE.fullmatch(address):
        r, a, s = (float(part) for part in found.groups())
        return Link(ras=(r, a, s))
    if address == VERIFY:
        return Link(verify=True)
    raise ReaderError(
        f"'{address[:60]}' is no place in this scan. Only sentences and places (ras:x,y,z) can be clicked."
    )


def linked(text: str, turn: int, chosen: Span | None = None) -> str:
    """A text with each sentence as a link, the chosen one marked."""
    parts, at = [], 0
    for start, stop in sentence_spans(text):
        parts.append(plain(text[at:start]))
        style = f' style="{CHOSEN}"' if chosen == (start, stop) else ' style="color: palette(text)"'
        parts.append(f'<a href="sentence:{turn}/{start}-{stop}"{style}>{plain(text[start:stop])}</a>')
        parts += [f' <a href="{found[0]}">&#8982;</a>' for found in _PLACE.finditer(text[start:stop])]
        if chosen == (start, stop):
            link_style = 'style="color: palette(text)"'
            parts.append(f' <small><a href="{VERIFY}" {link_style}>supported by the image?</a></small>')
        at = stop
    return "".join([*parts, plain(text[at:])])


def plain(text: str) -> str:
    """Text as HTML that shows it letter by letter."""
    return escape(text).replace("\n", "<br>")


def chat(turns: Sequence[Kept], chosen: tuple[int, Span] | None = None, asking: str = "", words: str = "") -> str:
    """Questions and answers after the report, the one that is being written last."""
    parts = [_turn(number, kept, chosen) for number, kept in enumerate(turns) if not kept.is_report]
    if asking:
        parts.append(f"<p><b>{plain(asking)}</b></p><p>{plain(words)} …</p>")
    return "".join(parts)


def _turn(number: int, kept: Kept, chosen: tuple[int, Span] | None) -> str:
    marked = chosen[1] if chosen and chosen[0] == number else None
    cut = "" if kept.turn.reading.complete else " <i>[cut off]</i>"
    return (
        f"<p><b>{plain(kept.turn.question)}</b></p><p>{linked(kept.text, number, marked)}{cut}</p>"
        f"<p><small>{plain(provenance(kept.turn.reading))}</small></p>"
    )


def report(number: int, kept: Kept, chosen: tuple[int, Span] | None = None) -> str:
    """The draft with its notes and where it comes from."""
    notes = "".join(NOTE.format(plain(one)) for one in kept.turn.reading.notes)
    marked = chosen[1] if chosen and chosen[0] == number else None
    return f"{notes}<p>{linked(kept.text, number, marked)}</p>"


def sections(text: str) -> tuple[str, str]:
    """Findings and impression of a report; all of it is findings where it has no such headings."""
    found = {match[1].lower()[:4]: match for match in _HEADING.finditer(text)}
    second = found.get("impr") or found.get("conc")
    first = found.get("find")
    if second is None:
        return text[first.end() :].strip() if first and not text[: first.start()].strip() else text.strip(), ""
    body = text[: second.start()]
    if first is not None and first.start() < second.start() and not text[: first.start()].strip():
        body = text[first.end() : second.start()]
    return body.strip(), text[second.end() :].strip()


def together(findings: str, impression: str) -> str:
    """A report of its two sections."""
    parts = (("Findings", findings.strip()), ("Impression", impression.strip()))
    return "\n".join(f"{name}: {words}" for name, words in parts if words)
