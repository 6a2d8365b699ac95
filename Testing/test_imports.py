"""Who may import what: the table that keeps torch out of Slicer and each module beside the ones it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "MedVLMReaderLib"
HEAVY = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "monai", "bitsandbytes", "accelerate",
    "numpy", "vtkmodules", "scipy", "SimpleITK", "pydicom", "gdcm", "matplotlib", "PIL", "tqdm", "highdicom", "fhir",
    "reportlab", "pynetdicom", "jsonschema",
)  # fmt: skip
NEVER = {"torchvision", "timm", "torchao", "kernels", "pickle", "nibabel", "slicer", "qt", "ctk"}


@dataclass(frozen=True)
class Rule:
    """What a module may import. Patterns as in a shell; the standard library and ReaderError are everybody's."""

    ours: str = ""
    """Modules of the library."""
    theirs: str = ""
    """Other packages, wherever the import stands."""
    inside: str = ""
    """Other packages that only functions may import, when they run."""
    ours_inside: str = ""
    """Modules of the library that only functions may import."""


GROUND = "geometry volume study truth"
MADE = "shapes anatomy planting phantom phantom_report"
LEARNED = (
    "models models.* memory shards quantise weights attention preparation block pages reading resources hub choice "
    "copies prefix sinks stopping options verdict"
)
# The first pattern that fits a module is its rule. Widen a rule only with a reason in docs/decisions.md.
RULES = {
    "": Rule(),
    "geometry": Rule("", "numpy"),
    "cases": Rule(ours_inside="phantom phantom_report"),
    "volume": Rule("geometry", "numpy", "SimpleITK pydicom"),
    "voxels": Rule("geometry", "numpy"),
    "stack": Rule("geometry", "numpy", "SimpleITK"),
    "nifti": Rule("geometry voxels", "numpy"),
    "files": Rule("geometry volume voxels stack nifti dicom", "numpy", "SimpleITK"),
    "dicom": Rule("dicom.folder dicom.series dicom.slices"),
    "dicom.slices": Rule("geometry", "numpy", "pydicom"),
    "dicom.pixels": Rule("geometry voxels dicom.slices", "numpy", "pydicom"),
    "dicom.series": Rule("geometry volume voxels stack dicom.pixels dicom.slices", "numpy"),
    "dicom.folder": Rule("geometry volume voxels dicom.series dicom.slices", "numpy"),
    "dicom.chosen": Rule("dicom.series dicom.slices room stack volume", "numpy"),
    "dicom.index": Rule("dicom.chosen dicom.pixels dicom.series dicom.slices thumbnail volume", "numpy"),
    "dicom.web": Rule("dicom.chosen dicom.series dicom.slices room volume", inside="dicomweb_client pydicom requests"),
    "study": Rule("geometry volume", "numpy"),
    "mrml": Rule("geometry", "numpy vtkmodules"),
    "scene": Rule("geometry mrml place volume voxels", "numpy vtkmodules"),
    "curves": Rule("geometry mrml slices", "numpy vtkmodules"),
    "overlay": Rule("geometry mrml curves scene pictures volume", "numpy"),
    "watch": Rule("mrml scene", "vtkmodules"),
    "parameters": Rule("mrml"),
    "results": Rule("geometry mrml place reading session", "numpy"),
    "transcript": Rule("reading results"),
    "case": Rule("geometry heatmap models pictures reading results session slices volume", "numpy"),
    "gpu": Rule(),
    "needs": Rule("gpu memory models", ours_inside="hub"),
    "state": Rule("needs results transcript worker worker.events"),
    "ground": Rule(
        "case gpu models mrml overlay parameters scene session state worker worker.client worker.events", "numpy"
    ),
    "sight": Rule("case curves ground overlay reading transcript worker worker.events worker.plain", "numpy"),
    "paper": Rule(
        "case ground mrml reading report results scene sight state transcript worker worker.events",
        ours_inside="export.source",
    ),
    "many": Rule("ground mrml needs paper scene study worker worker.client worker.logic", ours_inside="batch.studies"),
    "panel": Rule(
        "case ground many mrml needs overlay parameters place reading results scene session sight state watch worker "
        "worker.client worker.events worker.plain",
        "numpy",
    ),
    "drawing": Rule("curves panel parameters state volume"),
    "console": Rule("many mrml reading scene volume worker worker.client worker.logic worker.plain"),
    "truth": Rule(),
    "shapes": Rule("geometry", "numpy"),
    "anatomy": Rule("geometry volume truth shapes", "numpy scipy"),
    "planting": Rule("geometry volume truth shapes anatomy", "numpy"),
    "phantom": Rule("geometry volume study truth shapes anatomy planting", "numpy scipy"),
    "phantom_report": Rule("truth"),
    "heatmap": Rule("geometry volume", "numpy"),
    "reading": Rule("geometry volume study heatmap", "numpy"),
    "slices": Rule("geometry volume heatmap", "numpy"),
    "report_page": Rule("reading volume slices", "numpy"),
    "pictures": Rule("geometry volume reading heatmap", "numpy", "matplotlib"),
    "plain": Rule(),
    "preparation": Rule("geometry volume plain", "numpy"),
    "block": Rule("geometry volume plain", "numpy"),
    "pages": Rule("geometry volume plain", "numpy"),
    "resources": Rule(),
    "models": Rule(),
    "memory": Rule(),
    "manifest": Rule(),
    "download": Rule("manifest", inside="huggingface_hub"),
    "hub": Rule("manifest download models resources", inside="huggingface_hub transformers", ours_inside="shards"),
    "shards": Rule("", "torch safetensors"),
    "models.layers": Rule("geometry", "numpy torch"),
    "models.domain": Rule("", "torch"),
    "models.vit3d": Rule("geometry", "torch"),
    "models.dcformer": Rule("", "torch"),
    "models.slice_encoder": Rule("models.layers weights", "torch"),
    "models.sentencepiece": Rule("", "torch transformers tokenizers"),
    "models.families": Rule("geometry", "numpy torch transformers"),
    "models.pyramid": Rule("geometry models.dcformer weights", "torch", "monai"),
    "models.published": Rule("models.families weights", "transformers"),
    "models.*": Rule(
        "geometry volume study preparation block pages memory shards quantise weights models models.layers "
        "models.domain models.vit3d models.sentencepiece models.dcformer models.one_block models.families "
        "models.published models.pyramid models.pair models.slice_encoder",
        "numpy torch transformers tokenizers safetensors monai",
    ),
    "attention": Rule("geometry study prefix sinks", "numpy torch transformers"),
    "calibration": Rule(),
    "relevance": Rule("geometry study attention prefix", "numpy torch"),
    "looking": Rule("geometry study attention prefix reading relevance", "numpy torch"),
    "verdict": Rule("", "numpy"),
    "verification": Rule("geometry volume study heatmap attention relevance verdict", "numpy scipy torch"),
    "quantise": Rule("", "torch", "bitsandbytes"),
    "weights": Rule("memory models shards quantise", "torch transformers"),
    "copies": Rule("download manifest quantise shards weights", "torch safetensors"),
    "choice": Rule("memory models quantise study weights", "torch", ours_inside="models.huggingface"),
    "stopping": Rule("study", "torch"),
    "sinks": Rule("", "torch"),
    "prefix": Rule("memory study", "torch transformers"),
    "room": Rule("memory"),
    "thumbnail": Rule("geometry volume", "numpy", "PIL"),
    "batch": Rule("batch.desk batch.rounds"),
    "batch.shelf": Rule("reading", inside="fsspec"),
    "batch.host": Rule(),
    "batch.exporting": Rule(
        "batch.failure batch.shelf reading", ours_inside="export.source export.writing listing report"
    ),
    "batch.sentence_pictures": Rule("pictures reading report_page volume"),
    "batch.failure": Rule("batch.shelf"),
    "batch.summary": Rule("report_page batch.exporting batch.shelf", inside="pyarrow"),
    "batch.studies": Rule("dicom dicom.chosen dicom.index files room volume"),
    "batch.desk": Rule(
        "batch.failure batch.host batch.shelf dicom reading study thumbnail volume",
        ours_inside="batch.exporting batch.sentence_pictures",
    ),
    "batch.rounds": Rule("batch.desk batch.exporting batch.shelf", ours_inside="batch.summary"),
    "batch.cluster": Rule(
        "batch.desk batch.failure batch.rounds batch.shelf", inside="ray torch", ours_inside="reader"
    ),
    "place": Rule("geometry volume", "numpy"),
    "options": Rule(),
    "session": Rule("geometry volume study reading place"),
    "chat": Rule("geometry reader reading place session study volume"),
    "worker": Rule(),
    "worker.answering": Rule(
        "geometry volume study options place reading session memory prefix stopping choice chat reader worker "
        "worker.protocol worker.serving",
        "torch",
        ours_inside="worker.exporting",
    ),
    "worker.exporting": Rule("export export.source export.writing listing report worker worker.protocol"),
    "worker.*": Rule(
        "geometry volume study options place reading session verdict worker worker.client worker.events "
        "worker.failures worker.folder worker.jobs worker.plain worker.program worker.protocol worker.running "
        "worker.serving worker.transport worker.blocking worker.logic",
        "numpy",
        ours_inside="worker.answering worker.exporting batch batch.shelf batch.studies",
    ),
    "reader": Rule(
        f"{GROUND} {LEARNED} heatmap calibration looking relevance verification",
        "numpy torch transformers tokenizers safetensors",
        ours_inside="models.*",
    ),
    "retrieval": Rule(
        "block choice dicom files geometry hub models reading volume weights",
        "numpy torch",
        ours_inside="models.*",
    ),
    "fidelity": Rule("memory reader study volume weights", "torch"),
    "training": Rule(),
    "training.objectives": Rule("", "torch", "ot"),
    "training.engine": Rule("", "torch transformers safetensors"),
    "training.prepared": Rule("geometry volume block cases files phantom", "numpy", "PIL"),
    "training.slice_captions": Rule("geometry volume block training.prepared", "numpy", ours_inside="reader"),
    "training.*": Rule(
        f"{GROUND} {MADE} {LEARNED} cases training training.* evaluation evaluation.*",
        "numpy scipy torch transformers tokenizers safetensors tqdm",
        "accelerate huggingface_hub monai ot peft tensorboard",
    ),
    "evaluation": Rule(),
    "evaluation.phantom": Rule(
        f"{GROUND} {MADE} reading evaluation evaluation.*", "numpy scipy", ours_inside="reader training.made_data"
    ),
    "evaluation.rows": Rule(),
    "evaluation.forced": Rule(f"{GROUND} {MADE} reading evaluation evaluation.*", ours_inside="reader"),
    "evaluation.heatmaps": Rule(
        f"{GROUND} {MADE} reading evaluation evaluation.*",
        "numpy",
        ours_inside="attention looking options reader relevance",
    ),
    "evaluation.calibration": Rule(
        f"{GROUND} {MADE} reading calibration evaluation evaluation.*",
        "numpy",
        ours_inside="attention looking reader relevance",
    ),
    "evaluation.verification": Rule(
        f"{GROUND} {MADE} reading verdict evaluation evaluation.*", "numpy", "torch", ours_inside="reader relevance"
    ),
    "evaluation.domain": Rule("geometry volume study phantom", "numpy", ours_inside="reader"),
    "evaluation.language": Rule(inside="bert_score nltk rouge_score sacrebleu torch"),
    "evaluation.papers": Rule(
        "geometry cases evaluation evaluation.*", "numpy", "monai torch", ours_inside="reader training.prepared"
    ),
    "evaluation.drawing": Rule("reading", inside="matplotlib"),
    "evaluation.*": Rule(f"{GROUND} {MADE} heatmap reading preparation evaluation evaluation.*", "numpy scipy tqdm"),
    "structured": Rule("resources", inside="jsonschema"),
    "listing": Rule("phantom_report reading structured", ours_inside="evaluation.findings"),
    "sections": Rule(),
    "report": Rule("reading sections session structured"),
    "report_pdf": Rule("geometry report", inside="reportlab matplotlib fontTools"),
    "constrained": Rule("reader reading structured study", "torch transformers regex"),
    "export": Rule(),
    "export.identity": Rule("dicom.slices", inside="pydicom"),
    "export.source": Rule("dicom export export.identity reading volume", "numpy", inside="pydicom"),
    "export.*": Rule(
        "dicom geometry heatmap pictures reading report structured volume export export.*",
        "numpy",
        inside="pydicom highdicom fhir pynetdicom dicomweb_client requests",
        ours_inside="report_pdf",
    ),
    "check": Rule("geometry volume files reading resources", "numpy"),
    "install": Rule(),
    "install.child": Rule(inside="pip"),  # runs alone in the Python that is set up
    "install.pytorch_child": Rule(inside="PyTorchUtils"),  # runs alone in Slicer's Python
    "install.fetching": Rule("install install.child", inside="huggingface_hub", ours_inside="download hub models"),
    "install.collection": Rule(
        "hub install install.child install.pip_words install.plan models worker worker.transport"
    ),
    "install.*": Rule("resources install install.* worker worker.transport"),
    "cli": Rule("commands", inside="*", ours_inside="*"),
    "commands": Rule(),
    "commands.recipes": Rule("commands commands.* cases", inside="*", ours_inside="*"),
    "commands.ms_vlm": Rule("commands commands.* cases", inside="*", ours_inside="*"),
    "commands.insight": Rule("commands commands.* cases", inside="*", ours_inside="*"),
    "commands.protocols": Rule("commands commands.* cases", inside="*", ours_inside="*"),
    "commands.*": Rule("commands commands.*", inside="*", ours_inside="*"),
    "__main__": Rule("cli"),
}


def name_of(path: Path) -> str:
    """Dotted name below MedVLMReaderLib; empty for the library itself."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}


def rule_for(module: str) -> Rule | None:
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(module, pattern)), None)


def fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


@dataclass(frozen=True)
class Import:
    name: str
    line: int
    in_function: bool

    @property
    def is_ours(self) -> bool:
        return self.name.split(".")[0] == "MedVLMReaderLib"


def imports(module: str, tree: ast.AST, modules: dict[str, Path] | None = None) -> Iterator[Import]:
    """What a module imports when it runs; names under TYPE_CHECKING only help the type checker."""
    yield from _imports(module, tree, modules or MODULES, in_function=False)


def _imports(module: str, node: ast.AST, modules: dict[str, Path], in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(module, ast.Module([other], []), modules, in_function)
        elif isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, in_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            source = _absolute(module, child)
            for alias in child.names:  # `from package import module` imports the module
                below = f"{source}.{alias.name}".removeprefix("MedVLMReaderLib.")
                yield Import(f"{source}.{alias.name}" if below in modules else source, child.lineno, in_function)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(module, child, modules, in_function or function)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    is_package = MODULES[module].name == "__init__.py"
    parts = ["MedVLMReaderLib", *(module.split(".") if module else []), *([""] if is_package else [])]
    return ".".join([*parts[: -node.level], *([node.module] if node.module else [])])


def breach(found: Import, rule: Rule) -> str | None:
    """What is wrong with an import, or None."""
    top = found.name.split(".")[0]
    if top in NEVER:
        return f"line {found.line}: nothing here imports {top}"
    if found.is_ours:
        below = found.name.removeprefix("MedVLMReaderLib").removeprefix(".")
        if not below or fits(below, rule.ours) or (found.in_function and fits(below, rule.ours_inside)):
            return None
    elif top in sys.stdlib_module_names or fits(top, rule.theirs) or (found.in_function and fits(top, rule.inside)):
        return None
    late = fits(top, rule.inside) or fits(found.name.removeprefix("MedVLMReaderLib."), rule.ours_inside)
    return f"line {found.line}: {found.name}" + (" (only inside a function)" if late else "")


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "MedVLMReaderLib")
def test_module_imports_only_what_the_table_allows(module: str) -> None:
    rule = rule_for(module)
    assert rule is not None, f"{MODULES[module].relative_to(ROOT)} has no line in RULES"
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert [wrong for found in imports(module, tree) if (wrong := breach(found, rule))] == []


def test_one_model_never_imports_another_nor_the_reader() -> None:
    rule = rule_for("models.ms_vlm")
    assert rule is not None
    tree = ast.parse("from MedVLMReaderLib.models import m3d_lamed\nfrom MedVLMReaderLib.reader import Reader\n")
    modules = {**MODULES, "models.m3d_lamed": LIBRARY}
    assert len([found for found in imports("models.ms_vlm", tree, modules) if breach(found, rule)]) == 2


def test_a_late_import_is_told_from_an_early_one_and_from_one_for_the_type_checker() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "import pydicom\n"
        "def read():\n    import pydicom\n"
    )
    rule = Rule(inside="pydicom")
    assert [breach(found, rule) for found in imports("volume", tree)] == [
        None, "line 4: pydicom (only inside a function)", None,
    ]  # fmt: skip


def may_load(module: str) -> set[str]:
    """The heavy packages that come with a module: its own, its package's, and those of the modules it may import."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        rule = rule_for(name)
        waiting += [other for other in MODULES if rule and fits(other, rule.ours)]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    rules = [rule for name in reached if (rule := rule_for(name))]
    return {package for package in HEAVY if any(fits(package, rule.theirs) for rule in rules)}


TORCH_FREE = {module: may_load(module) for module in MODULES if "torch" not in may_load(module)}
GROUPS = sorted({tuple(sorted(allowed)) for allowed in TORCH_FREE.values()})


@pytest.mark.parametrize("allowed", GROUPS, ids=lambda names: "+".join(names) or "standard library")
def test_modules_above_torch_import_without_the_packages_that_they_may_not_load(allowed: tuple[str, ...]) -> None:
    group = [f"MedVLMReaderLib.{name}".rstrip(".") for name, own in TORCH_FREE.items() if tuple(sorted(own)) == allowed]
    blocked = [package for package in HEAVY if package not in allowed]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"for name in {group!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{group} need more than {allowed}:\n{done.stderr[-2000:]}"


def test_the_torch_free_part_is_what_slicer_loads() -> None:
    expected = {"", "geometry", "volume", "study", "truth", "reading", "resources", "models", "cli"} & set(MODULES)
    assert expected <= set(TORCH_FREE)
