"""`train`: the built-in model's recipe, stage by stage."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.commands.terminal import check_writable, loaded_packages, say, say_json, step, unwritable

STAGES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "data": ("made studies, prepared", ()),
    "stem": ("convolutions of the slice encoder, from crops around findings", (("data/*.npz", "data"),)),
    "encoder": (
        "the slice encoder, from dense supervision of whole slices",
        (("data/*.npz", "data"), ("stem/checkpoint.safetensors", "stem")),
    ),
    "features": (
        "every study through the encoder",
        (("data/*.npz", "data"), ("encoder/checkpoint.safetensors", "encoder")),
    ),
    "language": ("the decoder, on perfect visual tokens", ()),
    "words": (
        "Z-former and perceiver, between encoder and decoder",
        (("features/*.safetensors", "features"), ("language/checkpoint.safetensors", "language")),
    ),
    "encoder-2": (
        "the slice encoder a second time, from where it ended",
        (("data/*.npz", "data"), ("encoder/checkpoint.safetensors", "encoder")),
    ),
    "features-2": (
        "every study through that encoder",
        (("data/*.npz", "data"), ("encoder-2/checkpoint.safetensors", "encoder-2")),
    ),
    "words-2": (
        "Z-former and perceiver a second time, on those features",
        (("features-2/*.safetensors", "features-2"), ("words/checkpoint.safetensors", "words")),
    ),
    "export": (
        "the model as a folder that can be read with",
        (("encoder/checkpoint.safetensors", "encoder"), ("words/checkpoint.safetensors", "words")),
    ),
}
"""Of each stage what it makes, and what it needs: patterns in the folder of runs and the stage that makes each."""


def train(arguments: Namespace) -> None:
    """Do a stage, or go on with it; or list the stages."""
    if arguments.stage is None:
        _list(arguments)
        return
    if arguments.stage.endswith(".toml"):
        from MedVLMReaderLib.commands.recipes import train_by_file

        _say(arguments, train_by_file(arguments))
        return
    _check(arguments)
    loaded_packages()
    _say(arguments, _export(arguments) if arguments.stage == "export" else _run(arguments))


def _say(arguments: Namespace, finished: bool) -> None:
    if arguments.json:
        say_json({"stage": arguments.stage, "finished": finished})
    elif finished:
        say(f"Stage '{arguments.stage}' is finished.")
    else:
        say(f"The {arguments.minutes:g} minutes are over, and all is kept. The same command goes on.")


def _list(arguments: Namespace) -> None:
    if arguments.json:
        say_json({"stages": [{"stage": stage, "makes": makes} for stage, (makes, _) in STAGES.items()]})
        return
    for stage, (makes, _) in STAGES.items():
        say(f"{stage:<12}{makes}")
    say("\nOne after the other: medvlmreader train STAGE --runs DIR")


def _check(arguments: Namespace) -> None:
    """Raises ReaderError for what is missing, before anything heavy is loaded."""
    stage, runs = arguments.stage, arguments.runs
    if stage not in STAGES:
        raise ReaderError(f"No stage '{stage}'. Stages: {', '.join(STAGES)}.")
    if runs is None:
        raise ReaderError("Name the folder that everything is kept in: --runs DIR.")
    if stage == "export" and arguments.out is None:
        raise ReaderError("Name the folder that the model goes to: --out DIR.")
    for pattern, earlier in STAGES[stage][1]:
        if next(runs.glob(pattern), None) is None:
            raise ReaderError(
                f"'{runs}' has no {pattern}, which stage '{stage}' needs. "
                f"Run: medvlmreader train {earlier} --runs {runs}"
            )
    check_writable(arguments.out if stage == "export" else runs)


def _run(arguments: Namespace) -> bool:
    from MedVLMReaderLib.training.recipe import Plan, run, trial

    plan = trial(Plan()) if arguments.trial else Plan()
    if arguments.studies:
        plan = replace(plan, studies=arguments.studies)
    step(f"Stage '{arguments.stage}'; figures of the training stages come in log.jsonl below {arguments.runs} ...")
    return run(arguments.stage, arguments.runs, plan, arguments.minutes)


def _export(arguments: Namespace) -> bool:
    from MedVLMReaderLib.training.recipe import export

    folder: Path = arguments.out
    try:
        export(arguments.runs, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return True
