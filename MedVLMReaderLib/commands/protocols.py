"""`evaluate retrieval|report|vqa|segmentation`: the papers' protocols on a data set, or on made studies."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import TYPES, Case, checked, made_cases, read_cases, shared
from MedVLMReaderLib.commands.terminal import arriving, loaded, loaded_packages, warn

PAIR = "med3dvlm-siglip"


def measured(arguments: Namespace) -> dict[str, Any]:
    """The figures of a protocol. ReaderError where the cases, the model or a folder is not what it should be."""
    if arguments.what == "segmentation":
        return _segmentation(arguments)
    cases = _cases(arguments)
    told = {"protocol": arguments.what, "model": arguments.model, "cases": len(cases)}
    if arguments.what == "retrieval":
        return {**told, **_retrieval(arguments, cases)}
    return {**told, **_answers(arguments, cases)}


def _cases(arguments: Namespace) -> list[Case]:
    """The cases that --cases or --seeds names, without faults."""
    if (arguments.cases is None) == (arguments.seeds is None):
        raise ReaderError("Name a data set with --cases FILE, or made studies with --seeds A-B, one of the two.")
    asks = arguments.what == "vqa"
    if arguments.cases is None:
        made = made_cases(arguments.seeds, questions=asks)
        return checked(made, known_types=(*TYPES, "size", "open", ""))
    found = read_cases(arguments.cases, arguments.root, arguments.split)
    wanted = [case for case in found if bool(case.question) == asks]
    if found and not wanted:
        held = "reports" if asks else "questions"
        raise ReaderError(f"'{arguments.cases}' holds {held}, which '{arguments.what}' does not use.")
    kept = checked(wanted, skip=arguments.skip_faulty)
    if arguments.learned_from:
        _tell_shared(read_cases(arguments.learned_from, arguments.root), kept)
    return kept


def _tell_shared(train: Sequence[Case], test: Sequence[Case]) -> None:
    found = shared(train, test)
    for one in found[:20]:
        warn(f"Learned from and tested on: {one}")
    if len(found) > 20:
        warn(f"and {len(found) - 20} more.")


def _answers(arguments: Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    from tqdm import tqdm

    from MedVLMReaderLib.evaluation import papers
    from MedVLMReaderLib.evaluation.language import WORDNET

    answers = papers.Answers(arguments.answers)
    missing = any((case.volume, case.asked) not in answers.kept for case in cases)
    ask = papers.asked_of(loaded(arguments.model, arguments)) if missing else _never
    with tqdm(total=len(cases), desc="Cases", disable=None, leave=False) as bar:
        said = papers.answered(cases, answers, ask, lambda n: bar.update(n - bar.n) and None)
    score = papers.reports if arguments.what == "report" else papers.questions
    return score(cases, said, wordnet=arguments.wordnet or WORDNET, bert=arguments.bert)


def _never(case: Case) -> str:
    raise AssertionError(case.place)


def _retrieval(arguments: Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    """Pairs whose reports differ: of equal ones none could be told to be the right one."""
    import numpy as np
    from tqdm import tqdm

    loaded_packages()
    from MedVLMReaderLib import retrieval
    from MedVLMReaderLib.evaluation import papers
    from MedVLMReaderLib.training.prepared import volume_of

    apart = list({case.report: case for case in reversed(cases)}.values())[::-1]
    name = PAIR if arguments.model == "built-in" else arguments.model
    with arriving() as progress:
        pair = retrieval.load(name, device=arguments.device, revision=arguments.revision, offline=arguments.offline,
                              progress=progress)  # fmt: skip
    kept = retrieval.Embeddings(retrieval.cache_folder())
    images = np.stack([kept.of(pair, volume_of(case.volume)) for case in tqdm(apart, disable=None, leave=False)])
    texts = [pair.of_texts([case.report])[0].float().cpu().numpy() for case in apart]
    return {"model": name, "pairs": len(apart), **papers.retrieval(images, np.stack(texts))}


def _segmentation(arguments: Namespace) -> dict[str, Any]:
    """Label maps of a folder against those of another, name by name."""
    import numpy as np

    from MedVLMReaderLib import files
    from MedVLMReaderLib.evaluation import papers

    if not arguments.found or not arguments.true:
        raise ReaderError("Name the folder of label maps with --found DIR, and that of the true ones with --true DIR.")
    paths = sorted(
        path for path in arguments.true.glob("*") if path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha"))
    )
    if missing := [path.name for path in paths if not (arguments.found / path.name).exists()]:
        raise ReaderError(f"'{arguments.found}' has no '{missing[0]}', which '{arguments.true}' has.")
    if not paths:
        raise ReaderError(f"'{arguments.true}' has no label map (.nii, .nii.gz, .nrrd, .mha).")

    def pair(path: Path) -> tuple[Any, Any, Sequence[float]]:
        ours, theirs = files.read(arguments.found / path.name), files.read(path)
        if not ours.grid.same_as(theirs.grid, 1e-2):
            raise ReaderError(f"The two label maps '{path.name}' do not lie in the same place.")
        return np.asarray(ours.values), np.asarray(theirs.values), theirs.grid.spacing.tolist()

    names = [f"class {n}" for n in range(1 + max(int(files.read(path).values.max()) for path in paths))]
    return {"protocol": "segmentation", "studies": len(paths), **papers.masks(map(pair, paths), names)}
