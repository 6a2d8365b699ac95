"""The report page: one file without script, model output escaped; and the curves of attention by slice."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.reading import Reading, Trace
from MedVLMReaderLib.report_page import page
from MedVLMReaderLib.slices import slice_curves
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

TEXT = 'Findings: A <script>alert("1")</script> nodule & more. The liver is normal.'


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


@pytest.fixture
def grid() -> Grid:
    return oblique_grid((4, 5, 6), (20.0, 12.0, 14.0), axes=(1, 2, 0), signs=(1, -1, 1))


@pytest.fixture
def reading(grid) -> Reading:
    reading = Reading("<b>What?</b>", TEXT, True, (), (grid,), "tiny", "1", notes=("Mind <i>this</i>.",))
    weights = np.random.default_rng(0).random((len(reading.sentences), reading.cells)).astype(np.float32)
    return replace(reading, traces=(Trace("relevance", reading.sentences, weights),))


def test_what_the_model_and_the_user_wrote_is_text_and_never_markup(reading):
    tags = parsed(page(reading, {0: b"png"}, reading.question, "By <u>tiny</u>."))
    assert not {tag for tag, _ in tags.tags} & {"script", "i", "u", "iframe", "link"}
    assert TEXT in tags.text
    assert "<b>What?</b>" in tags.text
    assert "Mind <i>this</i>." in tags.text


def test_nothing_comes_from_elsewhere(reading):
    html = page(reading, {0: b"png", 1: b"png"})
    for _, attributes in parsed(html).tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or str(value).startswith("data:image/png;base64,")
    assert "default-src 'none'" in html
    assert "http:" not in html
    assert "https:" not in html


def test_every_sentence_with_a_picture_has_a_button_a_label_and_its_planes(reading):
    tags = parsed(page(reading, {1: b"png"})).tags
    assert [attributes["id"] for tag, attributes in tags if tag == "input"] == ["s1"]
    assert [attributes["for"] for tag, attributes in tags if tag == "label"] == ["s1"]
    assert [attributes["id"] for tag, attributes in tags if tag == "section"] == ["p1"]
    assert sum(tag == "svg" for tag, _ in tags) == 3
    assert [("checked" in attributes) for tag, attributes in tags if tag == "input"] == [True]


def test_a_reading_without_words_or_pictures_is_a_page_too(reading):
    assert "wrote nothing" in page(replace(reading, text="", traces=(), complete=False), {})
    assert "Incomplete" in page(replace(reading, text="", traces=(), complete=False), {})
    assert "<label" not in page(reading, {})


def test_a_curve_has_its_peak_at_the_slice_of_the_peak_in_patient_space(grid):
    values = np.full(grid.shape, 0.1, np.float32)
    values[3, 1, 4] = 9
    peak = grid.to_world((3, 1, 4))
    for curve, axis in zip(slice_curves(Volume(values, grid)), (2, 1, 0), strict=True):
        assert curve.shares.sum() == pytest.approx(1)
        assert (np.diff(curve.places_mm) > 0).all()
        at = curve.places_mm[curve.shares.argmax()]
        assert abs(at - peak[axis]) < 30  # oblique: the slice's middle, not the place within it
    assert [curve.plane for curve in slice_curves(Volume(values, grid))] == ["axial", "coronal", "sagittal"]


def test_on_straight_axes_a_curve_tells_the_place_exactly():
    affine = np.array([[0, 0, -3.0, 50], [0, -4.0, 0, 10], [5.0, 0, 0, -20], [0, 0, 0, 1]])
    grid = Grid((6, 7, 8), affine)
    values = np.zeros(grid.shape, np.float32)
    values[1, 2, 5] = 1
    axial, coronal, sagittal = slice_curves(Volume(values, grid))
    found = [curve.places_mm[curve.shares.argmax()] for curve in (sagittal, coronal, axial)]
    np.testing.assert_allclose(found, grid.to_world((1, 2, 5)))
