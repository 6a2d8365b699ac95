"""Parts of the pages that follow from the source, written between marks: `make troubleshooting`.

`<!-- messages of: dicom* files -->` ... `<!-- end -->` holds the messages of modules that fit the patterns and no
earlier mark; a note that somebody has indented below a message stays with it. `<!-- table of models -->` holds the
models and their licences.
"""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from MedVLMReaderLib.models import CARDS, Card
from Testing.docs.messages import ROOT, Library, Message

PAGE, MODELS = ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "models.md"
MARKED = re.compile(r"(<!-- messages of: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table of models -->\n).*?(<!-- end -->)", re.DOTALL)
NOTE = "    "
SAYS_WHAT_TO_DO = re.compile(
    r"\b(name|choose|copy|export|get|ask|mend|leave|lower|look|restore|should|such as|needs|three numbers)\b",
    re.IGNORECASE,
)
"""In a message of one sentence: it says what is wanted."""


def troubleshooting(page: str, messages: list[Message]) -> str:
    """The page with all messages under their topics. ValueError where a message has no topic."""
    notes, left = notes_of(page), list(messages)

    def topic(found: re.Match[str]) -> str:
        nonlocal left
        patterns = found[2].split()
        mine = [one for one in left if any(fnmatchcase(one.module, pattern) for pattern in patterns)]
        left = [one for one in left if one not in mine]
        lines = sorted({line_of(one.text) for one in mine}, key=by_words)
        return found[1] + "".join(f"{line}\n{notes.get(line, '')}" for line in lines) + found[4]

    page = MARKED.sub(topic, page)
    if left:
        raise ValueError(f"No topic of troubleshooting.md takes {left[0].module}.")
    return page


def by_words(line: str) -> tuple[str, str]:
    """Messages in the order of their first fixed words."""
    return re.sub(r"[^a-z ]", "", line.lower()).strip(), line


def line_of(text: str) -> str:
    """A message as an entry: what happened in bold, then what to do."""
    parts = re.split(r"(?<=[.!?]) (?=[A-Z'\d])", text, maxsplit=1)
    return " ".join(["-", f"**{escaped(parts[0])}**", *(escaped(part) for part in parts[1:])])


def escaped(text: str) -> str:
    """Without what Markdown would take for its own."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)


def notes_of(page: str) -> dict[str, str]:
    """What is indented below each message, where it stands first."""
    found: dict[str, str] = {}
    for entry in re.finditer(rf"^(- .*)\n((?:{NOTE}.*\n)+)", page, re.MULTILINE):
        found.setdefault(entry[1], entry[2])
    return found


def unexplained(page: str) -> list[str]:
    """Messages that do not say what to do, with no note below them that does."""
    notes = notes_of(page)
    inside = "".join(found[3] for found in MARKED.finditer(page))
    entries = [line for line in inside.splitlines() if line.startswith("- ")]
    return [line for line in entries if line.endswith("**") and not SAYS_WHAT_TO_DO.search(line) and line not in notes]


def models(page: str) -> str:
    """The page with the table of models."""
    rows = "\n".join(row(card) for card in CARDS.values())
    head = "| name | what | source | licence of the weights | parameters | can | tried |\n|" + " --- |" * 7
    return TABLE.sub(lambda found: f"{found[1]}{head}\n{rows}\n{found[2]}", page)


def row(card: Card) -> str:
    """A line of the table; what is from memory alone with a question mark."""
    doubt = {name: " ?" if name in card.unsure else "" for name in ("licence", "parameters")}
    count = f"{card.parameters / 1e9:.1f} billion" if card.parameters >= 1e9 else f"{card.parameters / 1e6:.0f} million"
    source = "comes along" if card.shipped else f"[{card.source}](https://huggingface.co/{card.source})"
    cells = (
        f"`{card.name}`", card.title, source + (", gated" if card.gated else ""), card.licence + doubt["licence"],
        count + doubt["parameters"], ", ".join(card.can), "yes" if card.tried else "no",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def written() -> dict[Path, str]:
    """Each page as it should be."""
    return {
        PAGE: troubleshooting(PAGE.read_text(encoding="utf-8"), Library().messages()),
        MODELS: models(MODELS.read_text(encoding="utf-8")),
    }


def main() -> int:
    """Write the pages; 1 where a message has still to be explained by hand."""
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
    left = unexplained(PAGE.read_text(encoding="utf-8"))
    for line in left:
        print(f"Say below it, indented by four spaces, what to do: {line}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
