"""The steps of a set-up as command lines. Nothing here runs anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from MedVLMReaderLib.install import needs
from MedVLMReaderLib.install.survey import Survey, child
from MedVLMReaderLib.resources import resource

if TYPE_CHECKING:
    from MedVLMReaderLib.install.plan import Wishes

Kind = Literal["environment", "clean", "torch", "resolve", "install", "attempt"]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own builds without CUDA."""
TITLES: dict[Kind, str] = {
    "environment": "Making the environment", "clean": "Removing what an earlier install left",
    "torch": "Installing PyTorch with Slicer's PyTorch extension", "resolve": "Finding out what is needed",
    "install": "Fetching and installing", "attempt": "Trying whether it works",
}  # fmt: skip
PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")


@dataclass(frozen=True)
class Step:
    """One program to run."""

    kind: Kind
    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to its environment. A proxy with a password is here and not in `argv`, which other users can see."""

    @property
    def title(self) -> str:
        """For the user."""
        return TITLES[self.kind]


def survey(python: str, requirements: tuple[str, ...], site: Path | None = None) -> tuple[str, ...]:
    """What looks at a Python. `site`: where an environment that is not there yet will be."""
    asked = {"requirements": requirements, **({"site": str(site), "bare": True} if site else {})}
    return (python, child(), "survey", json.dumps(asked))  # no -P: Pythons before 3.11 do not know it


def environment(python: str, folder: Path) -> Step:
    """Makes an environment, anew where half of one is there."""
    return Step("environment", (python, "-m", "venv", "--clear", str(folder)))


def clean(survey: Survey, wishes: Wishes) -> Step:
    """Takes broken packages away."""
    asked = json.dumps({"broken": survey.broken})
    return Step("clean", (wishes.interpreter, "-P", child(), "clean", asked))


def torch(wishes: Wishes) -> Step:
    """The PyTorch extension, in a program of its own: it imports what it installs."""
    wanted = next(one for one in wishes.requirements if needs.name_of(one) == "torch").removeprefix("torch")
    script = str(Path(__file__).with_name("pytorch_child.py"))
    return Step("torch", (wishes.interpreter, "-P", script, str(wishes.pytorch), wanted), variables(wishes))


def arguments(survey: Survey, wishes: Wishes, cpu: bool = False) -> tuple[str, ...]:
    """What pip is given: wheels only, so that nothing is compiled, and nothing run while it installs."""
    found = ["--only-binary", ":all:", "--retries", "2", "--timeout", "20"]
    if wishes.wheels is not None:
        found += ["--no-index", "--find-links", str(wishes.wheels)]
    elif wishes.place == "own":
        found += ["--constraint", str(resource("requirements/tested.txt"))]
    if cpu:
        found += ["--extra-index-url", CPU_BUILDS]
    by_extension = wishes.place == "slicer" and wishes.wheels is None  # then pip is never asked for torch
    wanted = [one for one in wishes.requirements if not (by_extension and needs.name_of(one) == "torch")]
    return (*found, *wanted, *kept(survey, wishes))


def kept(survey: Survey, wishes: Wishes) -> tuple[str, ...]:
    """Packages that Slicer has loaded and that will do, held at their versions."""
    if wishes.place != "slicer":
        return ()
    fitting = {one.name for one in survey.packages if one.state == "fits"}
    return tuple(f"{name}=={version}" for name, version in sorted(wishes.loaded.items()) if name in fitting)


def resolve(wishes: Wishes, arguments: tuple[str, ...]) -> Step:
    """Finds out what pip would fetch, and how large it is."""
    asked = json.dumps({"arguments": arguments})
    return Step("resolve", (wishes.interpreter, "-P", child(), "resolve", asked), variables(wishes))


def install(wishes: Wishes, arguments: tuple[str, ...]) -> Step:
    """pip itself."""
    return Step("install", (wishes.interpreter, *PIP, *arguments), variables(wishes))


def attempt(wishes: Wishes) -> Step:
    """Loads what was installed."""
    asked = json.dumps({"modules": needs.MODULES})
    return Step("attempt", (wishes.interpreter, "-P", child(), "attempt", asked))


def variables(wishes: Wishes) -> dict[str, str]:
    """For a step that may use the network: the proxy; and for one that may not, that it is off."""
    found = {"PYTHONUNBUFFERED": "1"}
    if wishes.proxy:
        found |= {"PIP_PROXY": wishes.proxy, "HTTPS_PROXY": wishes.proxy, "HTTP_PROXY": wishes.proxy}
    if wishes.wheels is not None:
        found |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wishes.wheels)}
    return found
