"""Whether the Slicer core is here at all; where it is not, this is the test that says why the others are not run."""

from __future__ import annotations

import pytest

from Testing.slicer.core import missing


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_three_views_of_an_empty_scene_are_black(request: pytest.FixtureRequest) -> None:
    core = request.getfixturevalue("core")
    assert sorted(core.pictures()) == ["Green", "Red", "Yellow"]
    assert all(not picture.any() for picture in core.pictures().values())
