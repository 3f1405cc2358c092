"""Profiles: values, bumps marked."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.profile_values import LossProfile

pytest.importorskip("matplotlib")

ONE = LossProfile(
    (0.0, 0.25, 0.5, 0.75, 1.0),
    {"loss": (2.0, 1.0, 1.5, 1.75, 0.0), "acc": (0.1, 0.2, 0.3, 0.4, 0.5)},
)
OTHER = LossProfile((0.0, 1.0), {"loss": (2.0, 1.0)})


def test_values_and_bumps_are_drawn(tmp_path):
    figure = ONE.plot(tmp_path / "p.png", "loss")
    (axes,) = figure.axes
    row, mark = axes.lines
    assert list(row.get_ydata()) == list(ONE.values["loss"])
    assert list(mark.get_xdata()) == [0.25, 0.5, 0.75]
    assert list(mark.get_ydata()) == [1.0, 1.5, 1.75]
    assert axes.get_legend().get_texts()[0].get_text() == "bump 0.75"
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_one_panel_per_shared_metric():
    assert len(ONE.plot().axes) == 2
    figure = ONE.plot(None, None, late=OTHER)
    assert [a.get_ylabel() for a in figure.axes] == ["loss"]
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ["this: bump 0.75", "late: bump 0"]
    with pytest.raises(DataError, match="'acc'"):
        ONE.plot(None, "acc", late=OTHER)
