"""Pictures of heatmaps and of what a model was shown."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.pictures import LARGEST, OPACITY, colours, letters, overlay, sheet, times_uniform
from MedVLMReaderLib.volume import View, Volume, planes


def box(tilt: float = 0.0) -> Grid:
    """Non-cubic, away from the scanner's middle, turned about the long axis of the patient and a little forward."""
    c, s, d = np.cos(tilt), np.sin(tilt), np.sin(tilt / 2)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, np.sqrt(1 - d * d), -d], [0, d, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * (5.0, 1.5, 2.0)
    affine[:3, 3] = (30.0, -80.0, 400.0)
    return Grid((12, 40, 50), affine)


def scan(grid: Grid) -> Volume:
    values = np.random.default_rng(3).integers(-1000, -900, grid.shape).astype(np.int16)
    return Volume(values, grid, "CT")


def heat_at(grid: Grid, cell: tuple[int, int, int], rest: float = 0.0) -> Volume:
    values = np.full(grid.shape, rest, np.float32)
    values[cell] = 1.0
    return Volume(values / values.sum(), grid, notes=("Attention of echo, revision 0123abc.",))


def orange(picture: np.ndarray) -> np.ndarray:
    """Where the three planes are coloured strongly; their pale letters left out."""
    panels = picture[:, :1080].astype(int)
    return (panels[..., 0] - panels[..., 2] > 90) & (panels[..., 2] < 60)


def panel(picture: np.ndarray, slot: int) -> np.ndarray:
    """The part of the picture that one plane fills."""
    part = picture[66:400, 18 + slot * 358 : 364 + slot * 358]
    dark = np.argwhere(part.max(-1) < 40)
    return part[slice(dark[:, 0].min(), dark[:, 0].max() + 1), slice(dark[:, 1].min(), dark[:, 1].max() + 1)]


def test_an_even_share_has_no_colour_and_more_has_more():
    times = np.array([0.0, 0.5, 1.0, 2.0, 8.0, LARGEST, 1000.0])
    shades = colours(times).astype(int)
    assert shades[:3, 3].tolist() == [0, 0, 0]
    assert np.all(np.diff(shades[2:6, 3]) > 0)
    assert np.all(np.diff(shades[2:6, :3] @ [0.3, 0.6, 0.1]) > 0)  # lighter too, for eyes without red or green
    assert shades[5].tolist() == shades[6].tolist() == [252, 255, 164, round(OPACITY * 255)]


def test_a_flat_map_is_not_drawn_at_full_colour():
    volume = scan(box())
    cells = volume.grid.resize((3, 8, 10))
    flat = Volume(np.random.default_rng(0).uniform(0.95, 1.05, cells.shape).astype(np.float32) / 240, cells)
    for plane in planes(volume):
        assert colours(times_uniform((flat,), plane.grid))[..., 3].max() < 5
    assert orange(overlay(volume, flat)).mean() < 0.001
    assert orange(overlay(volume, heat_at(cells, (1, 3, 4), rest=0.05))).mean() > 0.005


def test_times_uniform_is_one_wherever_all_cells_have_equal_shares():
    grid = box(0.3)
    heats = [Volume(np.full(g.shape, 1.0, np.float32), g) for g in (grid.resize((3, 8, 10)), grid.resize((2, 2, 5)))]
    for plane in planes(scan(grid)):
        np.testing.assert_allclose(times_uniform(heats, plane.grid), 1, rtol=1e-6)
    single = heat_at(grid.resize((3, 8, 10)), (0, 0, 0))
    assert times_uniform((single,), grid).max() == pytest.approx(240)


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize(("order", "flipped"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 2, 0), (1,))])
def test_colour_lies_where_a_person_looks_for_the_place(
    tilt: float, order: tuple[int, int, int], flipped: tuple[int, ...]
):
    grid = box(tilt)
    heat = heat_at(grid.resize((6, 8, 10)), (5, 1, 7), rest=0.05).transpose(
        order[::-1]
    )  # to head, front and patient's left
    picture = overlay(scan(grid).transpose(order).flip(*flipped), heat)
    for slot, (down, across) in enumerate([(1.5 / 8, 7.5 / 10), (0.5 / 6, 7.5 / 10), (0.5 / 6, 1.5 / 8)]):
        part = panel(picture, slot)
        place = np.argwhere(orange(part)).mean(0) / part.shape[:2]
        np.testing.assert_allclose(place, (down, across), atol=0.04)


def test_millimetres_are_as_long_down_as_across():
    grid = box()
    picture = overlay(scan(grid), heat_at(grid.resize((6, 8, 10)), (2, 2, 2)))
    sizes_mm = [(40 * 1.5, 50 * 2.0), (12 * 5.0, 50 * 2.0), (12 * 5.0, 40 * 1.5)]
    for slot, (down, across) in enumerate(sizes_mm):
        rows, columns = panel(picture, slot).shape[:2]
        assert rows / columns == pytest.approx(down / across, rel=0.03)


def test_a_peak_in_the_padding_is_shown_at_the_border_of_the_scan():
    volume = scan(box())
    padded = volume.grid.pad((0, 0, 50), (0, 0, 50)).resize((3, 8, 6))
    picture = overlay(volume, heat_at(padded, (1, 3, 0), rest=0.01))
    assert picture.shape == (480, 1200, 3)


def test_the_view_gives_the_grey_window_only():
    volume, heat = scan(box()), heat_at(box().resize((6, 8, 10)), (2, 2, 2))
    outside = View(100.0, -950.0, (1e4, 0.0, 0.0))
    dark, light = overlay(volume, heat), overlay(volume, heat, view=outside)
    assert light[66:400, :1080].mean() > dark[66:400, :1080].mean() + 10


def test_slices_with_gaps_between_them_colour_only_themselves():
    grid = box()
    slices = [heat_at(grid.crop((k, 0, 0), (k + 1, 40, 50)).resize((1, 1, 2)), (0, 0, 0)) for k in (1, 6, 11)]
    coronal = planes(scan(grid))[1]
    shown = times_uniform(slices, coronal.grid)[0].any(axis=1)
    assert np.flatnonzero(shown[::-1]).tolist() == [1, 6, 11]
    assert times_uniform(slices, grid).any(axis=(1, 2)).nonzero()[0].tolist() == [1, 6, 11]


def test_awkward_titles_are_drawn_and_saved(tmp_path: Path):
    volume, heat = scan(box()), heat_at(box().resize((6, 8, 10)), (2, 2, 2))
    picture = overlay(volume, (heat, heat), title="costs $5 & $6 {\\frac \n" * 40, path=tmp_path / "picture.png")
    from matplotlib.image import imread

    saved = imread(tmp_path / "picture.png", format="png")
    np.testing.assert_array_equal((saved[..., :3] * 255).round(), picture)
    assert os.listdir(tmp_path) == ["picture.png"]
    assert picture[:, -3:].min() == 255  # nothing runs off the edge
    assert picture[:3].min() == 255


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        overlay(scan(box()), heat_at(box(), (1, 1, 1)), path=tmp_path / "missing" / "picture.png")


def test_letters_name_where_a_direction_points():
    assert [letters(d) for d in np.eye(3)] == ["R", "A", "H"]
    assert [letters(-d) for d in np.eye(3)] == ["L", "P", "F"]
    assert letters(np.array([0.1, -0.8, 0.59])) == "PH"


def test_a_sheet_shows_the_first_and_last_slice_and_keeps_to_its_number(tmp_path: Path):
    grid = Grid((50, 16, 12), np.diag([3.0, 2.0, 1.0, 1.0]))
    values = np.full(grid.shape, 0.5, np.float32)
    values[0], values[-1] = 0.0, 7.0  # beyond 1 is white
    picture = sheet([Volume(values, grid)], tmp_path / "sheet.png", ["Shown to the model"])
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    tile = 147 * 2  # as tall as twice its width at most
    assert picture.shape == (10 + 30 + 3 * tile, 1200, 3)
    middle = picture[30 + tile // 4 :: tile, 10 + 147 // 3 :: 147, 0][:3, :8]
    assert middle[0, 0] == 0
    assert middle[-1, -1] == 255
    assert np.all(np.abs(middle.ravel()[1:-1].astype(int) - 128) <= 1)


def test_single_slices_under_one_title_share_a_row():
    grid = Grid((4, 10, 10), np.diag([3.0, 1.0, 1.0, 1.0]))
    volume = Volume(np.zeros(grid.shape, np.float32), grid)
    singles = [volume.crop((k, 0, 0), (k + 1, 10, 10)) for k in range(4)]
    assert sheet(singles, titles=["Axial"] * 4).shape[0] == 10 + 30 + 147
    assert sheet([volume, *singles], titles=["A", *["B"] * 4]).shape[0] == 10 + 2 * (30 + 147)
    with pytest.raises(ValueError, match="at least one"):
        sheet([])


def test_pictures_import_no_plotting_until_drawn_and_never_pyplot():
    code = (
        "import sys, numpy as np; from MedVLMReaderLib.pictures import *; from MedVLMReaderLib.geometry import Grid\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from MedVLMReaderLib.volume import Volume; v = Volume(np.ones((3, 4, 5)), Grid((3, 4, 5), np.eye(4)))\n"
        "overlay(v, v); sheet([v]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
