"""What is handed out: the wheel, the Slicer extension, and what they declare to need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import MedVLMReaderLib
from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.resources import resource, resources_folder
from Testing.list_scripts import FOLDERS, listed, scripts

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "Resources"
MADE = "deep/er/made.bin"  # a resource of the tests' own, in a folder in a folder
RESOURCES = [MADE, *(str(path.relative_to(SHIPPED)) for path in sorted(SHIPPED.rglob("[!.]*")) if path.is_file())]
NEVER = {"kernels", "torchvision", "timm", "torchao", "pylibjpeg-libjpeg", "nibabel"}

# As Slicer's macro does: says no to a script that is missing, copies when built, installs what was copied.
SLICER = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
"""
USE_SLICER = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_NAME)
    message(FATAL_ERROR "Not understood: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  set(place ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  set(installed ${place}/)
  if(MY_WITH_SUBDIR)
    get_filename_component(subdir ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    set(place ${place}/${subdir})
    set(installed ${place})
  endif()
  foreach(file ${MY_SCRIPTS} ${MY_RESOURCES})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "given nonexistent file ${file}")
    endif()
    get_filename_component(folder ${file} DIRECTORY)
    file(COPY ${CMAKE_CURRENT_SOURCE_DIR}/${file} DESTINATION ${place}/${folder})
  endforeach()
  install(DIRECTORY ${installed} DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR} COMPONENT RuntimeLibraries)
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "no unit test: ${ARGN}")
  endif()
  file(APPEND ${CMAKE_BINARY_DIR}/unittests.txt "${MY_SCRIPT}\n")
endmacro()
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def found_from(place: Path, cwd: Path) -> dict[str, str]:
    """Path of each shipped resource, by a Python that knows the library at `place` alone, from the folder `cwd`."""
    program = (
        "import json, sys; sys.path[:] = [sys.argv[1], *(p for p in sys.path if p.startswith(sys.base_prefix))]\n"
        "import MedVLMReaderLib; from MedVLMReaderLib.resources import resource\n"
        "print(json.dumps({name: str(resource(name)) for name in sys.argv[2:]} | {'': MedVLMReaderLib.__file__}))"
    )
    return dict(json.loads(run(sys.executable, "-I", "-S", "-c", program, place, *RESOURCES, cwd=cwd)))


def check_resources(found: dict[str, str], library: Path, checkout: Path) -> None:
    assert Path(found.pop("")) == library / "__init__.py"
    assert found == {name: str(library / "Resources" / name) for name in RESOURCES}
    assert all(Path(path).read_bytes() == (checkout / "Resources" / name).read_bytes() for name, path in found.items())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout hands out, so that building leaves the checkout as it is."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "LICENSE.txt", "CMakeLists.txt"):
        shutil.copy(ROOT / name, copy)
    for name in ("MedVLMReader", "MedVLMReaderLib", "Resources", "Testing", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "Resources" / MADE).parent.mkdir(parents=True)
    (copy / "Resources" / MADE).write_bytes(b"made")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "built",
        ".",
        cwd=checkout,
    )
    (built,) = (checkout / "built").glob("medvlmreader-*.whl")
    return built


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in headers.get_all("Requires-Dist") or []]


def test_a_wheel_holds_the_whole_library_and_the_resources_and_nothing_else(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    library = {str(path.relative_to(checkout)) for path in (checkout / "MedVLMReaderLib").rglob("*.py")}
    assert names == library | {"MedVLMReaderLib/py.typed"} | {f"MedVLMReaderLib/Resources/{name}" for name in RESOURCES}


def test_resources_are_found_from_an_installed_wheel(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel, cwd=tmp_path)
    check_resources(found_from(place, tmp_path), place / "MedVLMReaderLib", checkout)
    (installed,) = metadata.distributions(path=[str(place)], name="medvlmreader")
    assert {point.name: point.value for point in installed.entry_points} == {"medvlmreader": "MedVLMReaderLib.cli:main"}


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake here")
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here, which cmake's project() looks for")
def test_resources_are_found_from_an_installed_slicer_extension(checkout: Path, tmp_path: Path) -> None:
    slicer, build, place = tmp_path / "slicer", tmp_path / "build", tmp_path / "installed"
    slicer.mkdir()
    (slicer / "SlicerConfig.cmake").write_text(SLICER)
    (slicer / "UseSlicer.cmake").write_text(USE_SLICER)
    (slicer / "Nothing.cmake").touch()
    told = (f"-DSlicer_DIR={slicer}", f"-DCMAKE_INSTALL_PREFIX={place}", "-DBUILD_TESTING=ON")
    run("cmake", "-S", checkout, "-B", build, *told, cwd=tmp_path)
    assert (build / "unittests.txt").read_text().split() == ["MedVLMReader.py", "MedVLMReaderSampleTest.py"]
    run("cmake", "--build", build, cwd=tmp_path)
    run("cmake", "--install", build, cwd=tmp_path)
    for tree in (build, place):
        modules = tree / "lib/Slicer-5.10/qt-scripted-modules"
        (modules / "Resources").mkdir(exist_ok=True)  # the icons of all scripted modules
        check_resources(found_from(modules, tmp_path), modules / "MedVLMReaderLib", checkout)
        assert (modules / "MedVLMReaderLib" / "docs" / "index.md").is_file()
        assert {path.name for path in modules.glob("*.py")} == {path.name for path in ROOT.glob("MedVLMReader/*.py")}


def test_cmake_lists_every_other_file_of_the_module_and_no_other() -> None:
    folder = ROOT / "MedVLMReader"
    block = re.search(r"set\(MODULE_PYTHON_RESOURCES\n(.*?)  \)\n", (folder / "CMakeLists.txt").read_text(), re.DOTALL)
    assert block is not None
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("Resources/**/*") if path.is_file()}
    assert set(block[1].split()) == {name for name in there if not name.endswith(".svg")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_cmake_lists_every_script_and_no_other(folder: str) -> None:
    named, there = set(listed(ROOT / folder)), set(scripts(ROOT / folder))
    assert (sorted(there - named), sorted(named - there)) == ([], []), "missing, in vain: run 'make lists'"


def test_nothing_that_may_not_be_depended_on_is(wheel: Path) -> None:
    needed = {canonicalize_name(one.name) for one in requirements(wheel) if 'extra == "test"' not in str(one.marker)}
    assert not needed & NEVER
    pinned = {canonicalize_name(one.name) for one in constraints()}
    assert not pinned & (NEVER - {"nibabel"})


def test_torch_comes_only_when_asked_for(wheel: Path) -> None:
    base = {canonicalize_name(one.name) for one in requirements(wheel) if one.marker is None}
    assert not base & {"torch", "transformers", "monai", "tokenizers", "safetensors", "huggingface-hub"}
    assert {"numpy", "simpleitk", "pydicom"} <= base


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_each_requirement_is_pinned_within_its_range(wheel: Path) -> None:
    pins = {canonicalize_name(one.name): next(iter(one.specifier)) for one in constraints()}
    assert all(pin.operator == "==" for pin in pins.values())
    outside = [
        str(one) for one in requirements(wheel) if pins[canonicalize_name(one.name)].version not in one.specifier
    ]
    assert outside == []


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    version = MedVLMReaderLib.__version__
    assert f'\nversion: "{version}"\n' in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_checkout_has_its_resources_beside_the_library() -> None:
    assert resources_folder() == SHIPPED
    assert all(resource(name).is_file() for name in RESOURCES if name != MADE)


def test_a_resource_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(ReaderError, match=r"'sample/none.nii.gz' should have come with .* Install again"):
        resource("sample/none.nii.gz")
