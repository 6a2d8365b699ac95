"""The web site builds without a warning, holds every page, and fetches nothing from anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'medvlmreader[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr), done.stderr
    return place


def test_every_page_is_built_and_can_be_reached_from_the_first(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
        assert f'"{page.stem}.html"' in first or page.stem == "index", page.name


def test_the_site_loads_nothing_from_another_place(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"[^>]*>', text)
        assert all(not one.startswith(("http:", "https:", "//")) for pair in loaded for one in pair), page.name


def test_pictures_of_the_pages_have_words_for_those_who_cannot_see_them() -> None:
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        for words, _ in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(words.split()) >= 4, page.name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_that_are_not_on_the_site_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            assert (ROOT / path).is_file(), link
        if anchor and path.endswith(".md"):
            assert anchor in anchors(ROOT / path), link


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as the site and the forge name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in headings}


def test_the_first_page_leads_each_of_the_users_to_a_page_of_theirs() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in ("slicer-module", "attention", "batch", "tutorial", "heatmaps", "models", "privacy", "troubleshooting"):
        assert f"({page}.md)" in text
