"""The picture of a prediction: bars, ridge and layers."""

from __future__ import annotations

import pytest

from lightning_rebasin.landscape import (
    BarrierCurve,
    BarrierPrediction,
    LayerPrediction,
)
from lightning_rebasin.landscape.quadrature import ChordGrid

GRID = ChordGrid(2, 2)
LAYER = LayerPrediction("fc", 2.0, (0.0, 0.0), (4.0, 8.0), (0.25, 1.5))


@pytest.mark.parametrize("layers", [(), (LAYER,)])
def test_a_picture(tmp_path, layers):
    curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.0, 0.5, 0.0)})
    found = BarrierPrediction(
        "loss", GRID, (0.0, 0.5, 0.0), (0.0, 0.0, 0.0), (16.0, -8.0, 16.0),
        2.0, curve, layers,
    )  # fmt: skip
    figure = found.plot(tmp_path / "p.png")
    assert len(figure.axes) == 3 + len(layers)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    bars = figure.axes[2].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(
        list(found.barriers().values())
    )
    if layers:
        measured = figure.axes[3].lines[0]
        assert list(measured.get_xdata()) == [0.25]
