from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from MedVLMReaderLib.phantom import LABELS, Study, made_study, made_truth, write
from MedVLMReaderLib.planting import CONTRAST_TO_NOISE, KINDS, SIZES_MM
from MedVLMReaderLib.truth import ORGAN_OF, STRUCTURES, Truth

SEEDS = range(40)


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return [made_study(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    return [made_truth(seed) for seed in range(200)]


def centre(study: Study, mask: np.ndarray) -> np.ndarray:
    return study.volume.grid.to_world(np.argwhere(mask).mean(0))


def region(study: Study, organ: str, side: str) -> np.ndarray:
    name = "pleural fluid" if organ == "pleura" else organ
    return study.labels == LABELS.index(f"{name} {side}".strip())


def test_a_seed_makes_the_same_study_again(studies: list[Study]) -> None:
    again = made_study(7)
    assert again.volume.key == studies[7].volume.key
    assert again.truth == studies[7].truth
    assert np.array_equal(again.labels, studies[7].labels)
    assert all(np.array_equal(a, b) for a, b in zip(again.masks, studies[7].masks, strict=True))


def test_another_seed_makes_another_study(studies: list[Study]) -> None:
    assert len({study.volume.key for study in studies}) == len(studies)


def test_the_truth_is_known_without_rendering(studies: list[Study]) -> None:
    assert [made_truth(seed) for seed in SEEDS[:10]] == [study.truth for study in studies[:10]]


def test_a_mirrored_study_has_sides_swapped_and_everything_else_equal(studies: list[Study]) -> None:
    shown = 0
    for seed in SEEDS[:20]:
        plain, mirrored = studies[seed], made_truth(seed, mirrored=True)
        swap = {"right": "left", "left": "right", "": ""}
        assert {(o, swap[s]) for o, s in plain.truth.in_view} == set(mirrored.in_view)
        pairs = [(f, min(mirrored.findings, key=lambda g: abs(g.size_mm - f.size_mm))) for f in plain.truth.findings]
        for f, g in pairs:
            assert g.side == swap[f.side]
            assert g.kind == f.kind
            assert g.ras[1:] == f.ras[1:]
            shown += f.side != ""
        middles = [(f.ras[0] + g.ras[0]) / 2 for f, g in pairs]
        assert np.ptp(middles or [0.0]) < 1e-6
    assert shown > 5


def test_mirrored_voxels_lie_on_the_other_side_of_the_mid_plane(truths: list[Truth]) -> None:
    seed = next(truth.seed for truth in truths if {"right", "left"} & {f.side for f in truth.findings})
    plain, mirrored = made_study(seed), made_study(seed, mirrored=True)
    sided = next(f for f in plain.truth.findings if f.side)
    other = next(g for g in mirrored.truth.findings if g.size_mm == sided.size_mm)
    middle = (sided.ras[0] + other.ras[0]) / 2
    places = plain.volume.grid.to_world(np.argwhere(plain.masks[plain.truth.findings.index(sided)]))
    reflected = (places - [middle, 0, 0]) * [-1, 1, 1] + [middle, 0, 0]
    mask = mirrored.masks[mirrored.truth.findings.index(other)]
    assert np.all(replace(mirrored.volume, values=mask).at(reflected) == 1)
    assert mask.sum() == len(places)
    assert np.array_equal(mirrored.volume.at(reflected), plain.volume.at(places))
    label = LABELS.index("liver")
    heights = plain.volume.grid.to_world(np.argwhere(plain.labels == label))
    assert len(heights) == (mirrored.labels == label).sum()


def test_the_acquisition_plane_is_the_one_in_the_truth(studies: list[Study]) -> None:
    assert all(study.volume.acquisition_plane == study.truth.plane for study in studies)
    assert {study.truth.plane for study in studies} == {"axial", "coronal", "sagittal"}


def test_slices_are_contiguous_thick_and_between_20_and_160(studies: list[Study]) -> None:
    for study in studies:
        k, j, i = study.volume.grid.spacing
        assert 20 <= study.volume.grid.shape[0] <= 160
        assert 1.5 <= k <= 6.5 + 1e-9
        assert j == pytest.approx(i)
        assert 1.0 <= j <= 2.2
        assert k >= 1.15 * j
        assert study.volume.grid.is_orthogonal


def test_every_finding_has_a_mask_around_its_place(studies: list[Study]) -> None:
    for study in studies:
        assert len(study.masks) == len(study.truth.findings)
        for finding, mask in zip(study.truth.findings, study.masks, strict=True):
            assert mask.any()
            assert mask.dtype == bool
            assert mask.shape == study.volume.values.shape
            assert np.linalg.norm(centre(study, mask) - finding.ras) < 3.0, finding


def test_every_mask_lies_in_its_organ(studies: list[Study]) -> None:
    for study in studies:
        for finding, mask in zip(study.truth.findings, study.masks, strict=True):
            assert region(study, finding.organ, finding.side)[mask].mean() > 0.95, finding


def test_structures_in_view_have_voxels_and_every_finding_lies_in_one(studies: list[Study]) -> None:
    for study in studies:
        for organ, side in study.truth.in_view:
            name = "lung" if organ == "pleura" else organ
            assert region(study, name, side).any() or region(study, "pleura", side).any(), (organ, side)
        assert {(f.organ, f.side) for f in study.truth.findings} <= set(study.truth.in_view)


def test_the_contrast_of_a_large_lesion_is_the_declared_one(truths: list[Truth]) -> None:
    measured = 0
    for seed, truth in enumerate(truths):
        large = [f for f in truth.findings if f.contrast_to_noise > 3 and f.size_mm > 20]
        if not large or measured >= 3:
            continue
        study = made_study(seed)
        everything = np.any(study.masks, axis=0)
        for finding in large:
            mask = study.masks[study.truth.findings.index(finding)]
            core = ndimage.binary_erosion(mask, iterations=2)
            ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(everything, iterations=2)
            ring &= ndimage.binary_erosion(region(study, finding.organ, finding.side), iterations=2)
            if core.sum() < 40 or ring.sum() < 200:
                continue
            difference = abs(study.volume.values[core].mean() - np.median(study.volume.values[ring]))
            noise = study.volume.values[core].std()
            assert difference / noise == pytest.approx(finding.contrast_to_noise, rel=0.2), finding
            measured += 1
    assert measured >= 3


def test_sizes_and_contrasts_stay_in_their_ranges(truths: list[Truth]) -> None:
    for truth in truths:
        for f in truth.findings:
            low, high = SIZES_MM[f.kind]
            assert low <= f.size_mm <= high
            assert f.organ == ORGAN_OF[f.kind]
            if f.kind in ("effusion", "fracture"):
                assert f.contrast_to_noise == 0
            else:
                assert CONTRAST_TO_NOISE[0] <= f.contrast_to_noise <= CONTRAST_TO_NOISE[1]


def test_kinds_are_balanced_and_some_studies_are_normal(truths: list[Truth]) -> None:
    kinds = Counter(f.kind for truth in truths for f in truth.findings)
    mean = sum(kinds.values()) / len(KINDS)
    assert all(0.6 * mean < kinds[kind] < 1.5 * mean for kind in KINDS), kinds
    assert 0.2 < np.mean([not truth.findings for truth in truths]) < 0.4
    assert max(len(truth.findings) for truth in truths) == 5
    sides = Counter(f.side for truth in truths for f in truth.findings)
    assert 0.6 < sides["right"] / sides["left"] < 1.6
    assert {t.modality for t in truths} == {"CT", "MR"}
    assert {t.phase for t in truths} == {"plain", "contrast"}


def test_findings_follow_the_order_of_a_report(studies: list[Study]) -> None:
    for study in studies:
        for truth in (study.truth, made_truth(study.truth.seed, mirrored=True)):
            ranks = [(STRUCTURES.index((f.organ, f.side)), -f.size_mm) for f in truth.findings]
            assert ranks == sorted(ranks)


def test_focal_lesions_keep_8_mm_apart(studies: list[Study]) -> None:
    for study in studies:
        focal = [f for f in study.truth.findings if f.contrast_to_noise]
        for n, f in enumerate(focal):
            for g in focal[:n]:
                assert np.linalg.norm(np.subtract(f.ras, g.ras)) > 8 + 0.4 * (f.size_mm + g.size_mm)


def test_values_look_like_their_modality(studies: list[Study]) -> None:
    for study in studies:
        assert study.volume.values.dtype == np.int16
        assert study.volume.values.min() >= (-1024 if study.truth.modality == "CT" else 0)
        lung = study.volume.values[region(study, "lung", "right") | region(study, "lung", "left")]
        if study.truth.modality == "CT" and lung.size > 1000:
            assert -900 < np.median(lung) < -800


def test_a_study_is_written_with_its_place_and_its_truth(studies: list[Study], tmp_path) -> None:  # type: ignore[no-untyped-def]
    import nibabel

    study = next(s for s in studies if len(s.masks) > 1)
    write(study, tmp_path / "study")
    image = nibabel.load(tmp_path / "study" / "volume.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), study.volume.values)
    assert np.allclose(image.affine[:, [2, 1, 0, 3]], study.volume.grid.affine, atol=1e-3)
    assert Truth.from_json(json.loads((tmp_path / "study" / "truth.json").read_text())) == study.truth
    assert len(list((tmp_path / "study").glob("mask-*.nii.gz"))) == len(study.masks)
