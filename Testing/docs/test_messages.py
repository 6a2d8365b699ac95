"""Each message that a user can meet stands on the page of troubleshooting, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.docs.messages import Library, Message
from Testing.docs.tables import MODELS, PAGE, line_of, models, troubleshooting, unexplained

PASSED_ON = {"export.sending", "ground", "hub", "studies", "worker.blocking", "worker.failures"}
"""Modules that raise again what another one said."""


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(scope="module")
def messages(library: Library) -> list[Message]:
    return library.messages()


def test_every_message_of_the_library_stands_on_the_page(messages: list[Message]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [one for one in messages if f"{line_of(one.text)}\n" not in page]
    assert not missing, f"Run: make troubleshooting\n{missing}"


def test_the_page_has_no_message_that_is_gone_and_none_under_another_topic(messages: list[Message]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == troubleshooting(page, messages), "Run: make troubleshooting"


def test_a_message_that_does_not_say_what_to_do_has_a_line_that_does() -> None:
    assert not unexplained(PAGE.read_text(encoding="utf-8"))


def test_only_known_places_raise_words_that_come_from_elsewhere(library: Library) -> None:
    found = {line.split(": ", 1)[0].split(".", 1)[-1] if line.startswith("batch.") else line.split(": ", 1)[0]
             for line in library.passed_on()}  # fmt: skip
    assert found <= PASSED_ON, library.passed_on()


def test_words_of_constants_functions_and_earlier_lines_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "A = 'Name --out.'\nclass Mine(ReaderError): pass\n"
        "def why(n):\n    if n:\n        return f'{n} are gone. Copy them.'\n    return 'All is gone.'\n"
        "def a(n):\n    raise Mine(why(n))\n"
        "def b(n):\n    text = f'No {n}. '\n    raise ReaderError(text + A)\n"
        "def c(n):\n    raise ReaderError(f'{n!r}')\n"
        "def d(self, why):\n    self.message = why or f'Stopped at {why}. Try again.'\n"
    )
    (tmp_path / "pip_words.py").write_text("TROUBLES: tuple = (((('sign',)), 'The disk is ' + 'full. Make room.'),)\n")
    found = Library(tmp_path)
    assert {one.text for one in found.messages()} == {
        "… are gone. Copy them.",
        "All is gone.",
        "No …. Name --out.",
        "Stopped at …. Try again.",
        "The disk is full. Make room.",
    }
    assert [one.split(":")[0] for one in found.passed_on()] == ["one"]


def test_a_note_below_a_message_stays_when_the_page_is_written_again(messages: list[Message]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("- ") and not line.endswith("**"))
    noted = page.replace(f"{line}\n", f"{line}\n    - A note.\n", 1)
    assert troubleshooting(noted, messages) == noted


def test_the_table_of_models_is_that_of_the_library() -> None:
    page = MODELS.read_text(encoding="utf-8")
    assert page == models(page), "Run: make troubleshooting"
