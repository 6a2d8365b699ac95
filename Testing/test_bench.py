"""`make bench`: one object with every promised figure, and no missed target that is passed over."""

from __future__ import annotations

import json

import pytest

from Testing import bench

PROMISED = (
    "encoder_speedup_fp32", "encoder_speedup_bf16", "nf4_load_speedup", "followup_first_word_ratio",
    "heatmap_time_overhead", "heatmap_extra_mb", "eager_extra_mb", "stop_s",
)  # fmt: skip


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **figures: object) -> tuple[int, str]:
    """The exit code and stdout, where every benchmark prints these figures."""
    monkeypatch.setattr(bench, "measured", lambda _name: figures)
    monkeypatch.setattr("sys.argv", ["bench", "--only", "heatmaps", "followup"])
    return bench.main(), capsys.readouterr().out


GOOD = {
    "followup_first_word_ratio": 0.1, "heatmap_time_overhead": 0.06, "heatmap_extra_mb": 50.0, "eager_extra_mb": 900.0
}  # fmt: skip


def test_stdout_is_one_object_with_every_promised_figure(monkeypatch, capsys):
    code, out = printed(monkeypatch, capsys, **GOOD)
    found = json.loads(out)
    assert code == 0
    assert set(PROMISED) <= set(found)
    assert found["eager_times_heatmap_mb"] == 18.0
    assert found["heatmaps"] == GOOD


@pytest.mark.parametrize(
    "change", [{"heatmap_time_overhead": 0.09}, {"eager_extra_mb": 199.0}, {"heatmap_extra_mb": None}]
)
def test_a_missed_or_missing_figure_is_told_by_the_exit_code(monkeypatch, capsys, change):
    figures = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    assert printed(monkeypatch, capsys, **figures)[0] == 1


def test_a_benchmark_that_breaks_down_gives_no_figure(monkeypatch, capfd):
    monkeypatch.setitem(bench.BENCHMARKS, "none_such", ())
    assert bench.measured("none_such") == {}
    assert "gave no figures (exit code 1)" in capfd.readouterr().err
