"""What a model needs and what the machine has, with and without a GPU; the driver's tool is never waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from MedVLMReaderLib.gpu import TOOL, Gpu, GpuWatch, gpus_from
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.needs import loaded_line, memory_line, own_line, sizes_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="made of POSIX scripts")
BIG, SMALL = Gpu("NVIDIA H100", 80 << 30), Gpu("NVIDIA T400", 2 << 30)
GB = 10**9


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool of these lines of shell, before all others."""
    path = tmp_path / TOOL
    path.write_text("#!/bin/sh\nexit 9\n")
    path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return path


def heard(watch: GpuWatch, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and watch._asked is not None:
        if watch.heard():
            return True
        time.sleep(0.01)
    return False


def test_what_the_driver_says_is_heard_later_and_asking_waits_for_nothing(tool: Path) -> None:
    tool.write_text("#!/bin/sh\nsleep 0.3\necho '81000, NVIDIA H100 80GB HBM3'\necho '2000, NVIDIA T400'\n")
    watch, began = GpuWatch(), time.monotonic()
    watch.ask()
    watch.ask()
    assert not watch.heard()
    assert time.monotonic() - began < 0.25
    assert heard(watch)
    assert watch.found == (Gpu("NVIDIA H100 80GB HBM3", 81000 << 20), Gpu("NVIDIA T400", 2000 << 20))
    watch.ask()
    assert not heard(watch), "the same again is no news"


@pytest.mark.parametrize("lines", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo '[N/A], NVIDIA GB10'"])
def test_a_broken_driver_is_no_gpu(tool: Path, lines: str) -> None:
    tool.write_text(f"#!/bin/sh\n{lines}\n")
    watch = GpuWatch()
    watch.ask()
    assert not heard(watch)
    assert watch.found == ()


def test_a_tool_that_hangs_is_ended(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("MedVLMReaderLib.gpu.PATIENCE_S", 0.1)
    watch = GpuWatch()
    watch.ask()
    process = watch._asked
    assert not heard(watch)
    assert process is not None
    assert process.poll() is not None


def test_without_the_tool_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = GpuWatch()
    watch.ask()
    assert not watch.heard()
    watch.close()


def test_lines_that_are_not_understood_are_left_out() -> None:
    assert gpus_from("1000, A, B\n\nfoo\n") == (Gpu("A, B", 1000 << 20),)


def test_on_a_gpu_its_memory_counts_and_on_none_the_machines() -> None:
    line = memory_line("m3d-lamed-llama2", "auto", (BIG, SMALL))
    assert line.startswith("Needs ")
    assert "(bf16); you have 85.9 GB free on NVIDIA H100." in line
    assert "not fit" not in line
    assert "of memory free" in memory_line("m3d-lamed-llama2", "auto")
    assert memory_line("m3d-lamed-llama2", "bf16", (SMALL,)).endswith(
        "It will not fit: close other programs, or choose a smaller precision or model."
    )
    assert "(nf4)" in memory_line("m3d-lamed-llama2", "auto", (Gpu("Laptop", 6 << 30),))
    assert memory_line("/a/folder", "auto", (BIG,)) == ""


def test_every_model_that_writes_has_a_line() -> None:
    for card in CARDS.values():
        if "answer" in card.can and card.decoder:
            assert memory_line(card.name, "auto").startswith("Needs "), card.name
            assert sizes_of(card)["nf4"] < sizes_of(card)["fp32"]


def test_once_loaded_the_line_says_where_and_frightens_nobody() -> None:
    assert loaded_line("nf4", "cuda", (BIG,)) == "In memory: nf4 on NVIDIA H100; 85.9 GB left there."
    assert loaded_line("fp32", "cpu", (BIG,)).startswith("In memory: fp32 on the CPU; ")
    assert loaded_line("fp32", "mps") == "In memory: fp32 on mps."


def test_a_model_of_ones_own_is_held_against_what_is_free() -> None:
    sizes = {"bf16": 20 * GB, "int8": 12 * GB, "nf4": 8 * GB}
    fits = own_line(sizes, "int8", 16 * GB, "cpu", "auto")
    assert fits == "Needs 12.0 GB (int8); you have 16.0 GB of memory free."
    assert "(bf16); you have 16.0 GB" in own_line(sizes, "int8", 16 * GB, "cpu", "bf16")
    assert "It will not fit" in own_line(sizes, "int8", 16 * GB, "cpu", "bf16")
    assert own_line(sizes, "", 2 * GB, "cuda", "auto", (SMALL,)).startswith(
        "Needs 8.0 GB (nf4); you have 2.0 GB free on NVIDIA T400. It will not fit"
    ), "nothing fits: the smallest is named"
    assert own_line({"nf4": 1 * GB}, "nf4", 2 * GB, "cpu", "bf16").startswith("Needs 1.0 GB (nf4)"), "a copy in 4 bits"
