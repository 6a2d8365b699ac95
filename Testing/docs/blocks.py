"""Commands and code of the pages: each fenced block, and which of its lines cannot run here, with the reason.

Above a block, `<!-- not run here: REASON -->` leaves it out; `<!-- not run here, lines with "TEXT": REASON -->` only
those lines. What is left out is still parsed.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md", ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "decisions.md"),
)  # fmt: skip
FENCE = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r'<!-- not run here(?:, lines with "([^"]+)")?: (.+?) -->')
RUN, SHOWN = {"bash", "python"}, {"text", "yaml", "json", "toml"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, language, text, and the reasons why something of it is not run."""

    page: Path
    line: int
    language: str
    text: str
    left_out: dict[str, str]
    """A part of a line -> why lines with it are not run; "" stands for the whole block."""

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    def why_not(self, line: str) -> str:
        """Why a line is not run; empty where it is."""
        return next((why for part, why in self.left_out.items() if part in line), "")

    def commands(self) -> list[str]:
        """The lines of a shell's block without comments, those that go on joined."""
        joined = self.text.replace("\\\n", " ")
        lines = (" ".join(shlex.split(line, comments=True, posix=False)) for line in joined.splitlines())
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        above, marks = text[: fence.start()].rstrip(), {}
        while above.endswith("-->"):
            start = above.rindex("<!--")
            if mark := MARK.fullmatch(above[start:]):
                marks[mark[1] or ""] = mark[2]
            above = above[:start].rstrip()
        code = "".join(line.removeprefix(fence[1]) for line in fence[3].splitlines(keepends=True))
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, fence[2], code, marks))
    return found


def outside(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)
