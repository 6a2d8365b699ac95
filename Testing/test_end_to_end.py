"""The main job with the model that ships: the sample, made studies in any storage order, and real scans."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedVLMReaderLib import check
from MedVLMReaderLib.evaluation.findings import parsed
from MedVLMReaderLib.files import read
from MedVLMReaderLib.phantom import made_study
from MedVLMReaderLib.reader import Options, Reader, load
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.volume import Volume
from Testing import scans

REAL = scans.available()
NO_SCAN = pytest.param("", marks=pytest.mark.skip(reason="no real scan here: run 'make scans'"))
FLIPS = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
ORDERS = [(order, flipped) for order in permutations(range(3)) for flipped in FLIPS]


@cache
def reader() -> Reader:
    return load()


def test_the_sample_reads_here_as_it_did_where_it_was_made():
    assert check.differences(check.reference(), check.measured(reader(), check.sample())) == []


def test_the_report_of_the_sample_is_words_about_structures_of_a_torso():
    reading = reader().report(reader().see(check.sample()))
    assert reading.complete
    assert reading.text.startswith("Findings: ")
    assert "Impression: " in reading.text
    assert any(organ in reading.text for organ in ("lung", "liver", "kidney", "spine", "heart"))


def test_every_reading_opens_with_the_statement_that_the_model_reads_made_studies_only():
    assert "made studies only" in reader().see(check.sample()).notes[0]


def test_a_study_stored_in_another_order_gives_the_same_report():
    volume = made_study(11).volume
    expected = said_of(volume)
    for order, flipped in ORDERS[5::14]:
        assert said_of(volume.transpose(order).flip(*flipped)) == expected


def said_of(volume: Volume) -> str:
    return reader().report(reader().see(volume), Options(heatmaps=False)).text


def test_the_parser_understands_the_model():
    texts = [said_of(made_study(seed).volume) for seed in range(40, 44)]
    assert any(parsed(text) for text in texts) or all("normal" in text or "clear" in text for text in texts)


@pytest.mark.parametrize("name", sorted(REAL) or [NO_SCAN])
def test_a_real_scan_is_read_and_its_heatmap_lies_in_patient_space(name: str, tmp_path: Path):
    volume = read(REAL[name])
    seen = reader().see(volume)
    assert "made studies only" in seen.notes[0]
    *_, reading = reader().ask(seen, "Describe the findings.", options=Options(longest=60))
    assert isinstance(reading, Reading)
    assert reading.sentences
    heat = reading.heatmap(0)
    assert volume.grid.contains(heat.peak())
    path = tmp_path / "heat.nii.gz"
    heat.save(path)
    assert_same_place(path, heat)


def assert_same_place(path: Path, heat: Volume) -> None:
    """The largest voxel of the file maps to the same place through SimpleITK's affine and through ours."""
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    np.testing.assert_allclose(values, heat.values)
    k, j, i = (int(x) for x in np.unravel_index(int(values.argmax()), values.shape))
    left, posterior, superior = image.TransformIndexToPhysicalPoint((i, j, k))
    np.testing.assert_allclose((-left, -posterior, superior), heat.grid.to_world((k, j, i)), atol=0.1)
