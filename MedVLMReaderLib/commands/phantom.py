"""`phantom`: a study with known findings, on disk."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from dataclasses import asdict

from MedVLMReaderLib.commands.terminal import check_writable, say, say_json, step, unwritable


def phantom(arguments: Namespace) -> None:
    """Make it, with its report and questions."""
    from MedVLMReaderLib.phantom import made_study, write
    from MedVLMReaderLib.phantom_report import questions, report
    from MedVLMReaderLib.reading import write_whole

    out = arguments.out
    check_writable(out)
    step("Making the study ...")
    study = made_study(arguments.seed, mirrored=arguments.mirrored)
    said = report(study.truth)
    asked = [asdict(exchange) for exchange in questions(study.truth, random.Random(arguments.seed))]
    try:
        write(study, out)
        exchanges = json.dumps({"questions": asked}, indent=1) + "\n"
        write_whole({out / "report.txt": f"{said}\n".encode(), out / "questions.json": exchanges.encode()})
    except OSError as error:
        raise unwritable(out, error) from error
    except RuntimeError as error:  # ITK's word for what the disk refuses
        raise unwritable(out, OSError(str(error).strip().rsplit("\n", 1)[-1])) from error
    masks = [f"mask-{n}.nii.gz" for n in range(1, len(study.masks) + 1)]
    names = ["volume.nii.gz", "labels.nii.gz", *masks, "truth.json", "report.txt", "questions.json"]
    files = [out / name for name in names]
    if arguments.json:
        say_json({"truth": study.truth.to_json(), "report": said, "questions": asked, "files": files})
        return
    say(said)
    say(f"\nFiles in {out}: {', '.join(path.name for path in files)}")
