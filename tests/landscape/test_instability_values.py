"""Instability: heights, verdicts, files and the picture."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape import BarrierCurve, Instability


def curve(middle: float) -> BarrierCurve:
    """Ends of 0.9 and 0.8."""
    values = {"accuracy": (0.9, middle, 0.8), "loss": (1.0, 1.0, 1.0)}
    return BarrierCurve((0.0, 0.5, 1.0), values)


def example(metric: str = "accuracy") -> Instability:
    """Two seeds; the fork at 10 is stable for one of them only."""
    middles = {
        (0, 0): 0.2,
        (0, 10): 0.85,
        (0, 20): 0.85,
        (1, 0): 0.4,
        (1, 10): 0.75,
        (1, 20): 0.84,
    }
    curves = {key: curve(middle) for key, middle in middles.items()}
    return Instability((0, 10, 20), (0, 1), curves, metric, 30)


def test_heights_are_against_the_mean_child() -> None:
    found = example()
    assert found.heights(0) == pytest.approx((0.65, 0.05, 0.05))
    assert found.heights(1) == pytest.approx((0.45, 0.1, 0.05))
    assert found.means == pytest.approx((0.55, 0.075, 0.05))
    assert found.stable == (False, False, False)
    assert found.stable_from is None


def test_stable_from_is_the_first_of_an_unbroken_row() -> None:
    ends = {"accuracy": (0.9, 0.9, 0.9)}
    low = BarrierCurve((0.0, 0.5, 1.0), ends)
    high = BarrierCurve((0.0, 0.5, 1.0), {"accuracy": (0.9, 0.5, 0.9)})
    row = (low, high, low, low)
    curves = {(0, fork): c for fork, c in enumerate(row)}
    found = Instability((0, 1, 2, 3), (0,), curves, "accuracy", 9)
    assert found.stable == (True, False, True, True)
    assert found.stable_from == 2
    assert str(found).splitlines()[2].split() == ["1", "0.4000"]
    assert str(found).splitlines()[3].split() == ["2", "0.0000", "stable"]
    assert "stable from 2" in repr(found)


def test_files_come_back(tmp_path: Path) -> None:
    found = example()
    found.to_json(tmp_path / "x.json")
    back = Instability.from_json(tmp_path / "x.json")
    assert back.means == found.means
    assert back.curves == found.curves
    assert (back.steps, back.threshold) == (30, 0.02)
    found.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[0]["instability"]) == pytest.approx(0.65)
    assert float(rows[0]["middle"]) == 0.2
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(DataError, match="format"):
        Instability.from_json(tmp_path / "y.json")
    with pytest.raises(DataError, match="no metric 'f1'"):
        example("f1")
    with pytest.raises(DataError, match="seed 2"):
        Instability((0,), (2,), {}, "accuracy", 1)


def test_the_picture_has_every_seed_and_the_threshold(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    axes = example().plot(tmp_path / "x.png").axes[0]
    lines = [line.get_ydata() for line in axes.lines]
    assert list(lines[0]) == pytest.approx([0.55, 0.075, 0.05])
    assert list(lines[2]) == pytest.approx([0.45, 0.1, 0.05])
    assert list(lines[3]) == [0.02, 0.02]
    assert list(axes.lines[0].get_xdata()) == pytest.approx(
        [0, 100 / 3, 200 / 3]
    )
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
