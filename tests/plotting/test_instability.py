"""The picture of instability: two studies in one, over the share of training."""

from __future__ import annotations

import pytest

from lightning_rebasin.landscape import BarrierCurve, Instability
from lightning_rebasin.plotting import plot_instability


def found(steps: int) -> Instability:
    low = BarrierCurve((0.0, 0.5, 1.0), {"acc": (0.9, 0.9, 0.9)})
    high = BarrierCurve((0.0, 0.5, 1.0), {"acc": (0.9, 0.4, 0.9)})
    curves = {(0, 0): high, (0, 50): low}
    return Instability((0, 50), (0,), curves, "acc", steps, 0.05)


def test_studies_of_different_length_share_an_axis() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_instability({"short": found(100), "long": found(1000)})
    axes = figure.axes[0]
    means = [line for line in axes.lines if line.get_marker() == "None"]
    assert list(means[0].get_xdata()) == [0, 50]
    assert list(means[1].get_xdata()) == [0, 5]
    assert list(means[0].get_ydata()) == pytest.approx([0.5, 0])
    assert list(means[2].get_ydata()) == [0.05, 0.05]
    assert axes.get_ylabel() == "instability (acc)"
