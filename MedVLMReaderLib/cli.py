"""The command line, `medvlmreader`: what can be typed, and how it ends.

Exit codes: 0 fine; 1 something the user can mend, said on stderr; 2 typed wrongly; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from MedVLMReaderLib import ReaderError, __version__
from MedVLMReaderLib.commands import FINE, INTERRUPTED, WRONG

DESCRIPTION = """\
Reads a CT or MR scan with a medical vision-language model on this machine, and shows where the model looked.
Not for clinical use.

A STUDY is a DICOM folder or file, or a NIfTI, NRRD or MetaImage file."""

KINDS = "sr", "dicom-pdf", "sc", "pmap", "seg", "text", "markdown", "pdf", "fhir", "json"
"""What a reading can be exported as, see `export.writing`."""
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Number = TypeVar("Number", int, float)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model's word that the terminal lacks must not end the reading
    arguments = parser().parse_args(argv)
    module, function = arguments.run.split(":")
    try:
        run = getattr(importlib.import_module(f"MedVLMReaderLib.commands.{module}"), function)
        return _printed(int(run(arguments) or FINE))
    except ReaderError as error:
        print(f"medvlmreader: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("medvlmreader: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it is not imported here
            raise
        print("medvlmreader: the GPU's memory ran out. Try --precision nf4, or --device cpu.", file=sys.stderr)
        return WRONG


def _printed(code: int) -> int:
    """The code, or WRONG where not all could be printed."""
    from MedVLMReaderLib.commands.terminal import Unprinted

    if not Unprinted.reason:
        return code
    print(f"medvlmreader: not all could be printed ({Unprinted.reason}).", file=sys.stderr)
    return code or WRONG


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    whole = argparse.ArgumentParser(
        "medvlmreader", description=DESCRIPTION, formatter_class=_Formatter, epilog=_EXAMPLES
    )
    whole.add_argument("--version", action="version", version=f"medvlmreader {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _ALL:
        add(commands)
    return whole


_EXAMPLES = """\
examples:
  medvlmreader read chest.nii.gz --out readings/chest
  medvlmreader ask chest.nii.gz "Is there a nodule in the right lung?"
  medvlmreader COMMAND --help

exit codes: 0 fine; 1 something to mend, said on stderr; 2 typed wrongly; 130 interrupted"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines as they are written; options in a column that holds the longest."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._action_max_length = 13  # argparse forgets that commands stand two columns further in than options


def _add(commands: Commands, name: str, run: str, summary: str, more: str, *examples: str) -> argparse.ArgumentParser:
    """A command that runs `run`, a module of commands/ and a function in it."""
    lines = "\n".join(f"  medvlmreader {one}" for one in examples)
    epilog = f"example{'s' if len(examples) > 1 else ''}:\n{lines}"
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}".rstrip(), epilog=epilog,
        formatter_class=_Formatter,
    )  # fmt: skip
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return command


def _models(commands: Commands) -> None:
    command = _add(
        commands, "models", "models:show", "list the models that can read",
        "With the memory that each needs in 32, 16, 8 and 4 bits, and whether this machine has it.",
        "models", "models --json", "models --installed", "models --get m3d-lamed", "models --remove m3d-lamed",
    )  # fmt: skip
    what = command.add_mutually_exclusive_group()
    what.add_argument("--installed", action="store_true", help="those of the hub that are on this machine")
    what.add_argument("--get", metavar="NAME", help="fetch a model, or check every byte of one that is here")
    what.add_argument("--remove", metavar="NAME", help="delete all that is here of a model of the hub")
    command.add_argument("--revision", metavar="R", help="of --get: a commit, a tag, a branch")


def _read(commands: Commands) -> None:
    command = _add(
        commands, "read", "asking:read", "write a report on a study",
        "Prints the report as it is written. The folder of --out then holds report.txt, the reading itself\n"
        "(reading.json and arrays.npz), where the model looked (heatmap.nii.gz) and a picture for each sentence\n"
        "(sentence-01.png ...).\n"
        "Ctrl-C stops after the current word and keeps what was written, marked incomplete; twice ends at once.",
        "read chest.nii.gz --out readings/chest",
        "read dicom_folder --series 4 --json",
    )  # fmt: skip
    _study(command)
    _answering(command)


def _ask(commands: Commands) -> None:
    command = _add(
        commands, "ask", "asking:ask", "ask a question about a study", "Prints the answer and keeps it as `read` does.",
        'ask chest.nii.gz "How large is the nodule in the right lung?"',
        'ask chest.nii.gz "Was contrast given? Choices: A. with contrast B. without contrast" --no-heatmaps',
    )  # fmt: skip
    _study(command)
    command.add_argument("question", metavar="QUESTION", help='may end with " Choices: A. ... B. ..."')
    _answering(command)


def _chat(commands: Commands) -> None:
    command = _add(
        commands, "chat", "chat:chat", "ask several questions about a study, each knowing those before it",
        "Reads questions from the terminal or a pipe, one a line. The scan is looked at once.\n"
        "/again [SEED] answers the last question anew; /edit N QUESTION asks question N otherwise, and drops those\n"
        "after it; /at R,A,S QUESTION asks about a point in mm (with three sizes more: about a region); /end ends.\n"
        "Ctrl-C stops an answer and keeps what was written; between answers it ends the chat.",
        "chat chest.nii.gz --save chats/chest",
        "chat chest.nii.gz --session chats/chest",
    )  # fmt: skip
    _study(command)
    _model(command)
    command.add_argument("--save", type=Path, metavar="DIR", help="keep the chat there, after every answer")
    command.add_argument("--session", type=Path, metavar="DIR", help="go on with a kept chat, and keep it there")
    command.add_argument("--no-heatmaps", action="store_true", help="text only, which is quicker")
    command.add_argument("--longest", type=_count, default=512, metavar="N", help="cut off after N tokens (512)")


def _batch(commands: Commands) -> None:
    command = _add(
        commands, "batch", "batch:batch", "read many studies, each into a folder of its own",
        "INPUT is a folder (every scan in it, and of every DICOM examination one series), a csv with a column `path`\n"
        "(and if wanted `study` and `series`), or a DICOMweb address. Studies that are there are skipped, failed ones\n"
        "leave error.json. summary.csv, summary.parquet and index.html tell of all. Folders are named by opaque ids;\n"
        "no name of a file is kept unless --names asks for it.\n"
        "Ctrl-C stops cleanly; the same command goes on. Exit code 1: some studies failed.",
        "batch studies --out readings",
        "batch studies.csv --model m3d-lamed --questions questions.txt --out readings --pictures",
        "batch archive --out readings --to sr,pdf",
        "batch studies --out /shared/readings --ray 10.0.0.1:6379 --workers 8",
    )  # fmt: skip
    command.add_argument("input", metavar="INPUT", help="folder, csv, or http(s):// of a DICOMweb server")
    command.add_argument("--out", metavar="DIR", help="folder of the readings, or a URL that fsspec can write to")
    _model(command)
    command.add_argument("--questions", type=Path, metavar="FILE", help="one a line (default: ask for a report)")
    command.add_argument("--pictures", action="store_true", help="keep a picture for each sentence, and a page")
    command.add_argument(
        "--to", type=_kinds, default=(), metavar="KIND,KIND", help=f"also export each reading: {', '.join(KINDS)}"
    )
    command.add_argument("--no-heatmaps", action="store_true", help="text only, which is quicker")
    command.add_argument("--longest", type=_count, default=512, metavar="N", help="cut off after N tokens (512)")
    command.add_argument("--threads", type=_count, metavar="N", help="of a reader (default: half of the cores)")
    command.add_argument("--names", type=Path, metavar="FILE", help="write there which id is which scan, as csv")
    command.add_argument("--list", action="store_true", help="only show what would be read, and its ids")
    command.add_argument(
        "--rule", choices=["thinnest-axial", "all"], default="thinnest-axial",
        help="which series of a DICOM examination (default: thinnest-axial)",
    )  # fmt: skip
    command.add_argument("--index", type=Path, metavar="FILE", help="the folder's DICOM index (default: in the cache)")
    command.add_argument("--query", metavar="Q", help="of a DICOMweb server: ModalitiesInStudy=CT,StudyDate=20260101-")
    command.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="on a Ray cluster: host:port, auto; none: start one"
    )
    command.add_argument("--workers", type=_count, metavar="N", help="of --ray: readers (default: what fits)")


def _index(commands: Commands) -> None:
    command = _add(
        commands, "index", "batch:index", "list the DICOM series under a folder, and which `batch` would read",
        "Headers are read once and kept in a small file in the user's cache; the next time only new files are opened.",
        "index archive",
        "index archive --json --thumbnails pictures",
    )  # fmt: skip
    command.add_argument("folder", type=Path, metavar="FOLDER", help="looked through with all folders in it")
    command.add_argument("--index", type=Path, metavar="FILE", help="keep the index there instead")
    command.add_argument("--thumbnails", type=Path, metavar="DIR", help="write the middle slice of each series there")


def _heatmap(commands: Commands) -> None:
    command = _add(
        commands, "heatmap", "heatmap:heatmap", "draw where the model looked for a part of a kept reading",
        "Reads the folder that `read` or `ask` wrote. Without --words or --sentence: all text.\n"
        "The model is loaded only by --verify, and by --look, which looks again in the way of --method. Both need\n"
        "--study. --verify paints over the highlighted region, scores the words again, and says whether the image\n"
        "supports them: supported, not supported or undecided, with the numbers.",
        "heatmap readings/chest --sentence 2",
        "heatmap readings/chest --sentence 2 --study chest.nii.gz --verify",
        "heatmap readings/chest --sentence 2 --study chest.nii.gz --method attention --look",
        'heatmap readings/chest --words "right lung" --study chest.nii.gz --out lung.nii.gz',
    )  # fmt: skip
    command.add_argument("reading", type=Path, metavar="READING", help="folder of a reading")
    part = command.add_mutually_exclusive_group()
    part.add_argument("--words", metavar="TEXT", help="a stretch of the text, at its first place")
    part.add_argument("--sentence", type=_count, metavar="N", help="a sentence, counted from 1")
    command.add_argument("--method", help="attention or relevance (default: the model's own)")
    command.add_argument("--out", type=Path, metavar="FILE", help=".nii.gz, .nrrd or .mha (default: in READING)")
    command.add_argument("--study", type=Path, help="the scan that was read: draws a picture over it, beside the file")
    command.add_argument("--series", help=_SERIES)
    command.add_argument("--verify", action="store_true", help="say whether the image supports the words")
    command.add_argument("--look", action="store_true", help="look again with the model, in the way of --method")
    command.add_argument("--relative", action="store_true", help="of attention: as a multiple of a generic prompt's")
    _model(command, None)


def _preview(commands: Commands) -> None:
    command = _add(
        commands, "preview", "preview:preview", "show what the model will be shown of a study, after preparation", "",
        "preview chest.nii.gz --out chest.png",
        "preview dicom_folder --series 4 --json",
    )  # fmt: skip
    _study(command)
    _model(command)
    command.add_argument("--out", type=Path, metavar="FILE", help="picture, .png (default: readings/KEY/preview.png)")


def _search(commands: Commands) -> None:
    command = _add(
        commands, "search", "retrieval:search", "rank the studies of a folder by a text",
        "Every scan under the folder is turned into a vector once; vectors are kept, so that the next search is\n"
        "quick. Files that are no scan are named and left out.",
        'search "pleural effusion on the left" studies',
        'search "renal calculus" studies --model m3d-clip --top 5 --json',
    )  # fmt: skip
    command.add_argument("text", metavar="TEXT", help="what to look for")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="looked through with all folders in it")
    _pair(command)
    command.add_argument("--top", type=_count, default=10, metavar="N", help="how many to print (default: 10)")


def _classify(commands: Commands) -> None:
    command = _add(
        commands, "classify", "retrieval:classify", "score findings of a study without training for them",
        "The score orders findings; it is no probability of disease. What it is stands above the list.",
        'classify chest.nii.gz --labels "nodule, pleural effusion, fracture"',
    )  # fmt: skip
    _study(command)
    command.add_argument("--labels", required=True, metavar="LIST", help="findings, separated by commas")
    _pair(command)


def _segment(commands: Commands) -> None:
    command = _add(
        commands, "segment", "segment:segment", "mark what a trained segmenter finds in a study",
        "Writes a label map with the study's own voxels, and prints each class with its volume and centre.",
        "segment chest.nii.gz --model my-segmenter --out labels.nii.gz",
    )  # fmt: skip
    _study(command)
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a trained segmenter")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".nii.gz, .nrrd or .mha")


def _check(commands: Commands) -> None:
    command = _add(
        commands, "check", "check:check", "read the shipped sample and compare with the shipped result",
        "Says 'right', or what differs. Tells whether this installation reads as it should, not how good the model\n"
        "is. With --model: reads every byte of the model's files, then the sample in each precision, and says how far\n"
        "each is from the full one.",
        "check",
        "check --model built-in",
    )  # fmt: skip
    _model(command, None)
    command.add_argument("--regenerate", action="store_true", help="for developers: write the shipped result anew")


def _phantom(commands: Commands) -> None:
    command = _add(
        commands, "phantom", "phantom:phantom", "make a study with known findings",
        "Writes volume.nii.gz, labels.nii.gz, a mask for each finding, truth.json, report.txt and questions.json.\n"
        "No person was scanned for it: it may be passed on.",
        "phantom --seed 7 --out made/7",
        "phantom --seed 7 --mirrored --out made/7-mirrored",
    )  # fmt: skip
    command.add_argument("--seed", type=_natural, required=True, help="each number is another study")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--mirrored", action="store_true", help="with right and left of the body exchanged")


def _train(commands: Commands) -> None:
    command = _add(
        commands, "train", "training:train", "train the built-in model on made studies, stage by stage, or by a file",
        "Without STAGE: lists the stages. Each goes on where it was stopped. A file that ends in .toml trains as one\n"
        "of the papers does (docs/training.md), in the folder of --out.",
        "train",
        "train encoder --runs runs --minutes 60",
        "train export --runs runs --out my-model",
        "train Resources/training/made-siglip.toml --out runs/siglip",
    )  # fmt: skip
    command.add_argument("stage", nargs="?", metavar="STAGE", help="a stage of the list, or a .toml file")
    command.add_argument("--runs", type=Path, metavar="DIR", help="where everything is kept")
    command.add_argument("--minutes", type=_minutes, default=75.0, help="stop after so long, keeping all (default: 75)")
    command.add_argument("--studies", type=_count, metavar="N", help="made studies to learn from (default: 3000)")
    command.add_argument("--trial", action="store_true", help="a few steps on a few studies: does it run here?")
    command.add_argument("--out", type=Path, metavar="DIR", help="of export: the model; of a file: the run")


def _calibrate(commands: Commands) -> None:
    command = _add(
        commands, "calibrate", "calibrate:calibrate", "find which heads of a model point at what a sentence says",
        "On made studies, whose findings have known places. The heads are kept beside the model's files and used by\n"
        "every later look at its attention. `evaluate heatmaps` compares them with other ways of looking.",
        "calibrate --model built-in --seeds 600000-600099",
        "calibrate --model my-model --out heads.json",
    )  # fmt: skip
    command.add_argument(
        "--seeds", type=_seeds, default=range(600000, 600100), metavar="A-B", help="(default: 600000-600099)"
    )
    _model(command)
    command.add_argument("--out", type=Path, metavar="FILE", help="keep it there instead, as JSON")


def _evaluate(commands: Commands) -> None:
    command = _add(
        commands, "evaluate", "evaluate:evaluate", "measure how well a model reads",
        "phantom, heatmaps and verification: on made studies with known findings. retrieval, report and vqa: as the\n"
        "papers measure, on a data set (CSV or JSON, see docs/evaluation.md) or on made studies. segmentation: label\n"
        "maps of one folder against those of another. classification: a table of scores, or what a pair says of\n"
        "labels that it was never taught, against a table of true ones. Every figure has its 95 % interval.",
        "evaluate phantom --seeds 900000-900049",
        "evaluate phantom --seeds 900000-900049 --model my-model --json --out figures.json",
        "evaluate heatmaps --seeds 500000-500299 --kept heatmaps.jsonl",
        "evaluate vqa --cases M3D_VQA_test.csv --root M3D --model med3dvlm --answers answers.jsonl",
        "evaluate report --seeds 900000-900099 --answers answers.jsonl",
    )  # fmt: skip
    command.add_argument(
        "what",
        choices=["phantom", "heatmaps", "verification", "domain", "retrieval", "report", "vqa", "segmentation",
                 "classification"],
        help="phantom: made studies; heatmaps: which way of looking points at what a sentence says; verification: "
        "whether it tells true sentences from exchanged ones; domain: whether it flags scans that it has not learned "
        "to read",
    )  # fmt: skip
    command.add_argument("--seeds", type=_seeds, metavar="A-B", help="made studies, both ends included")
    command.add_argument("--mirrored", action="store_true", help="read the mirror images too")
    command.add_argument(
        "--kept",
        type=Path,
        metavar="FILE",
        help="of heatmaps and verification: keep each study there, and go on from it",
    )
    command.add_argument("--page", type=Path, metavar="FILE", help="of heatmaps: put the table into this Markdown page")
    command.add_argument("--scans", type=Path, nargs="+", metavar="SCAN", help="of domain: scans that it should flag")
    command.add_argument("--cases", type=Path, metavar="FILE", help="a data set instead of made studies")
    command.add_argument("--root", type=Path, metavar="DIR", help="where its paths start (default: beside it)")
    command.add_argument("--split", default="", metavar="NAME", help="of M3D_Cap.json: the part to use")
    command.add_argument("--skip-faulty", action="store_true", help="leave out cases with a fault")
    command.add_argument("--learned-from", type=Path, metavar="FILE", help="name studies that were learned from")
    command.add_argument("--answers", type=Path, metavar="FILE", help="keep answers there, and go on from them")
    command.add_argument("--wordnet", type=Path, metavar="DIR", help="WordNet's folder, for METEOR")
    command.add_argument("--bert", type=Path, metavar="DIR", help="folder of a BERT-like model, for BERTScore")
    command.add_argument(
        "--found", type=Path, metavar="PATH", help="of segmentation: the label maps; of classification: the scores"
    )
    command.add_argument("--true", type=Path, metavar="PATH", help="the true ones: label maps of the same names; a CSV")
    _model(command)
    command.add_argument("--out", type=Path, metavar="FILE", help="also keep the figures there, as JSON")
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw them there, as PNG")


def _export(commands: Commands) -> None:
    command = _add(
        commands, "export", "export:export", "hand out a kept reading as text, PDF, FHIR or DICOM",
        "READING is the folder of a kept reading or chat; a report.json in it holds the edits. DICOM objects need\n"
        "--source, the series that was read: they carry its patient and study, and are refused with a reason where\n"
        "that is in doubt. Everything says that it is AI generated and not for clinical use.\n"
        "Nothing is sent anywhere without --send; a transfer that broke off goes on with the same command.",
        "export readings/chest --to text markdown pdf",
        "export readings/chest --to sr sc seg --source dicom_folder --out objects",
        "export readings/chest --to sr --source dicom_folder --send ORTHANC@127.0.0.1:4242",
    )  # fmt: skip
    command.add_argument("reading", type=Path, metavar="READING", help="folder of a kept reading or chat")
    command.add_argument("--to", nargs="+", type=_kinds, required=True, metavar="KIND", help=", ".join(KINDS))
    command.add_argument("--source", type=Path, metavar="STUDY", help="the scan that was read; for DICOM, its series")
    command.add_argument("--series", help=_SERIES)
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (default: READING/export)")
    part = command.add_mutually_exclusive_group()
    part.add_argument("--words", help="heatmaps of these words of the reading (default: all of it)")
    part.add_argument("--sentence", type=_count, metavar="N", help="heatmaps of sentence N, counted from 1")
    command.add_argument(
        "--threshold", type=_share, default=0.5, metavar="X", help="of seg: share of the largest value (0.5)"
    )
    command.add_argument("--subject", metavar="REF", help="of fhir: the patient on the server, such as Patient/17")
    command.add_argument("--original", type=Path, metavar="READING", help="what the model wrote, of an edited reading")
    command.add_argument(
        "--send", metavar="TARGET", help="store the DICOM objects: TITLE@HOST:PORT (C-STORE) or http(s)://... (STOW-RS)"
    )
    command.add_argument("--list-findings", action="store_true", help="have the model list its findings as JSON")
    command.add_argument("--verify", action="store_true", help="say of each finding whether the image supports it")
    _model(command, None)


_ALL = (
    _models, _read, _ask, _chat, _batch, _index, _heatmap, _preview, _search, _classify, _segment, _check, _phantom,
    _train, _calibrate, _evaluate, _export,
)  # fmt: skip


# Options of several commands


_SERIES = "which series of a DICOM folder: its number or UID, or a part of it; a wrong one lists them"


def _study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", type=Path, metavar="STUDY", help="DICOM folder or file, NIfTI, NRRD or MetaImage")
    command.add_argument("--series", help=_SERIES)


def _model(command: argparse.ArgumentParser, default: str | None = "built-in") -> None:
    said = "a name of `models`, OWNER/NAME on the hub, or a folder"
    command.add_argument("--model", default=default, help=f"{said} (default: {default})" if default else said)
    command.add_argument(
        "--precision", default="auto", metavar="P", help="of the decoder: fp32, bf16, int8, nf4 (default: what fits)"
    )
    _where(command)


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="D", help="cuda, mps or cpu (default: the first of these that is there)")
    command.add_argument("--revision", metavar="R", help="of a model on the hub: a commit, a tag, a branch")
    command.add_argument("--offline", action="store_true", help="use only what is on this machine")


def _pair(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="med3dvlm-siglip", help="m3d-clip, med3dvlm-siglip or a folder (default: med3dvlm-siglip)"
    )
    _where(command)
    command.add_argument("--cache", type=Path, metavar="DIR", help="where vectors are kept (default: the user's cache)")


def _answering(command: argparse.ArgumentParser) -> None:
    _model(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the reading (default: readings/KEY)")
    command.add_argument("--no-heatmaps", action="store_true", help="text only, which is quicker")
    command.add_argument("--longest", type=_count, default=512, metavar="N", help="cut off after N tokens (512)")


def _kinds(text: str) -> tuple[str, ...]:
    """Kinds of export, by commas."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(KINDS)}")
    return found


def _count(text: str) -> int:
    return _number(text, 1, int)


def _natural(text: str) -> int:
    return _number(text, 0, int)


def _minutes(text: str) -> float:
    return _number(text, 0.0, float)


def _number(text: str, least: Number, kind: Callable[[str], Number]) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = least - 1
    if not value >= least:
        raise argparse.ArgumentTypeError(f"'{text}' should be a number from {least} up")
    return value


def _share(text: str) -> float:
    value = _number(text, 0.0, float)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' should be a number above 0, up to 1")
    return value


def _seeds(text: str) -> range:
    """The seeds of "3-7" or "3"."""
    first, _, last = text.partition("-")
    start, stop = _natural(first), _natural(last or first)
    if stop < start:
        raise argparse.ArgumentTypeError(f"'{text}' should name the smaller seed first")
    return range(start, stop + 1)


if __name__ == "__main__":
    sys.exit(main())
