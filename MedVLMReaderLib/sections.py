"""The sections of a report: parts of a text under the headings that reports have."""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADINGS = {
    "findings": "Findings", "impression": "Impression", "impressions": "Impression", "conclusion": "Conclusion",
    "conclusions": "Conclusion", "summary": "Summary", "technique": "Technique", "comparison": "Comparison",
    "indication": "Indication", "history": "History", "recommendation": "Recommendations",
    "recommendations": "Recommendations",
}  # fmt: skip
REMARKS = "Remarks"
"""Heading of our own, for what stands before the first one."""
_NAMES = "|".join(sorted(HEADINGS, key=len, reverse=True))
HEADING = re.compile(
    rf"(?:^|(?<=[.!?]\s)(?=[*#_]*[A-Z]))[ \t]*[*#_]*[ \t]*({_NAMES})[*_]*[ \t]*(?::[*_]*[ \t]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    heading: str
    text: str


def sections_of(text: str) -> tuple[Section, ...]:
    """The parts of a text by its headings; without any, all of it is findings.

    What stands before the first heading comes under "Remarks"; a heading that comes twice is continued.
    """
    text = cleaned(text)
    found = list(HEADING.finditer(text))
    if not found:
        return (Section("Findings", text),)
    parts = {REMARKS: text[: found[0].start()].strip()}
    for n, heading in enumerate(found):
        stop = found[n + 1].start() if n + 1 < len(found) else len(text)
        name = HEADINGS[heading[1].lower()]
        parts[name] = "\n".join(part for part in (parts.get(name, ""), text[heading.end() : stop].strip()) if part)
    return tuple(Section(name, words) for name, words in parts.items() if words or name != REMARKS)


def cleaned(text: str) -> str:
    """The text as every format can hold it: lines ended by \\n, no control characters, no space around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.rstrip() for line in _CONTROL.sub("", text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
