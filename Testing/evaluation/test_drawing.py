"""Pictures of figures: every figure once, groups by themselves."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from MedVLMReaderLib.evaluation.drawing import draw, groups

FIGURES = {
    "protocol": "classification", "studies": 3,
    "accuracy": {"all": {"value": 0.5, "low": 0.2, "high": 0.9, "n": 6}, "stone": {"value": None, "n": 0}},
    "closed": {"one_choice_only": {"all": {"value": 12.0, "low": None, "high": None, "n": 2}}},
}  # fmt: skip


def test_every_figure_with_a_value_is_in_a_group_named_by_all_that_stands_above_it() -> None:
    assert [(name, [label for label, _ in rows]) for name, rows in groups(FIGURES)] == [
        ("accuracy", ["all"]), ("closed, one choice only", ["all"]),
    ]  # fmt: skip


def test_a_picture_is_drawn_even_of_nothing(tmp_path: Path) -> None:
    for name, figures in (("some", FIGURES), ("none", {"studies": 0})):
        draw(figures, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 840
            assert picture.convert("L").getextrema()[0] < 128 or name == "none"
