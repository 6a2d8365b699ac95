"""What set-up decides, in every state that a machine can be in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.install import needs
from MedVLMReaderLib.install.journal import Journal
from MedVLMReaderLib.install.needs import name_of
from MedVLMReaderLib.install.plan import Plan, Wishes, plan
from MedVLMReaderLib.install.survey import Package, State, Survey

GB = 10**9
NEVER, BEGUN = Journal(), Journal("begun")
NAMES = [name_of(one) for one in needs.requirements()]


def found(state: State = "fits", **states: State) -> Survey:
    """A Slicer's Python with all that is needed in one state, and some packages in others."""
    packages = tuple(
        Package(name, wanted, "" if state == "missing" else "1.0", states.get(name.replace("-", "_"), state))
        for name, wanted in zip(NAMES, needs.requirements(), strict=True)
    )
    return Survey(
        "3.12.10", "/slicer/bin/PythonSlicer", "/slicer/site-packages", True, "25.0", True, 90 * GB, 90 * GB, True,
        False, "linux", False, packages,
    )  # fmt: skip


def wishes(**more: object) -> Wishes:
    return replace(Wishes("slicer", "/slicer/bin/PythonSlicer", pytorch=Path("/ext/PyTorch")), **more)  # type: ignore[arg-type]


def kinds(one: Plan) -> list[str]:
    return [step.kind for step in one.steps]


def refused(survey: Survey | None, wish: Wishes | None = None, **more: object) -> str:
    with pytest.raises(ReaderError) as told:
        plan(survey, wish or wishes(), NEVER, **more)  # type: ignore[arg-type]
    return str(told.value)


def test_where_everything_is_there_nothing_is_done() -> None:
    made = plan(found(), wishes(), NEVER)
    assert made == Plan("ready")


def test_where_nothing_is_there_torch_comes_by_slicers_extension_and_the_rest_by_pip() -> None:
    made = plan(found("missing"), wishes(), NEVER)
    assert made.verdict == "install"
    assert kinds(made) == ["torch", "resolve", "install", "attempt"]
    torch, _, pip, _ = made.steps
    assert torch.argv[-2:] == ("/ext/PyTorch", ">=2.10")
    assert "pytorch_child.py" in torch.argv[2]
    assert {"--only-binary", "transformers>=5.5,<6"} <= set(pip.argv)
    assert not any(part.startswith("torch") for part in pip.argv), "pip is never asked for torch in Slicer's Python"
    assert made.fetched > 100e6
    assert made.installed > made.fetched


def test_only_what_is_missing_is_counted() -> None:
    one = plan(found(monai="missing"), wishes(), NEVER)
    assert [package.name for package in one.packages] == ["monai"]
    assert kinds(one) == ["resolve", "install", "attempt"]
    assert one.fetched < 10e6


def test_half_an_install_is_taken_up_again() -> None:
    made = plan(found(transformers="missing", tokenizers="broken"), wishes(), BEGUN)
    assert made.verdict == "resume"
    assert kinds(made) == ["clean", "resolve", "install", "attempt"]
    assert '"tokenizers"' in made.steps[0].argv[-1]
    assert any("tokenizers" in note for note in made.notes)


def test_a_broken_package_is_seen_even_where_nobody_remembers_the_install() -> None:
    assert plan(found(torch="broken"), wishes(), NEVER).verdict == "repair"


def test_what_pip_left_when_it_was_killed_is_removed() -> None:
    made = plan(replace(found(), leftovers=("~orch",)), wishes(), NEVER)
    assert (made.verdict, kinds(made)) == ("repair", ["clean"])


def test_what_was_installed_but_never_loaded_is_tried_first() -> None:
    made = plan(found(), wishes(), BEGUN)
    assert (made.verdict, kinds(made)) == ("try", ["attempt"])


def test_a_wrong_version_is_named_before_it_is_replaced() -> None:
    made = plan(found(transformers="wrong"), wishes(), NEVER)
    assert made.verdict == "replace"
    assert "transformers 1.0" in made.notes[0]
    assert not made.restart


def test_replacing_what_slicer_uses_needs_a_restart_and_says_so_first() -> None:
    made = plan(found(numpy="wrong"), wishes(loaded={"numpy": "1.26.4"}), NEVER)
    assert made.restart
    assert "numpy 1.26.4" in made.notes[0]
    assert "separate environment" in made.notes[0]


def test_what_slicer_uses_and_will_do_is_held_at_its_version() -> None:
    pip = plan(found(torch="missing"), wishes(loaded={"numpy": "2.1.0", "scipy": "1.14.0"}), NEVER).steps[-2]
    assert {"numpy==2.1.0", "scipy==1.14.0"} <= set(pip.argv)


def test_without_the_pytorch_extension_two_ways_are_named() -> None:
    told = refused(found("missing"), wishes(pytorch=None))
    assert "Extensions Manager" in told
    assert "separate environment" in told
    assert kinds(plan(found(monai="missing"), wishes(pytorch=None), NEVER)) == ["resolve", "install", "attempt"]


def test_no_space_is_said_before_anything_is_fetched() -> None:
    told = refused(replace(found("missing"), free=300_000_000))
    assert "300 MB are free" in told
    assert "/slicer/site-packages" in told
    told = refused(replace(found("missing"), free_temporary=10_000_000, same_disk=False))
    assert "temporary files" in told
    assert "10 MB are free" in told


def test_a_folder_that_cannot_be_written_leads_to_an_environment() -> None:
    told = refused(replace(found("missing"), writable=False))
    assert "all users" in told
    assert "separate environment" in told


@pytest.mark.parametrize("version", ["3.9.10", "3.14.0"])
def test_a_python_that_cannot_read_is_named_with_its_version(version: str) -> None:
    assert f"Python {version}" in refused(replace(found("missing"), python=version))


def test_no_pip_and_an_old_pip_say_what_to_run() -> None:
    assert "ensurepip" in refused(replace(found("missing"), pip=""))
    assert "install --upgrade pip" in refused(replace(found("missing"), pip="21.3.1"))


def test_from_a_folder_of_wheels_nothing_is_fetched_and_the_network_is_off(tmp_path: Path) -> None:
    (tmp_path / "torch-2.13.0-py3-none-any.whl").touch()
    made = plan(found("missing"), wishes(wheels=tmp_path, pytorch=None), NEVER)
    assert kinds(made) == ["resolve", "install", "attempt"]
    assert made.fetched == 0
    pip = made.steps[1]
    assert {"--no-index", "--find-links", str(tmp_path)} <= set(pip.argv)
    assert pip.variables["PIP_NO_INDEX"] == "1"


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    assert "no .whl file" in refused(found("missing"), wishes(wheels=tmp_path))
    assert "no folder" in refused(found("missing"), wishes(wheels=tmp_path / "none"))


def test_the_password_of_a_proxy_is_on_no_command_line() -> None:
    made = plan(found("missing"), wishes(proxy="http://me:secret@proxy:8080"), NEVER)
    assert not any("secret" in part for step in made.steps for part in step.argv)
    assert all(made.steps[n].variables["PIP_PROXY"].endswith("proxy:8080") for n in (0, 1, 2))


def own(tmp_path: Path, **more: object) -> Wishes:
    return wishes(place="own", python="/usr/bin/python3.12", environment=tmp_path / "environment", **more)


def test_an_environment_of_its_own_is_made_first(tmp_path: Path) -> None:
    made = plan(None, own(tmp_path), NEVER, found("missing"))
    assert kinds(made) == ["environment", "resolve", "install", "attempt"]
    assert made.steps[0].argv == ("/usr/bin/python3.12", "-m", "venv", "--clear", str(tmp_path / "environment"))
    assert made.steps[2].argv[0].startswith(str(tmp_path / "environment"))
    assert "torch>=2.10" in made.steps[2].argv


def test_half_an_environment_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    ours = replace(BEGUN, made=str(tmp_path / "environment"))
    (tmp_path / "environment" / "lib").mkdir()
    assert plan(None, own(tmp_path), ours, found("missing")).verdict == "resume", "ended before its pyvenv.cfg"
    (tmp_path / "environment" / "pyvenv.cfg").touch()
    assert plan(None, own(tmp_path), ours, found("missing")).verdict == "resume"


def test_an_environment_that_somebody_else_made_is_not_cleared_where_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "pyvenv.cfg").touch()
    told = refused(None, own(tmp_path), base=found("missing"))
    assert "set-up did not make" in told
    assert "nothing in it is deleted" in told


def test_an_environment_is_never_made_over_somebodys_files(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "thesis.doc").touch()
    told = refused(None, own(tmp_path), base=found("missing"))
    assert "not empty" in told


def test_a_python_without_venv_is_refused_with_what_to_install(tmp_path: Path) -> None:
    assert "python3-venv" in refused(None, own(tmp_path), base=replace(found("missing"), venv=False))


def test_slicers_own_python_makes_no_environment(tmp_path: Path) -> None:
    told = refused(None, replace(own(tmp_path), python="/slicer/bin/PythonSlicer"), base=found("missing"))
    assert "starts only inside Slicer" in told


def test_the_small_build_is_asked_for_where_there_is_no_gpu_and_pip_has_no_place_of_its_own(tmp_path: Path) -> None:
    def more(survey: Survey) -> bool:
        return "--extra-index-url" in plan(None, own(tmp_path), NEVER, survey).steps[1].argv[-1]

    assert more(found("missing"))
    assert not more(replace(found("missing"), nvidia=True))
    assert not more(replace(found("missing"), own_index=True))
    assert not more(replace(found("missing"), system="darwin"))


def test_a_gpu_makes_it_larger_and_that_is_said() -> None:
    small, large = (plan(replace(found("missing"), nvidia=gpu), wishes(), NEVER) for gpu in (False, True))
    assert large.fetched > 5 * small.fetched
    assert any("CUDA" in note for note in large.notes)
    assert not any("CUDA" in note for note in small.notes)


def test_where_pips_pytorch_has_no_cuda_that_is_said(tmp_path: Path) -> None:
    windows = replace(found("missing"), nvidia=True, system="win32")
    made = plan(None, own(tmp_path), NEVER, windows)
    assert made.fetched < 1e9
    assert any("does not use the NVIDIA GPU" in note for note in made.notes)
    assert plan(windows, wishes(), NEVER).fetched > 1e9


def test_a_python_that_does_not_start_is_named() -> None:
    assert "does not start" in refused(None)


def test_int8_and_nf4_can_be_left_out() -> None:
    assert "bitsandbytes" in {name_of(one) for one in wishes().requirements}
    assert "bitsandbytes" not in {name_of(one) for one in wishes(quantised=False).requirements}
