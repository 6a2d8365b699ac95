"""Every question that the review of Slicer's extension index asks, answered; docs/extension-index.md lists them."""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest

from MedVLMReaderLib.install.journal import Journal
from MedVLMReaderLib.install.plan import Wishes, plan
from Testing import address
from Testing.install.test_plan import found
from Testing.test_imports import MODULES, imports

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "docs" / "extension-index" / "MedVLMReader.json"
CMAKE = (ROOT / "CMakeLists.txt").read_text()
README = (ROOT / "README.md").read_text()
LIST = (ROOT / "docs" / "extension-index.md").read_text()

TEXT = {"type": "string"}
SCHEMA = {  # what the index's schema 1.0.1 asks of an entry
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "required": ["$schema", "category", "scm_url"],
    "additionalProperties": False,
    "properties": {
        "$schema": TEXT, "category": TEXT, "scm_url": TEXT, "scm_revision": TEXT, "build_subdirectory": TEXT,
        "scm_type": {"enum": ["git", "local"]}, "enabled": {"type": "boolean"}, "tier": {"enum": [1, 3, 5]},
        "build_dependencies": {"type": "array", "items": TEXT},
    },
}  # fmt: skip
CATEGORIES = {"Informatics", "Analysis", "Pipelines", "Segmentation", "Quantification", "Developer Tools", "Examples"}
SLICERS = {"qt", "ctk", "slicer", "vtk", "vtkmodules", "SimpleITK", "numpy", "scipy"}
"""What may be imported at file scope beside the standard library and ourselves."""
MODULE_FILES = [path for path in sorted((ROOT / "MedVLMReader").rglob("*.py")) if "Testing" not in path.parts]
SHIPPED = [*MODULE_FILES, *MODULES.values()]


def entry() -> dict[str, object]:
    return dict(json.loads(ENTRY.read_text()))


def told(name: str) -> str:
    """A variable of CMakeLists.txt, as the index's own check finds it."""
    value = re.search(rf'set\s*\({name}\s*"([^"]+)"[ ]*\)', CMAKE)
    assert value is not None, f"{name} is not set"
    return value[1]


def in_tree(url: str) -> Path:
    """The file that a raw address names, once the repository is published."""
    start = f"https://raw.githubusercontent.com/{address.repository()}/main/"
    assert url.startswith(start), url
    return ROOT / url.removeprefix(start)


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n"), f"{path.name} is no PNG"
    width, height = struct.unpack(">II", content[16:24])
    return int(width), int(height)


# ---- Its entry -------------------------------------------------------------------------------------------------------


def test_the_entry_is_valid() -> None:
    jsonschema.validate(entry(), SCHEMA)
    assert ENTRY.read_bytes().endswith(b"}\n")
    assert b"\r" not in ENTRY.read_bytes()
    assert str(entry()["$schema"]).endswith("/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry()["category"] in CATEGORIES


@pytest.mark.parametrize("wrong", [{"tier": 4}, {"build_dependencies": "PyTorch"}, {"colour": "blue"}])
def test_an_entry_that_is_wrong_would_be_seen(wrong: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(entry() | wrong, SCHEMA)


def test_the_name_suits_and_is_the_same_everywhere() -> None:
    name = ENTRY.stem
    assert not name.lower().startswith("slicer")
    assert re.search(r"project\s*\(\s*([^\s)]+)", CMAKE)[1] == name  # type: ignore[index]
    assert (ROOT / name / f"{name}.py").is_file()


def test_the_repository_is_named_as_the_index_wants_it() -> None:
    parts = urlsplit(str(entry()["scm_url"]))
    assert parts.scheme == "https"
    assert parts.path.removesuffix(".git").split("/")[-1].startswith("Slicer")
    assert parts.path.removesuffix(".git") == f"/{address.repository()}"
    assert entry()["scm_revision"] == "main", "a branch, so that an update needs no new entry"


def test_entry_and_cmake_say_the_same() -> None:
    assert told("EXTENSION_HOMEPAGE") == f"https://github.com/{address.repository()}"
    assert (told("EXTENSION_DEPENDS") == "NA") == (entry()["build_dependencies"] == [])
    assert entry()["build_subdirectory"] == "."


def test_the_public_address_is_written_everywhere_by_one_command(tmp_path: Path) -> None:
    for name in address.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    address.write("https://github.com/some-clinic/SlicerMedVLMReader", tmp_path)
    text = "".join((tmp_path / name).read_text() for name in address.FILES)
    assert f"/{address.repository()}" not in text or address.repository() == "some-clinic/SlicerMedVLMReader"
    assert text.count("/some-clinic/SlicerMedVLMReader") == 5
    with pytest.raises(ValueError, match="should be like"):
        address.write("https://github.com/some-clinic/MedVLM", tmp_path)


def test_the_repository_is_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no checkout: nothing says what belongs to the repository")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < 100e6


# ---- What people see -------------------------------------------------------------------------------------------------


def test_the_description_says_in_a_sentence_or_two_what_it_is_for() -> None:
    text = told("EXTENSION_DESCRIPTION")
    assert 1 <= len(re.findall(r"[.](?:\s|$)", text)) <= 3
    assert {"CT", "MR", "reports"} <= set(re.findall(r"\w+", text))
    assert "Not for clinical use" in text


def test_no_patent_is_known_and_that_is_said() -> None:
    assert "patent" in LIST.lower()
    assert "none is known" in LIST.lower()


def test_there_is_an_icon() -> None:
    width, height = png_size(in_tree(told("EXTENSION_ICONURL")))
    assert width == height >= 64


def test_there_are_screenshots() -> None:
    urls = told("EXTENSION_SCREENSHOTURLS").split()
    assert len(urls) >= 2
    assert all(min(png_size(in_tree(url))) >= 400 for url in urls)


def test_the_licence_is_there_permissive_and_named() -> None:
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text()
    assert "Apache License 2.0" in README


def test_the_readme_introduces_the_extension() -> None:
    assert README.startswith("# MedVLM Reader\n")
    assert any("CT or MR" in part and 1 <= part.count(".") <= 3 for part in README.split("\n\n")[:5]), "no summary"
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / one).is_file() for one in pictures)
    assert re.search(r"3D Slicer\W[^\n]*\bmodule\b", README), "the module has its sentence"
    assert "## Cite" in README
    assert len(re.findall(r"arXiv \d{4}\.\d{5}", README)) >= 3


def test_there_is_a_tutorial_in_steps_with_pictures_and_it_says_where_the_sample_is() -> None:
    page = ROOT / "docs" / "tutorial.md"
    if not page.exists():
        pytest.skip("docs/tutorial.md is not written yet")
    text = page.read_text()
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) >= 5
    assert len(re.findall(r"!\[", text)) >= 2
    assert "Sample" in text
    assert "tutorial" in README.lower()


def test_the_sample_study_is_registered_with_sample_data() -> None:
    source = (ROOT / "MedVLMReader" / "MedVLMReaderQt" / "sample.py").read_text()
    assert "registerCustomSampleDataSource" in source
    assert 'resource("sample/sample.nii.gz")' in source
    assert "startupCompleted()" in (ROOT / "MedVLMReader" / "MedVLMReader.py").read_text()


# ---- What it does ----------------------------------------------------------------------------------------------------

AT_FILE_SCOPE = {  # what runs when a module is imported, and why it must
    "MedVLMReader.py": "only in a checkout: the library's folder is put on the path, where an installed one is already",
    "attention.py": "in the reader's process alone: transformers is told of an attention that keeps its rows",
}
NETWORK = {  # modules that can reach a network, and what for; each only when the user asks for just that
    "download": "models of the hub, after the user has agreed", "install.fetching": "models of the hub, after agreeing",
    "install.child": "asks the package index how large packages are, after the user has agreed to install",
    "dicom.web": "reads from a server that the user names",
    "export.cstore": "sends a report to an archive that the user names",
    "export.stow": "sends a report to an archive that the user names",
    "batch.cluster": "many studies on the user's own Ray cluster",
    "batch.shelf": "readings on a store that the user names",
    "training.med3dvlm": "only writes weights, by the hub's library: nothing is reached",
}  # fmt: skip
REACHES = {"huggingface_hub", "requests", "urllib", "http", "socket", "dicomweb_client", "pynetdicom", "ray", "fsspec",
           "httpx", "ftplib", "smtplib", "ssl", "xmlrpc", "aiohttp"}  # fmt: skip


def runs_at_file_scope(tree: ast.Module) -> Iterator[str]:
    """Statements that do more than define."""
    for one in tree.body:
        if isinstance(one, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)):
            continue
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
            continue
        if isinstance(one, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(one.test)):
            continue
        yield ast.unparse(one).splitlines()[0]


def test_nothing_runs_when_a_module_is_imported() -> None:
    doing = {path.name: list(runs_at_file_scope(ast.parse(path.read_text()))) for path in SHIPPED}
    assert {name for name, found in doing.items() if found} == set(AT_FILE_SCOPE), {n: f for n, f in doing.items() if f}


def test_slicer_imports_nothing_at_file_scope_that_it_does_not_have() -> None:
    waiting = [(path.stem, ast.parse(path.read_text())) for path in MODULE_FILES]
    seen, foreign = set(), set()
    while waiting:
        name, tree = waiting.pop()
        for one in imports(name if name in MODULES else "", tree):
            top, below = one.name.split(".")[0], one.name.removeprefix("MedVLMReaderLib").removeprefix(".")
            if one.in_function or top in SLICERS or top in sys.stdlib_module_names or top.startswith("MedVLMReaderQt"):
                continue
            if not one.is_ours:
                foreign.add((name, top))
            elif below not in seen:
                seen.add(below)
                waiting.append((below, ast.parse(MODULES[below].read_text())))
    assert foreign == set()
    assert {"panel", "scene", "worker.client", "install.setting_up"} <= seen, "this test has lost its way"


def test_pip_is_never_asked_for_pytorch_in_slicers_python() -> None:
    made = plan(found("missing"), Wishes("slicer", "/slicer/bin/PythonSlicer", pytorch=Path("/ext")), Journal())
    assert made.steps[0].kind == "torch"
    assert not any(part.startswith("torch") for step in made.steps if step.kind == "install" for part in step.argv)
    direct = [path.name for path in SHIPPED if "pip_install(" in path.read_text()]
    assert direct == ["slicer_packaging.py"], "the only way to Slicer's pip"


def test_what_can_reach_a_network_is_known_and_each_waits_for_the_user() -> None:
    reaching = set()
    for name, path in MODULES.items():
        tops = {one.name.split(".")[0] for one in imports(name, ast.parse(path.read_text()))}
        if tops & REACHES:
            reaching.add(name)
    assert reaching == set(NETWORK)
    for path in MODULE_FILES:
        assert not {one.name.split(".")[0] for one in imports("", ast.parse(path.read_text()))} & REACHES


def test_the_page_on_privacy_names_every_place_that_anything_can_go_to() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text()
    named = {
        "download": "Hugging Face hub", "install.fetching": "Hugging Face hub", "install.child": "package index",
        "dicom.web": "DICOMweb", "export.cstore": "C-STORE", "export.stow": "STOW-RS", "batch.cluster": "Ray cluster",
        "batch.shelf": "s3://", "training.med3dvlm": "",
    }  # fmt: skip
    assert set(named) == set(NETWORK)
    assert [words for words in named.values() if words not in page] == []


def test_reading_reaches_no_network(tiny_model: Path, body_ct: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from MedVLMReaderLib.reader import load

    reached: list[str] = []
    watching = True

    def heard(event: str, _: tuple[object, ...]) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
            reached.append(event)

    sys.addaudithook(heard)
    try:
        reader = load(str(tiny_model))
        seen = reader.see(body_ct)  # type: ignore[arg-type]
        assert reader.report(seen).text
    finally:
        watching = False
    assert reached == []


def test_no_code_of_a_models_repository_is_ever_fetched_or_run() -> None:
    text = {path.name: path.read_text() for path in SHIPPED}
    assert [name for name, one in text.items() if "trust_remote_code=True" in one] == []
    assert [name for name, one in text.items() if re.search(r"\b(exec|eval)\(", one) and "model.eval(" not in one
            and not re.search(r"\.eval\(", one)] == []  # fmt: skip
    assert ".py" not in re.search(r"^SETTINGS = \((.*)\)", text["download.py"], re.MULTILINE)[1]  # type: ignore[index]


def test_what_is_downloaded_can_be_removed_from_the_module() -> None:
    form = (ROOT / "MedVLMReader" / "Resources" / "UI" / "MedVLMReaderSetUp.ui").read_text()
    view = (ROOT / "MedVLMReader" / "MedVLMReaderQt" / "set_up.py").read_text()
    for button, call in (("removeModelButton", "self.models.remove("), ("removeButton", "self.setting_up.remove()")):
        assert f'name="{button}"' in form
        assert call in view


def test_it_is_built_from_python_alone_so_that_every_platform_gets_it() -> None:
    compiled = [path for path in (ROOT / "MedVLMReader").rglob("*") if path.suffix in (".cxx", ".h", ".cpp", ".c")]
    compiled += [path for path in (ROOT / "MedVLMReaderLib").rglob("*") if path.suffix in (".cxx", ".h", ".cpp", ".so")]
    assert compiled == []


def test_critical_features_have_automated_tests_that_slicers_runner_executes() -> None:
    listed = (ROOT / "MedVLMReader" / "CMakeLists.txt").read_text()
    assert "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)" in listed
    tree = ast.parse((ROOT / "MedVLMReader" / "MedVLMReader.py").read_text())
    (case,) = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "MedVLMReaderTest"]
    assert len([one for one in case.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]) >= 4


def test_every_question_of_the_review_names_the_test_that_answers_it() -> None:
    named = re.findall(r"`(test_\w+)`", LIST)
    assert len(named) >= 18
    here = {name for name in globals() if name.startswith("test_")}
    elsewhere = {"test_critical_features_have_automated_tests_that_slicers_runner_executes"}
    assert set(named) <= here | elsewhere
    assert here - set(named) <= {
        "test_an_entry_that_is_wrong_would_be_seen", "test_every_question_of_the_review_names_the_test_that_answers_it",
    }, "a test that no question names"  # fmt: skip


def test_what_must_be_done_by_hand_on_the_day_of_publishing_is_listed() -> None:
    for words in ("3d-slicer-extension", "Wiki", "Releases", "Testing.address"):
        assert words in LIST
