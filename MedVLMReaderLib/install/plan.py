"""Decides what a set-up does: from what was found and what is wished, to steps with their cost, or to why not."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install import needs, steps
from MedVLMReaderLib.install.journal import ENVIRONMENT, Journal, home
from MedVLMReaderLib.install.needs import name_of
from MedVLMReaderLib.install.steps import Step
from MedVLMReaderLib.install.survey import Package, Survey

Place = Literal["slicer", "own"]
Verdict = Literal["ready", "install", "resume", "repair", "replace", "try"]
MB = 10**6
SPARE = 200 * MB
"""What is left free on a disk."""
BEGUN = {"bin", "Scripts", "lib", "Lib", "lib64", "include", "Include", "share", ".gitignore"}
"""What stands in an environment's folder before its pyvenv.cfg."""
LEAST_PIP = 22, 2
"""The first pip that can say what it would do."""


@dataclass(frozen=True)
class Wishes:
    """What the user, and the program that asks, want."""

    place: Place = "slicer"
    """Into Slicer's own Python, or into an environment of its own."""
    python: str = ""
    """Slicer's Python; for an environment, the Python that makes it."""
    environment: Path = Path()
    """The environment's folder."""
    quantised: bool = True
    """Also what int8 and NF4 need."""
    wheels: Path | None = None
    """A folder to install from, without a network."""
    proxy: str = ""
    chosen: str = ""
    """An interpreter that the user has and wants to read with, in the place of an environment."""
    pytorch: Path | None = None
    """The folder of Slicer's PyTorch extension, where it is installed."""
    loaded: Mapping[str, str] = field(default_factory=dict)
    """Packages that the asking program itself has loaded out of the Python that is set up, with versions."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What has to be there."""
        return needs.requirements(self.quantised)

    @property
    def key(self) -> str:
        """Hash of what has to be there, and where."""
        words = (self.place, self.interpreter, *self.requirements)
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    @property
    def interpreter(self) -> str:
        """The Python that will read."""
        if self.place == "slicer":
            return self.python
        return self.chosen or str(environment_python(self.environment))


def environment_python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


@dataclass(frozen=True)
class Plan:
    """What will be done, once the user has agreed."""

    verdict: Verdict
    steps: tuple[Step, ...] = ()
    packages: tuple[Package, ...] = ()
    """That are missing, wrong or broken."""
    fetched: int = 0
    """Bytes to fetch; from a folder of wheels nothing is."""
    installed: int = 0
    """Bytes that it takes on the disk."""
    notes: tuple[str, ...] = ()
    """What the user should know before agreeing."""
    restart: bool = False
    """Whether Slicer must be started again afterwards."""

    @property
    def ready(self) -> bool:
        """Whether there is nothing to do."""
        return self.verdict == "ready"


def plan(survey: Survey | None, wishes: Wishes, journal: Journal, base: Survey | None = None) -> Plan:
    """What to do.

    `survey`: of the Python that will read; None where it does not exist or does not start. `base`: of the Python that
    makes an environment. ReaderError says what the user has to mend first.
    """
    if survey is None:
        return _anew(wishes, journal, base)
    check_version(survey)
    lacking = survey.lacking
    if not lacking and not survey.leftovers:
        return Plan("ready") if journal.state != "begun" else Plan("try", (steps.attempt(wishes),))
    if not lacking:
        return Plan(
            "repair", (steps.clean(survey, wishes),), notes=("Only leftovers of an earlier install are removed.",)
        )
    check_usable(survey, wishes)
    work = _work(survey, wishes)
    return _costed(survey, wishes, _verdict(survey, journal), work, lacking)


def _anew(wishes: Wishes, journal: Journal, base: Survey | None) -> Plan:
    """An environment that is not there, or not whole."""
    if wishes.place == "slicer" or wishes.chosen or base is None:
        raise ReaderError(
            f"The Python '{wishes.chosen or wishes.python}' does not start. Choose another one, or install Slicer "
            "again."
        )
    check_version(base)
    if Path(wishes.python).stem == "PythonSlicer":
        raise ReaderError(
            "No Python 3.11 to 3.13 but Slicer's own was found, and an environment made by that one starts only inside "
            "Slicer. Install Python 3.12 from python.org, or install into Slicer's own Python."
        )
    if not base.venv:
        raise ReaderError(
            f"'{base.executable}' lacks the parts that make environments (venv, ensurepip). Choose another Python; on "
            "Debian or Ubuntu: sudo apt install python3-venv."
        )
    check_folder(wishes.environment, journal.made)
    check_wheels(wishes)
    fresh = tuple(Package(name_of(one), one, "", "missing") for one in wishes.requirements)
    made = (steps.environment(wishes.python, wishes.environment), *_work(base, wishes, fresh=True))
    if not base.writable:
        raise ReaderError(f"'{base.site}' cannot be written. Choose another folder for the environment.")
    verdict: Verdict = "resume" if journal.state == "begun" or wishes.environment.exists() else "install"
    return _costed(base, wishes, verdict, made, fresh)


def _verdict(survey: Survey, journal: Journal) -> Verdict:
    """What the user is told that this is."""
    states = {one.state for one in survey.lacking}
    if journal.state == "begun":
        return "resume"
    if "broken" in states or survey.leftovers:
        return "repair"
    return "replace" if states == {"wrong"} else "install"


def _work(survey: Survey, wishes: Wishes, fresh: bool = False) -> tuple[Step, ...]:
    """Clean, PyTorch by its extension, the rest by pip, and a try."""
    found: list[Step] = []
    if not fresh and (survey.broken or survey.leftovers):
        found.append(steps.clean(survey, wishes))
    torch = next((one for one in survey.lacking if one.name == "torch"), None)
    by_extension = wishes.place == "slicer" and wishes.wheels is None
    if not fresh and torch is not None and by_extension:
        if wishes.pytorch is None:
            raise ReaderError(
                "Slicer's own Python gets PyTorch from the PyTorch extension, which is not installed. Install "
                "'PyTorch' in the Extensions Manager and start Slicer again; or choose a separate environment here."
            )
        found.append(steps.torch(wishes))
    arguments = steps.arguments(survey, wishes, cpu=_cpu_build(survey, wishes))
    return (*found, steps.resolve(wishes, arguments), steps.install(wishes, arguments), steps.attempt(wishes))


def _cpu_build(survey: Survey, wishes: Wishes) -> bool:
    """Whether the small build of torch is asked for: pip's usual one for Linux brings CUDA even without a GPU."""
    return (
        wishes.place == "own" and wishes.wheels is None and not survey.nvidia and not survey.own_index
        and survey.system.startswith("linux")
    )  # fmt: skip


def cuda_build(survey: Survey, wishes: Wishes) -> bool:
    """Whether PyTorch comes with CUDA: the extension chooses by the GPU, pip's usual build has it on Linux alone."""
    if not survey.nvidia or wishes.wheels is not None:
        return False
    return survey.system.startswith("linux") or (wishes.place == "slicer" and survey.system != "darwin")


def _costed(
    survey: Survey, wishes: Wishes, verdict: Verdict, work: tuple[Step, ...], lacking: tuple[Package, ...]
) -> Plan:
    """The plan with megabytes; ReaderError where a disk has no room for them."""
    size = needs.about({one.name for one in lacking}, cuda=cuda_build(survey, wishes))
    fetched = 0 if wishes.wheels is not None else int(size.fetched * MB)
    installed = int(size.installed * MB)
    check_room(survey, fetched, installed)
    replaced = [one for one in lacking if one.name in wishes.loaded] if wishes.place == "slicer" else []
    return Plan(verdict, work, lacking, fetched, installed, _notes(survey, wishes, lacking, replaced), bool(replaced))


def _notes(survey: Survey, wishes: Wishes, lacking: tuple[Package, ...], replaced: list[Package]) -> tuple[str, ...]:
    found = []
    if replaced:
        listed = ", ".join(f"{one.name} {wishes.loaded[one.name]} (needed: {one.wanted})" for one in replaced)
        found.append(f"This replaces what Slicer itself uses: {listed}. Slicer must be started again afterwards. "
                     "A separate environment leaves Slicer as it is.")  # fmt: skip
    if wrong := [one for one in lacking if one.state == "wrong" and one not in replaced]:
        found.append("Of another version than needed: " + ", ".join(f"{one.name} {one.version}" for one in wrong) + ".")
    if broken := survey.broken:
        found.append(f"Not whole, installed anew: {', '.join(broken)}.")
    if wishes.wheels is not None:
        found.append("Everything comes from the chosen folder; the network is not used.")
    if survey.nvidia and wishes.wheels is None and any(one.name == "torch" for one in lacking):
        found.append(
            "There is an NVIDIA GPU: PyTorch comes with CUDA, which is most of the size." if cuda_build(survey, wishes)
            else "This PyTorch does not use the NVIDIA GPU. To use it, install into Slicer's own Python, where the "
            "PyTorch extension chooses the build."
        )  # fmt: skip
    return tuple(found)


# ---- What the user has to mend first ---------------------------------------------------------------------------------


def check_version(survey: Survey) -> None:
    """ReaderError where the Python is too old or too new."""
    if not survey.fits:
        raise ReaderError(
            f"'{survey.executable}' is Python {survey.python}; the models need 3.11 to 3.13. Slicer 5.10 and later "
            "have one that fits; or choose a separate environment made by another Python."
        )


def check_usable(survey: Survey, wishes: Wishes) -> None:
    """ReaderError where nothing can be installed into this Python."""
    if not survey.pip:
        raise ReaderError(f"'{survey.executable}' has no pip. Run once: {survey.executable} -m ensurepip")
    number = tuple(int(part) for part in re.findall(r"\d+", survey.pip)[:2])
    if number and number < LEAST_PIP:
        raise ReaderError(
            f"'{survey.executable}' has pip {survey.pip}; 22.2 is the oldest that will do. Run once: "
            f"{survey.executable} -m pip install --upgrade pip"
        )
    if not survey.writable:
        raise ReaderError(
            f"'{survey.site}' cannot be written: Slicer is installed for all users, or on a disk that is read only. "
            "Choose a separate environment, or install Slicer into a folder of your own."
        )
    check_wheels(wishes)


def check_room(survey: Survey, fetched: int, installed: int) -> None:
    """ReaderError where a disk has not enough room."""
    there = installed + SPARE + (fetched if survey.same_disk else 0)
    if survey.free < there:
        raise ReaderError(
            f"Set-up needs {megabytes(there)} on the disk of '{survey.site}', and {megabytes(survey.free)} are free. "
            "Make room, or choose a separate environment on another disk."
        )
    if not survey.same_disk and survey.free_temporary < fetched + SPARE:
        raise ReaderError(
            f"Set-up needs {megabytes(fetched + SPARE)} on the disk of temporary files, and "
            f"{megabytes(survey.free_temporary)} are free. Make room there, or set TMPDIR to a folder on another disk."
        )


def check_wheels(wishes: Wishes) -> None:
    """ReaderError where the folder to install from is none."""
    if wishes.wheels is None:
        return
    if not wishes.wheels.is_dir():
        raise ReaderError(f"There is no folder '{wishes.wheels}'. Choose the one with the .whl files.")
    if not any(wishes.wheels.glob("*.whl")):
        raise ReaderError(
            f"'{wishes.wheels}' has no .whl file. On a machine with a connection fill it by pip download, as the "
            "manual's page on setting up says."
        )


def check_folder(folder: Path, made: str = "") -> None:
    """ReaderError where an environment would be made over somebody's files. `made`: the folder of set-up's own one."""
    if folder.exists() and not folder.is_dir():
        raise ReaderError(f"'{folder}' is a file. Choose another folder for the environment.")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = folder in (Path(made or "/"), home() / ENVIRONMENT)
    if there and "pyvenv.cfg" not in there and not (ours and there <= BEGUN):
        raise ReaderError(f"'{folder}' is not empty and no environment. Choose another folder.")
    if there and not ours:
        raise ReaderError(
            f"'{folder}' holds an environment that does not start and that set-up did not make: nothing in it is "
            "deleted. Choose another folder, or delete it by hand."
        )


def megabytes(size: int) -> str:
    """For people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / MB))} MB"
