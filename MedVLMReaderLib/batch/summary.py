"""What a run came to, for a table program and for eyes: summary.csv, summary.parquet, index.html.

All of it is made from what is kept of the studies, so that it is the same however often a run was interrupted.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from MedVLMReaderLib.batch.exporting import exported
from MedVLMReaderLib.batch.shelf import ERROR, STUDY, Shelf
from MedVLMReaderLib.report_page import POLICY

COLUMNS = (
    "study", "state", "number", "question", "answer", "complete", "notes", "modality", "slices", "rows", "columns",
    "spacing_mm", "voxels", "same_as", "model", "revision", "exported", "error",
)  # fmt: skip
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1c1c1c;
  background: #fff }
article { display: flex; gap: 1rem; border-top: 1px solid #ddd; padding: .8rem 0 }
article > div:first-child { flex: 0 0 100px } img { background: #000; max-width: 96px }
h2 { font: 600 1rem monospace; margin: 0 } p { margin: .3rem 0; white-space: pre-wrap }
.error { background: #fde4e0; padding: .4rem .6rem } .note { color: #7a5200; font-size: .9rem }
.question { color: #555 } footer { color: #555; font-size: .85rem; margin-top: 1rem }
"""

Row = dict[str, Any]


def write_summary(place: Shelf) -> None:
    """Write all three; Parquet only where pyarrow is installed."""
    rows = list(summary_rows(place))
    place.write({"summary.csv": as_csv(rows)})
    if importlib.util.find_spec("pyarrow"):
        place.write({"summary.parquet": as_parquet(rows)})
    place.write({"index.html": as_page(rows, place)})


def summary_rows(place: Shelf) -> Iterator[Row]:
    """A row an answer, and one for each failed study, in order of ids."""
    first: dict[str, str] = {}
    for study in place.studies():
        if (content := _json(place, f"{study}/{STUDY}")) is not None:
            yield from _answers(place, study, content, first.setdefault(content["voxels"], study))
        elif (content := _json(place, f"{study}/{ERROR}")) is not None:
            yield {**dict.fromkeys(COLUMNS), "study": study, "state": "failed", "error": content["error"]}


def _answers(place: Shelf, study: str, content: dict[str, Any], first: str) -> Iterator[Row]:
    for number in range(1, content["answers"] + 1):
        folder = f"{study}/{number:02d}" if content["answers"] > 1 else study
        reading = _json(place, f"{folder}/reading.json")
        if reading is None:
            continue
        slices, rows, columns = content["shape"]
        yield {
            "study": study, "state": "read", "number": number, "question": reading["question"],
            "answer": reading["text"], "complete": reading["complete"], "notes": " ".join(reading["notes"]),
            "modality": content["modality"], "slices": slices, "rows": rows, "columns": columns,
            "spacing_mm": " ".join(f"{x:g}" for x in content["spacing_mm"]), "voxels": content["voxels"],
            "same_as": first if first != study else None, "model": reading["model"], "revision": reading["revision"],
            "exported": exported(place, folder), "error": None,
        }  # fmt: skip


def _json(place: Shelf, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads(place.get(name) or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def as_csv(rows: Sequence[Row]) -> bytes:
    """With a byte order mark, by which table programs know UTF-8; lines inside an answer stay lines."""
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    table.writeheader()
    table.writerows(rows)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def as_parquet(rows: Sequence[Row]) -> bytes:
    """The same table with types."""
    import pyarrow
    from pyarrow import parquet

    numbers = {"number", "slices", "rows", "columns"}
    kinds = [
        (name, pyarrow.int32() if name in numbers else pyarrow.bool_() if name == "complete" else pyarrow.string())
        for name in COLUMNS
    ]
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), pyarrow.schema(kinds)), out, compression="zstd")
    return out.getvalue()


def as_page(rows: Sequence[Row], place: Shelf) -> bytes:
    """One HTML file with every study's small picture inside it; it holds no script, and nothing is fetched."""
    by_study: dict[str, list[Row]] = {}
    for row in rows:
        by_study.setdefault(row["study"], []).append(row)
    failed = sum(row["state"] == "failed" for row in rows)
    body = "\n".join(_article(study, own, place) for study, own in by_study.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width"><title>Readings</title>\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{len(by_study) - failed} studies read, {failed} failed</h1>\n{body}\n"
        "<footer>Written by a model, checked by nobody. Not for clinical use.</footer>\n</body></html>\n"
    ).encode()


def _article(study: str, rows: Sequence[Row], place: Shelf) -> str:
    picture = place.get(f"{study}/thumbnail.png")
    image = f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">' if picture else ""
    return f"<article><div>{image}</div><div><h2>{escape(study)}</h2>{''.join(map(_row, rows))}</div></article>"


def _row(row: Row) -> str:
    if row["state"] == "failed":
        return f'<p class="error">{escape(row["error"])}</p>'
    notes = f'<p class="note">{escape(row["notes"])}</p>' if row["notes"] else ""
    cut = "" if row["complete"] else '<p class="note">Cut off at its longest length.</p>'
    exported = f'<p class="note">Exported: {escape(row["exported"])}</p>' if row["exported"] else ""
    return f'<p class="question">{escape(row["question"])}</p><p>{escape(row["answer"])}</p>{cut}{notes}{exported}'
