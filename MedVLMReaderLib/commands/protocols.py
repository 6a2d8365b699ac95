"""The papers' protocols of `evaluate`, on a data set or on made studies."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import MADE, TYPES, Case, Labels, checked, made_cases, read_cases, read_labels, shared
from MedVLMReaderLib.commands.terminal import arriving, loaded, loaded_packages, warn

PAIR = "med3dvlm-siglip"


def measured(arguments: Namespace) -> dict[str, Any]:
    """The figures of a protocol. ReaderError where the cases, the model or a folder is not what it should be."""
    if arguments.what == "segmentation":
        return _segmentation(arguments)
    if arguments.what == "classification":
        return _classification(arguments)
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
    with arriving(name) as progress:
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


def _classification(arguments: Namespace) -> dict[str, Any]:
    """Labels of volumes against a table of true ones: those of a table of scores, or a pair's without training."""
    import numpy as np

    from MedVLMReaderLib.evaluation import papers

    if (arguments.true is None) == (arguments.seeds is None):
        raise ReaderError("Name the true labels with --true FILE.csv, or made studies with --seeds A-B.")
    true = _made_labels(arguments.seeds) if arguments.seeds else read_labels(arguments.true, arguments.root)
    if arguments.found:
        found = read_labels(arguments.found, arguments.root, known=False)
        told: dict[str, Any] = {"model": "scores of a table"}
    else:
        found, name = _zero_shot(arguments, true)
        told = {"model": name}
    if missing := [volume for volume, _ in true.rows if volume not in found.by_volume]:
        raise ReaderError(f"'{arguments.found}' has no row for {len(missing)} volumes; the first: '{missing[0]}'.")
    if missing := [name for name in true.names if name not in found.names]:
        raise ReaderError(f"'{arguments.found}' has no column '{missing[0]}'.")
    at = [found.names.index(name) for name in true.names]
    scores = np.array([found.by_volume[volume] for volume, _ in true.rows])[:, at]
    figures = papers.labels(scores, np.array([row for _, row in true.rows]), true.names)
    return {"protocol": "classification", **told, "studies": len(true.rows), **figures}


def _made_labels(seeds: Sequence[int]) -> Labels:
    """The kinds of finding that made studies show."""
    from MedVLMReaderLib.phantom import made_truth
    from MedVLMReaderLib.phantom_report import NOUN
    from MedVLMReaderLib.truth import ORGAN_OF

    names = tuple(f"{NOUN[kind]} of the {organ}" for kind, organ in ORGAN_OF.items())
    rows = []
    for seed in seeds:
        kinds = {finding.kind for finding in made_truth(seed).findings}
        rows.append((f"{MADE}{seed}", tuple(float(kind in kinds) for kind in ORGAN_OF)))
    return Labels(names, tuple(rows))


def _zero_shot(arguments: Namespace, true: Labels) -> tuple[Labels, str]:
    """What a pair says of each label that it was never taught, and the pair's name."""
    import torch
    from tqdm import tqdm

    loaded_packages()
    from MedVLMReaderLib import retrieval
    from MedVLMReaderLib.models.siglip import presence
    from MedVLMReaderLib.training.prepared import volume_of

    name = PAIR if arguments.model == "built-in" else arguments.model
    with arriving(name) as progress:
        pair = retrieval.load(name, device=arguments.device, revision=arguments.revision, offline=arguments.offline,
                              progress=progress)  # fmt: skip
    kept, rows = retrieval.Embeddings(retrieval.cache_folder()), []
    for volume, _ in tqdm(true.rows, disable=None, leave=False):
        image = torch.from_numpy(kept.of(pair, volume_of(volume)))
        rows.append((volume, tuple(presence(pair, image, true.names))))
    return Labels(true.names, tuple(rows)), name
