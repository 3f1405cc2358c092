"""Pictures: what is drawn, where it is saved, what happens without matplotlib."""

from __future__ import annotations

import math
import sys

import pytest

from lightning_rebasin.errors import DataError, MissingExtraError, OutputError
from lightning_rebasin.landscape import BarrierCurve, BarrierMatrix
from lightning_rebasin.plotting import plot_barriers, plot_history, plot_matrix

pytest.importorskip("matplotlib")

NAIVE = BarrierCurve(
    (0.0, 0.5, 1.0), {"loss": (0.1, 0.9, 0.3), "acc": (0.9, 0.2, 0.8)}
)
MATCHED = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.1, 0.2, 0.3)})


def test_curves_show_the_values_and_the_heights():
    figure = plot_barriers({"naive": NAIVE, "matched": MATCHED}, "loss")
    (axes,) = figure.axes
    naive, matched = axes.lines
    assert list(naive.get_ydata()) == [0.1, 0.9, 0.3]
    assert list(matched.get_xdata()) == [0.0, 0.5, 1.0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["naive: barrier 0.7", "matched: barrier 0.1"]
    assert axes.get_ylabel() == "loss"


def test_one_panel_per_shared_metric():
    assert len(plot_barriers({"": NAIVE}).axes) == 2
    assert len(plot_barriers({"a": NAIVE, "b": MATCHED}).axes) == 1
    with pytest.raises(DataError, match="'acc'"):
        plot_barriers({"a": NAIVE, "b": MATCHED}, "acc")


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")],
)
def test_curves_save_themselves(tmp_path, suffix, magic):
    path = tmp_path / f"curve.{suffix}"
    NAIVE.plot(path, matched=MATCHED)
    assert path.read_bytes().startswith(magic)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        NAIVE.plot(tmp_path / "nowhere" / "curve.png")


def test_history():
    figure = plot_history(
        [1, 2, 3],
        {"naive": [0.6, 0.7, 0.8], "matched": [0.1, 0.01, 0.0]},
        ylabel="test loss barrier",
    )
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines[:2]] == [
        "naive",
        "matched",
    ]
    assert list(axes.lines[1].get_ydata()) == [0.1, 0.01, 0.0]


def test_heat_map(tmp_path):
    matrix = BarrierMatrix(
        (0, 5),
        (0, 5, 9),
        ((0.0, 1.0, 2.0), (3.0, math.nan, 4.0)),
        "loss",
        "mean",
    )
    figure = matrix.plot(tmp_path / "matrix.png")
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (2, 3)
    assert image.get_clim() == (0, 4)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "0",
        "5",
        "9",
    ]
    assert (tmp_path / "matrix.png").stat().st_size > 1000
    assert plot_matrix(matrix).axes[1].get_ylabel() == "barrier of loss (mean)"


def test_pyplot_is_left_alone():
    sys.modules.pop("matplotlib.pyplot", None)
    NAIVE.plot()
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"lightning-rebasin\[plot\]"):
        NAIVE.plot()
