"""`search` and `classify`: studies by a text, and findings of a study."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib.commands.terminal import arriving, loaded_packages, say, say_json, scan, step, warn

if TYPE_CHECKING:
    from MedVLMReaderLib.retrieval import Hit, Pair, Ranking, Skipped, Study

NAMED = 10
"""Skipped files that are named one by one; --json has all."""


def search(arguments: Namespace) -> None:
    """Rank the studies of a folder."""
    from tqdm import tqdm

    pair = _loaded(arguments)
    from MedVLMReaderLib import retrieval

    embeddings = retrieval.Embeddings(arguments.cache or retrieval.cache_folder())
    with tqdm(desc="Studies", disable=None, leave=False) as bar:
        ranking = retrieval.search(pair, arguments.text, arguments.folder, embeddings, lambda _: bar.update())
    shown = ranking.hits[: arguments.top]
    if arguments.json:
        say_json(_plain(pair, arguments, shown, ranking))
        return
    say(f"Likeness from -1 to 1, by {pair.name}, revision {pair.revision}. It orders studies and proves nothing.")
    _tell_notes(pair.notes)
    for rank, hit in enumerate(shown, 1):
        say(f"{rank:>4}  {hit.likeness:+.3f}  {_named(hit.study, arguments.folder)}")
    if len(ranking.hits) > len(shown):
        say(f"      and {len(ranking.hits) - len(shown)} more; see --top.")
    _tell_skipped(ranking.skipped, arguments.folder)
    if ranking.trouble:
        warn(f"medvlmreader: {ranking.trouble}")


def _plain(pair: Pair, arguments: Namespace, shown: Sequence[Hit], ranking: Ranking) -> dict[str, Any]:
    found = [
        {"rank": rank, "likeness": hit.likeness, "path": hit.study.path, "series": hit.study.series,
         "about": hit.study.about}
        for rank, hit in enumerate(shown, 1)
    ]  # fmt: skip
    skipped = [{"path": one.path, "why": one.why} for one in ranking.skipped]
    return {
        "text": arguments.text, "model": pair.name, "revision": pair.revision, "studies": found, "skipped": skipped,
        "notes": pair.notes, "ranked": len(ranking.hits), "encoded": ranking.encoded, "trouble": ranking.trouble,
    }  # fmt: skip


def _named(study: Study, folder: Path) -> str:
    place = study.path.relative_to(folder)
    return f"{place}: {study.about}" if study.about else str(place)


def _tell_skipped(skipped: Sequence[Skipped], folder: Path) -> None:
    for one in skipped[:NAMED]:
        warn(f"Skipped {one.path.relative_to(folder)}: {one.why}")
    if len(skipped) > NAMED:
        warn(f"Skipped {len(skipped) - NAMED} more; --json names them all.")


def classify(arguments: Namespace) -> None:
    """Score findings of a study."""
    volume = scan(arguments.study, arguments.series)
    pair = _loaded(arguments)
    from MedVLMReaderLib import block, retrieval

    embeddings = retrieval.Embeddings(arguments.cache or retrieval.cache_folder())
    found = retrieval.classify(pair, volume, arguments.labels.split(","), embeddings)
    notes = tuple(dict.fromkeys((*pair.notes, *volume.notes, *block.notes(volume, pair.recipe))))
    if arguments.json:
        scores = [{"finding": one.finding, "score": one.score} for one in found]
        told = {"score": pair.score_is, "findings": scores, "notes": notes}
        say_json({"model": pair.name, "revision": pair.revision, **told})
        return
    say(f"By {pair.name}, revision {pair.revision}. Score: {pair.score_is}.")
    _tell_notes(notes)
    for one in sorted(found, key=lambda one: -one.score):
        say(f"{one.score:>8.3f}  {one.finding}")
    if embeddings.trouble:
        warn(f"medvlmreader: {embeddings.trouble}")


def _tell_notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"Note: {note}")


def _loaded(how: Namespace) -> Pair:
    step(f"Loading the model '{how.model}' ...")
    loaded_packages()
    from MedVLMReaderLib.retrieval import load

    with arriving(how.model) as progress:
        return load(how.model, device=how.device, revision=how.revision, offline=how.offline, progress=progress)
