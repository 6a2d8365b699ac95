"""Set-up with the real pip, on Pythons that hold nothing, half, or the wrong thing; nothing but loopback is reached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install import journal
from MedVLMReaderLib.install.plan import Wishes
from MedVLMReaderLib.install.setting_up import SettingUp, first_wishes
from MedVLMReaderLib.install.slicer_packaging import PackagingTransport
from MedVLMReaderLib.worker.transport import SubprocessTransport
from Testing.install.wheels import driven, ends, index, site_of, unpack, wheel

PYTORCH = """
import os, subprocess, sys
class PyTorchUtilsLogic:
    def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
        assert torchVersionRequirement == ">=2.10" and not askConfirmation
        import qt, ctk
        subprocess.run([sys.executable, "-m", "pip", "install", "torch" + torchVersionRequirement], check=True)
        import torch
        return torch
"""
SLOW = """
import os, subprocess, sys
class PyTorchUtilsLogic:
    def installTorch(self, **more):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({file!r}, "w").write(str(child.pid))
        child.wait()
"""


class Desk:
    """A set-up and what drives it."""

    def __init__(self, wishes: Wishes, **more: Any) -> None:
        self.transport, self.ready = SubprocessTransport(), list[str]()
        self.one = SettingUp(self.transport, wishes, on_ready=self.ready.append, **more)

    def until(self, done: Callable[[], bool]) -> None:
        driven(self.one, self.transport, done)

    def settle(self) -> str:
        """Until nothing is being done; the stage."""
        self.until(lambda: not self.one.busy)
        return self.one.shown().stage

    def look(self) -> str:
        self.one.look()
        return self.settle()

    def install(self) -> str:
        self.one.install()
        assert self.one.busy, self.one.message
        stage = self.settle()
        print(self.one.shown().message, self.one.shown().log, sep="\n")  # for who looks at a failure
        return stage


def test_an_environment_is_made_filled_from_wheels_used_kept_and_removed(wheels: Path, tmp_path: Path) -> None:
    desk = Desk(Wishes("own", sys.executable, tmp_path / "environment", wheels=wheels))
    assert not desk.one.known_ready
    assert desk.look() == "needed"
    shown = desk.one.shown()
    assert "not installed" in shown.headline
    assert str(wheels) in shown.cost
    assert "MB on the disk" in shown.cost or "GB on the disk" in shown.cost
    assert not (tmp_path / "environment").exists(), "nothing is done before it is agreed to"
    assert desk.install() == "ready"
    python = str(tmp_path / "environment" / "bin" / "python")
    assert desk.ready == [python]
    assert desk.one.known_ready
    assert journal.load(desk.one.home).state == "done"
    assert {"torch", "sympy"} <= set(journal.load(desk.one.home).brought)
    before = {path: path.stat().st_mtime_ns for path in site_of(Path(python)).rglob("*.py")}
    assert desk.look() == "ready"
    desk.one.install()
    assert not desk.one.busy, "nothing is left to do"
    assert {path: path.stat().st_mtime_ns for path in site_of(Path(python)).rglob("*.py")} == before
    again = first_wishes("/slicer/bin/PythonSlicer", python)
    assert (again.place, again.environment, again.chosen) == ("own", tmp_path / "environment", ""), (
        "known the next time"
    )
    assert first_wishes("/slicer/bin/PythonSlicer", "/mine/python").chosen == "/mine/python"
    desk.one.remove()
    assert desk.settle() == "needed"
    assert not (tmp_path / "environment").exists()
    assert not desk.one.known_ready


def test_behind_a_proxy_torch_comes_by_slicers_extension_and_sizes_are_the_servers(
    python: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = tmp_path / "PyTorch"
    extension.mkdir()
    (extension / "PyTorchUtils.py").write_text(PYTORCH)
    monkeypatch.setenv("PIP_INDEX_URL", "http://packages.invalid/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "packages.invalid")
    with index(wheels) as (proxy, asked):
        desk = Desk(Wishes("slicer", str(python), pytorch=extension, proxy=proxy))
        assert desk.look() == "needed"
        assert "Slicer's own Python" in desk.one.shown().cost
        assert desk.install() == "ready"
    assert all(one.startswith("http://packages.invalid/") for one in asked)
    sizes = sum(
        path.stat().st_size for path in wheels.glob("*.whl") if not path.name.startswith(("torch", "sympy", "netw"))
    )
    assert desk.one.running.plan.fetched == sizes
    assert (site_of(python) / "torch" / "__init__.py").exists()


def test_a_half_finished_install_is_seen_told_of_and_mended(python: Path, wheels: Path) -> None:
    site = unpack(python, wheels, leave_out=("monai", "tqdm"))
    (site / "~orch").mkdir()
    shutil.rmtree(next(site.glob("torch-*.dist-info")))  # ended before its description was written
    next(site.glob("transformers-*.dist-info")).joinpath("RECORD").unlink()  # ended before the list, which comes last
    (site / "tokenizers" / "part.py").unlink()
    (site / "safetensors" / "part.py").write_text("PAR")
    desk = Desk(Wishes("slicer", str(python), wheels=wheels))
    journal.save(desk.one.home, journal.Journal("begun"))
    assert desk.look() == "needed"
    shown = desk.one.shown()
    assert "did not finish" in shown.headline
    states = {one.name: one.state for one in desk.one.plan.packages}
    assert states == {"monai": "missing", "tqdm": "missing", "torch": "missing", "transformers": "broken",
                      "tokenizers": "broken", "safetensors": "broken"}  # fmt: skip
    assert desk.install() == "ready"
    assert not (site / "~orch").exists()
    assert (site / "safetensors" / "part.py").read_text() == "PART = 1\n"
    assert (site / "tokenizers" / "part.py").exists()


def test_a_wrong_version_is_replaced_and_what_slicer_has_loaded_is_not_touched(
    python: Path, wheels: Path, tmp_path: Path
) -> None:
    more = Path(shutil.copytree(wheels, tmp_path / "more"))
    next(more.glob("numpy-*")).unlink()
    wheel(more, "numpy", "2.1.0")
    site = unpack(python, more, leave_out=("transformers",))
    old = tmp_path / "old"
    old.mkdir()
    unpack(python, wheel(old, "transformers", "4.57.0").parent)
    desk = Desk(Wishes("slicer", str(python), wheels=wheels, loaded={"numpy": "2.1.0"}))
    assert desk.look() == "needed"
    assert "of another version" in desk.one.shown().headline
    assert "transformers 4.57.0" in desk.one.shown().notes
    assert desk.install() == "ready"
    assert [path.name for path in site.glob("transformers-*")] == ["transformers-5.23.0.dist-info"]
    assert [path.name for path in site.glob("numpy-*")] == ["numpy-2.1.0.dist-info"]


def test_without_a_network_it_says_so_and_goes_on_from_a_folder(python: Path, wheels: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    desk = Desk(Wishes("slicer", str(python)))
    assert desk.look() == "needed"
    assert desk.install() == "needed"
    assert desk.one.shown().message.startswith("The network cannot be reached")
    desk.one.choose(wheels=wheels)
    assert desk.settle() == "needed"
    assert "did not finish" in desk.one.shown().headline
    assert desk.install() == "ready"


def test_a_proxy_that_refuses_is_told_from_no_network_and_its_password_is_shown_nowhere(
    python: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(python, wheels, leave_out=("monai",))
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.invalid/simple")
    with index(wheels, refuse=407) as (proxy, _):
        desk = Desk(Wishes("slicer", str(python), proxy=proxy.replace("//", "//me:secret@")))
        desk.look()
        assert desk.install() == "needed"
    shown = desk.one.shown()
    assert shown.message.startswith("The proxy refuses")
    assert "secret" not in shown.message + shown.log


def test_a_folder_that_lacks_a_wheel_names_it(python: Path, wheels: Path, tmp_path: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    less = Path(shutil.copytree(wheels, tmp_path / "less"))
    next(less.glob("monai-*")).unlink()
    desk = Desk(Wishes("slicer", str(python), wheels=less))
    desk.look()
    assert desk.install() == "needed"
    assert "no wheel of monai" in desk.one.shown().message


def test_it_can_be_stopped_while_it_fetches_and_goes_on_afterwards(
    python: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(python, wheels, leave_out=("monai", "tqdm"))
    with index(wheels, slow_s=60) as (address, asked):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        desk = Desk(Wishes("slicer", str(python)))
        desk.look()
        desk.one.install()
        desk.until(lambda: any(path.endswith(".whl") for path in asked))
        process = desk.transport.process
        assert process is not None
        began = time.monotonic()
        assert desk.one.shown().can_stop
        desk.one.stop()
        desk.until(lambda: not desk.one.running.busy)
        assert time.monotonic() - began < 20
        assert ends(process.pid)
        assert desk.settle() == "needed"
        assert desk.one.shown().message.startswith("Stopped.")
    desk.one.choose(wheels=wheels)
    desk.settle()
    assert desk.install() == "ready"


def test_an_environment_that_was_stopped_before_it_was_one_is_made_anew(wheels: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    desk = Desk(Wishes("own", sys.executable, environment, wheels=wheels))
    desk.look()
    desk.one.install()
    desk.one.stop()
    desk.until(lambda: not desk.one.running.busy)
    desk.settle()
    assert journal.load(desk.one.home).made == str(environment)
    shutil.rmtree(environment, ignore_errors=True)
    (environment / "lib").mkdir(parents=True)
    assert desk.look() == "needed"
    assert "did not finish" in desk.one.shown().headline
    (environment / "thesis.doc").touch()
    assert desk.look() == "refused"
    assert "not empty" in desk.one.shown().message


def test_stopping_the_pytorch_extension_ends_what_it_started(python: Path, wheels: Path, tmp_path: Path) -> None:
    unpack(python, wheels, leave_out=("torch",))
    extension, file = tmp_path / "PyTorch", tmp_path / "pid"
    extension.mkdir()
    (extension / "PyTorchUtils.py").write_text(SLOW.format(file=str(file)))
    desk = Desk(Wishes("slicer", str(python), pytorch=extension))
    desk.look()
    desk.one.install()
    desk.until(lambda: file.exists() and bool(file.read_text()))
    desk.one.stop()
    desk.until(lambda: not desk.one.running.busy)
    assert ends(int(file.read_text()))


def test_what_is_installed_but_cannot_be_loaded_is_told_of(python: Path, wheels: Path, tmp_path: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    bad = Path(shutil.copytree(wheels, tmp_path / "bad"))
    next(bad.glob("monai-*")).unlink()
    wheel(bad, "monai", "1.6.1", files={"monai/__init__.py": b"raise OSError('DLL load failed')\n"})
    desk = Desk(Wishes("slicer", str(python), wheels=bad))
    desk.look()
    desk.install()
    assert "monai was installed but cannot be loaded (OSError: DLL load failed)" in desk.one.shown().message
    assert not desk.one.known_ready
    assert desk.one.shown().headline.startswith("Everything is there. Whether it can be loaded")
    assert desk.ready == []


def test_a_size_larger_than_was_said_is_asked_about_again(python: Path, wheels: Path, tmp_path: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    desk = Desk(Wishes("slicer", str(python), wheels=wheels))
    desk.look()
    desk.one.install()
    desk.one.running._agreed = 10
    desk.until(lambda: desk.one.shown().stage == "asking")
    assert "more than was expected" in desk.one.shown().message
    desk.one.agree(False)
    assert desk.settle() == "needed"
    assert not list(site_of(python).glob("monai*"))


def test_no_room_for_the_exact_size_stops_before_installing(python: Path, wheels: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    desk = Desk(Wishes("slicer", str(python), wheels=wheels))
    desk.look()
    assert desk.one._survey is not None
    desk.one._survey = replace(desk.one._survey, free=1_000_000)
    assert desk.install() == "needed"
    assert "1 MB are free" in desk.one.shown().message
    assert not list(site_of(python).glob("monai*"))


def test_another_program_that_sets_up_is_waited_for_and_a_dead_one_is_not(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / journal.LOCK).write_text(str(other.pid))
    with pytest.raises(ReaderError, match="Another Slicer is setting up"):
        journal.take(tmp_path)
    other.kill()
    other.wait()
    with journal.alone(tmp_path):
        assert (tmp_path / journal.LOCK).read_text() == str(os.getpid())
    assert not (tmp_path / journal.LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "state": "odd", "brought": []}'])
def test_a_damaged_journal_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / journal.FILE).write_text(content)
    assert journal.load(tmp_path) == journal.Journal()


def test_a_python_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    desk = Desk(Wishes("slicer", str(tmp_path / "none")))
    assert desk.look() == "refused"
    assert "does not start" in desk.one.shown().message


def test_an_environment_of_the_users_own_is_used_and_never_removed(python: Path, wheels: Path) -> None:
    site = unpack(python, wheels)
    desk = Desk(Wishes("own", sys.executable, chosen=str(python)))
    assert desk.look() == "ready"
    assert desk.ready == [str(python)]
    assert not desk.one.shown().can_remove
    desk.one.choose(environment=python.parents[1], chosen="")
    desk.settle()
    desk.one.remove()
    assert "no environment that set-up made" in desk.one.shown().message
    assert site.exists()


def slicer_packaging(python: Path, busy: bool = False) -> tuple[Any, list[tuple[str, ...]]]:
    """As Slicer 5.12 has it: runs pip beside the program, tells lines and the end later."""
    calls: list[tuple[str, ...]] = []

    def pip_install(requirements: list[str], *, blocking: bool, show_progress: bool, requester: str,
                    logCallback: Callable[[str], None], completedCallback: Callable[[int], None]) -> None:  # fmt: skip
        assert not blocking
        calls.append(tuple(requirements))
        done = subprocess.run(
            [python, "-m", "pip", "install", *requirements], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            logCallback(line)
        completedCallback(done.returncode)

    return SimpleNamespace(pip_install=pip_install, isPipInstallInProgress=lambda: busy), calls


def test_slicers_own_way_is_taken_where_it_has_one(python: Path, wheels: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    packaging, calls = slicer_packaging(python)
    desk = Desk(Wishes("slicer", str(python), wheels=wheels), packaged=PackagingTransport(packaging))
    desk.look()
    assert desk.install() == "ready"
    assert len(calls) == 1
    assert "monai>=1.5" in calls[0]
    assert "PIP_FIND_LINKS" not in os.environ
    assert "Successfully installed monai" in desk.one.shown().log


def test_where_another_extension_installs_it_waits(python: Path, wheels: Path) -> None:
    unpack(python, wheels, leave_out=("monai",))
    packaging, calls = slicer_packaging(python, busy=True)
    desk = Desk(Wishes("slicer", str(python), wheels=wheels), packaged=PackagingTransport(packaging))
    desk.look()
    assert desk.install() == "needed"
    assert calls == []
    assert desk.one.shown().message.startswith("Another extension is installing packages right now. Wait")


def test_the_child_starts_in_an_old_python_and_says_which() -> None:
    source = Path(journal.__file__).with_name("child.py")
    compile(source.read_text(), "child.py", "exec", flags=0, dont_inherit=True)
    old = shutil.which("python3.9") or shutil.which("python3.10")
    if old is None or subprocess.run([old, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("no Python older than 3.11 here")
    done = subprocess.run(
        [old, source, "survey", json.dumps({"requirements": []})], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.removeprefix("@medvlm "))["python"].startswith("3.")
