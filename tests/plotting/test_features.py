"""The picture of features: a panel for everything that is known."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape import FeatureHistory, FeatureRow, Features
from lightning_rebasin.plotting import plot_features


def test_panels_hold_what_is_known(tmp_path):
    rows = []
    for step in (0, 5):
        own = Features(1.0 + step, 0.5, 2.0, 0.9)
        rows.append(FeatureRow(step, 0, 0.1, {"(all)": own, "fc": own}))
    figure = plot_features(
        FeatureHistory(tuple(rows)), path=tmp_path / "f.png", title="two"
    )
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == ["distance", "cosine", "moved", "moved cosine"]
    layer, whole = shown[0].lines
    assert list(whole.get_ydata()) == [1.0, 6.0]
    assert whole.get_linewidth() > layer.get_linewidth()
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_said():
    with pytest.raises(DataError, match="nothing to draw"):
        plot_features(FeatureHistory(()))
