"""Predictions as values: formulas, files, texts and the picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.prediction_values import (
    BarrierPrediction,
    LayerPrediction,
)
from lightning_rebasin.landscape.quadrature import ChordGrid

GRID = ChordGrid(2, 3)


def quartic(layers=True):
    """φ = ½((1 − 2s)² − 1)² along the chord, and two layers."""
    u = [1 - 2 * s for s in GRID.at]
    row = (0.0, 0.5, 0.0)
    pair = LayerPrediction("fc", 2.0, (0.0, -1.0), (4.0, 8.0), (0.5, 1.5))
    other = LayerPrediction("out", 1.0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    return BarrierPrediction(
        "loss",
        GRID,
        tuple(0.5 * (x * x - 1) ** 2 for x in u),
        tuple(-4 * x * (x * x - 1) for x in u),
        tuple(4 * (6 * x * x - 2) for x in u),
        2.0,
        BarrierCurve((0.0, 0.5, 1.0), {"loss": row, "acc": (1, 0, 1)}),
        (pair, other) if layers else (),
        9,
    )


def test_formulas():
    found = quartic()
    assert found.barrier == 0.5
    assert found.by_curvatures() == pytest.approx(0.5)
    assert found.by_slopes() == pytest.approx(0.5)
    assert found.taylor == pytest.approx(2.0)
    assert found.quintic == pytest.approx(0.5)
    assert found.mu == pytest.approx(2.0)
    assert found.bound == pytest.approx(1.0)
    assert found.layers[0].predicted == (0.5, 1.0)
    assert found.layers[0].taylor == (0.5, 0.5)


def test_quintic_is_the_interpolation_of_six_numbers():
    """A polynomial of degree five has the barrier that its ends say."""
    import numpy as np

    p = np.polynomial.Polynomial([1.0, -2.0, 0.5, 3.0, -1.0, 0.7])
    rows = [
        tuple(float(f(s)) for s in GRID.at) for f in (p, p.deriv(), p.deriv(2))
    ]
    curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (p(0), p(0.5), p(1))})
    found = BarrierPrediction("loss", GRID, *rows, 1.0, curve)
    assert found.quintic == pytest.approx(found.barrier)
    # The mean of two quadratics is exact for quadratics only.
    assert found.taylor != pytest.approx(found.barrier)


def test_a_convex_chord_has_bound_zero_and_equal_ends_have_none():
    found = quartic()
    convex = BarrierPrediction(
        "loss",
        GRID,
        found.losses,
        found.slopes,
        (1.0,) * 5,
        2.0,
        found.measured,
    )
    assert convex.bound == 0.0
    same = BarrierPrediction(
        "loss", GRID, (0.0,) * 5, (0.0,) * 5, (0.0,) * 5, 0.0, found.measured
    )
    assert (same.mu, same.bound) == (0.0, 0.0)


def test_files_are_read_back(tmp_path):
    found = quartic()
    found.to_json(tmp_path / "p.json")
    again = BarrierPrediction.from_json(tmp_path / "p.json")
    assert again.barriers() == found.barriers()
    assert again.layers == found.layers
    assert again.measured.values == found.measured.values
    assert (again.samples, again.grid) == (9, GRID)
    found.to_csv(tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "at,loss,slope,curvature,measured"
    assert [float(x) for x in lines[3].split(",")] == [0.5, 0.5, 0, -8, 0.5]
    assert lines[2].endswith(",")  # nothing was measured at ¼
    found.layers_to_csv(tmp_path / "l.csv")
    lines = (tmp_path / "l.csv").read_text().splitlines()
    assert lines[2] == "fc,b,2.0,-1.0,8.0,1.0,1.5"
    assert len(lines) == 5


@pytest.mark.parametrize("spoil", ["losses", "layers", "grid", "measured"])
def test_damaged_files_are_named(tmp_path, spoil):
    path = tmp_path / "p.json"
    quartic().to_json(path)
    data = json.loads(path.read_text())
    data[spoil] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(DataError):
        BarrierPrediction.from_json(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="prediction"):
        BarrierPrediction.from_json(path)


def test_texts():
    text = str(quartic())
    assert "Taylor" in text
    assert text.splitlines()[-2].split() == ["fc", "0.5", "0.5", "1", "1.5"]
    assert len(str(quartic(layers=False)).splitlines()) == 7
    assert "quintic 0.5" in repr(quartic())


def test_a_bound_that_fails_is_said() -> None:
    """Without curvature anywhere the bound is 0, and a barrier of one half was measured."""
    found = quartic()
    assert "does not hold" not in str(found)
    flat = replace(found, curvatures=(0.0,) * len(found.curvatures))
    assert "the bound does not hold" in str(flat)
