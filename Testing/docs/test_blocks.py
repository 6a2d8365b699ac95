"""Every command and every piece of code on the pages runs; what cannot run here says why, and is at least right."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

from MedVLMReaderLib.cli import main, parser
from MedVLMReaderLib.files import read
from MedVLMReaderLib.volume import Volume
from Testing.docs.blocks import PAGES, ROOT, RUN, SHOWN, Block, blocks, outside
from Testing.made_readings import WHO
from Testing.made_scans import write_series
from Testing.tiny_scan import tiny_scan, write_tiny_scan

EVERY = [block for page in PAGES for block in blocks(page)]
RUNNING = [page for page in PAGES if any(one.language in RUN and "" not in one.left_out for one in blocks(page))]
FIRST = ["read", "chest.nii.gz", "--out", "readings/chest"]
SHELL = re.compile(r"[|&;<>]|\$\(")
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def options() -> set[str]:
    """All that the command line knows."""
    every = next(action.choices for action in parser()._actions if action.choices)
    assert isinstance(every, dict)
    return {one for command in every.values() for action in command._actions for one in action.option_strings}


def ours(line: str) -> list[str] | None:
    """What is typed after `medvlmreader` in a line; None where another program is called."""
    words = re.split(r"\bmedvlmreader ", line, maxsplit=1)
    return shlex.split(re.split(SHELL, words[1])[0]) if len(words) == 2 and "pip" not in words[0] else None


# What is on the pages is right, whether it runs here or not


@named
def test_every_block_names_its_language_and_no_command_hides_in_another_kind_of_text(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN | SHOWN, block.name
        if block.language == "text":
            assert not re.search(r"^\$? ?(medvlmreader|make|pip|python)\b", block.text, re.MULTILINE), block.name
    assert not re.search(r"(?:^|\n)\n    (?:medvlmreader|make|pip|python|from|import) ", outside(page)), page.name


@pytest.mark.parametrize("block", [one for one in EVERY if one.language == "bash"], ids=lambda one: one.name)
def test_every_command_on_the_pages_is_understood_by_the_command_line(block: Block) -> None:
    for line in block.commands():
        if (words := ours(line)) is not None:
            try:
                assert parser().parse_args([word.replace("$head", "head") for word in words]).run
            except SystemExit:
                pytest.fail(f"{block.name}: {line}")
        elif line.startswith("make "):
            done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [one for one in EVERY if one.language == "python"], ids=lambda one: one.name)
def test_every_name_that_code_on_the_pages_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("MedVLMReaderLib"):
            module = importlib.import_module(str(node.module))
            for one in node.names:
                assert hasattr(module, one.name) or importlib.import_module(f"{node.module}.{one.name}"), block.name


@named
def test_commands_options_and_targets_in_running_text_exist(page: Path) -> None:
    text = outside(page)
    commands = next(action.choices for action in parser()._actions if action.choices)
    for span in re.findall(r"`([^`\n]+)`", text):
        if found := re.match(r"medvlmreader ([a-z]+)", span):
            assert found[1] in commands, span
        if found := re.match(r"make ([a-z-]+)", span):
            assert re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), span
    if page.name not in ("CONTRIBUTING.md", "checklist.md", "troubleshooting.md"):
        # Slicer's, pip's, the benchmarks', torchrun's
        known = options() | {"--disable-settings", "--force-reinstall", "--only", "--nproc-per-node"}
        spans = " ".join(re.findall(r"`([^`\n]+)`", text))
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", spans)) <= known


def test_whatever_is_not_run_says_why() -> None:
    left = [(one.name, part, why) for one in EVERY for part, why in one.left_out.items()]
    for name, part, why in left:
        print(f"{name}{f' ({part})' if part else ''}: {why}")
    assert all(len(why) > 9 for _, _, why in left)
    for block in EVERY:
        for part in block.left_out:
            assert not part or any(part in line for line in block.text.splitlines()), f"{block.name}: {part}"


# What can run, runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the files that the pages name: small scans, and a reading of one."""
    place, before = tmp_path_factory.mktemp("work"), Path.cwd()
    (place / "Resources").symlink_to(ROOT / "Resources")
    shutil.copy(ROOT / "Resources" / "sample" / "sample.nii.gz", place / "chest.nii.gz")
    write_tiny_scan(place / "studies" / "one.nii.gz", 1)
    write_tiny_scan(place / "studies" / "two.nii.gz", 2)
    (place / "studies.csv").write_text("path\nstudies/one.nii.gz\n")
    (place / "questions.txt").write_text("Is there a nodule?\n")
    scan, uids = read(place / "chest.nii.gz"), ("StudyInstanceUID", "FrameOfReferenceUID")
    who = {**WHO, "SliceThickness": "5", **{name: generate_uid() for name in uids}}
    write_series(place / "dicom_folder", scan.values, scan.grid, **who)
    for name in ("masks", "true-masks"):
        (place / name).mkdir()
        labels = (tiny_scan().values > 50).astype("uint8")
        Volume(labels, tiny_scan().grid, "CT").save(place / name / "one.nii.gz")
    os.chdir(place)
    assert main(FIRST) == 0
    yield place
    os.chdir(before)


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Commands that have run: the same one on another page is not run again, nor the one that `folder` begins with."""
    return {f"medvlmreader {' '.join(FIRST)}"}


@pytest.fixture(scope="module")
def left() -> dict[str, dict[str, Any]]:
    """Code that has run -> the names that it left: the same block on another page is not run again."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_all_that_can_run_of_a_page_runs_in_its_order(
    page: Path, folder: Path, done: set[str], left: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names: dict[str, Any] = {"__name__": page.stem}
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for block in blocks(page):
        if "" in block.left_out or block.language not in RUN:
            continue
        if block.language == "python":
            if (alone := len(names) == 1) and block.text in left:  # nothing stands before it, here as there
                names |= left[block.text]
                continue
            exec(compile(block.text, block.name, "exec"), names)
            if alone:
                left[block.text] = dict(names)
            continue
        for line in block.commands():
            if block.why_not(line) or line in done or line.startswith("make "):  # targets: see above
                continue
            done.add(line)
            words = ours(line)
            assert words is not None, f"{block.name}: say why this is not run here: {line}"
            assert main(words) == 0, f"{block.name}: {line}\n{''.join(capfd.readouterr())[-2000:]}"
    assert folder == Path.cwd()
