"""Layer-wise barriers: layers down the side, both bases."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.layer_values import LayerBarriers

pytest.importorskip("matplotlib")


def barriers(high, layers=("conv", "fc")):
    rows = {
        "a": ((1.0, high, 2.0), (1.0, 1.5, 1.0)),
        "b": ((2.0, 2.0, 3.0), (0.0, high, 3.0)),
    }
    return LayerBarriers(
        layers, (0.0, 0.5, 1.0), {"loss": rows}, {"loss": (1.0, 3.0)}
    )


def test_layers_are_down_the_side_and_each_base_has_its_line(tmp_path):
    figure = barriers(4.0).plot(tmp_path / "l.png", matched=barriers(2.5))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["conv", "fc"]
    low, high = axes.get_ylim()
    assert low > high
    lines = {line.get_label(): line for line in axes.lines[1:]}
    assert list(lines) == [
        "naive, from a",
        "naive, from b",
        "matched, from a",
        "matched, from b",
    ]
    assert list(lines["naive, from a"].get_xdata()) == [2.0, -0.5]
    assert list(lines["matched, from b"].get_xdata()) == [1.0, 1.0]
    assert list(lines["matched, from b"].get_ydata()) == [0, 1]
    assert axes.get_xlabel() == "barrier of loss (single)"
    assert (tmp_path / "l.png").stat().st_size > 1000


def test_other_layers_or_metrics_are_refused():
    with pytest.raises(DataError, match="same layers"):
        barriers(4.0).plot(other=barriers(4.0, ("x", "y")))
    with pytest.raises(DataError, match="'acc'"):
        barriers(4.0).plot(metric="acc")
