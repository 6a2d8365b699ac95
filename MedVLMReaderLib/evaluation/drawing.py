"""Figures of an evaluation as a picture: each with its 95 % interval, those of a group beside each other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from MedVLMReaderLib.reading import write_whole

ROW, TITLE = 0.26, 0.34
"""Inches of a line, and of a group's name."""
Group = tuple[str, list[tuple[str, Mapping[str, Any]]]]


def groups(figures: Mapping[str, Any], above: str = "") -> Iterator[Group]:
    """(name, [(name, {"value", "low", "high"}), ...]) of each group that has figures; no value, no entry."""
    own = [(name.replace("_", " "), one) for name, one in figures.items()
           if isinstance(one, Mapping) and one.get("value") is not None]  # fmt: skip
    if own:
        yield above or "all", own
    for name, one in figures.items():
        if isinstance(one, Mapping) and "value" not in one:
            yield from groups(one, f"{above}, {name}".strip(", ").replace("_", " "))


def draw(figures: Mapping[str, Any], path: Path, title: str = "") -> None:
    """Write a PNG: a row for each figure, a panel for each group, since groups differ in unit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(groups(figures))
    heights = [TITLE + ROW * (1 + len(rows)) for _, rows in shown] or [1.0]
    picture = Figure(figsize=(7, sum(heights) + 0.6), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title, fontsize=10)
    panels = picture.subplots(len(shown) or 1, 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, rows) in zip(panels, shown, strict=False):
        _panel(panel, name, rows)
    packed = io.BytesIO()
    picture.savefig(packed, format="png", metadata={"Software": "MedVLM Reader"})
    write_whole({path: packed.getvalue()})


def _panel(panel: Any, name: str, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    for n, (_, one) in enumerate(rows):
        value = float(one["value"])
        if one.get("low") is not None:
            panel.plot([one["low"], one["high"]], [n, n], color="0.55", linewidth=2)
        panel.plot([value], [n], "o", color="0.1", markersize=4)
        panel.annotate(f"{value:.3g}", (value, n), (0, 4), textcoords="offset points", fontsize=7, ha="center")
    panel.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.8)
    panel.set_title(name, fontsize=9, loc="left")
    panel.tick_params(axis="x", labelsize=8)
    ends = [float(one[key]) for _, one in rows for key in ("value", "low", "high") if one.get(key) is not None]
    if min(ends) >= 0 and max(ends) <= 1:
        panel.set_xlim(-0.03, 1.03)
