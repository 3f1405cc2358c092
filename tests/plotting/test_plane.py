"""Contours: levels, models, curve, file."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.landscape.plane_values import LossPlane
from lightning_rebasin.plotting.plane import contour_levels

pytest.importorskip("matplotlib")

XS = tuple(float(x) for x in np.linspace(-1, 3, 9))
YS = tuple(float(y) for y in np.linspace(-1, 2, 7))
GRID = tuple(tuple((x - 1) ** 2 + y**2 for x in XS) for y in YS)
PLANE = LossPlane(
    XS,
    YS,
    {"acc": tuple(tuple(-v for v in row) for row in GRID), "loss": GRID},
    ((0.0, 0.0), (2.0, 0.0), (1.0, 1.0)),
    curve=((0.0, 0.0), (1.0, 0.5), (2.0, 0.0)),
    higher_is_better={"acc": True, "loss": False},
)


def test_models_and_curve_are_drawn_where_they_lie(tmp_path):
    figure = PLANE.plot(tmp_path / "p.png", labels=["one", "two", "bend"])
    axes = figure.axes[0]
    curve, *models = axes.lines
    assert list(curve.get_xdata()) == [0.0, 1.0, 2.0]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in models] == list(
        PLANE.models
    )
    assert [t.get_text() for t in axes.texts] == ["one", "two", "bend"]
    assert figure.axes[1].get_ylabel() == "loss"
    assert axes.get_aspect() == 1
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_sliver_is_stretched():
    grid = ((1.0, 2.0), (3.0, 4.0))
    flat = LossPlane((0.0, 9.0), (0.0, 1.0), {"loss": grid})
    assert flat.plot().axes[0].get_aspect() == "auto"


def test_log_levels_are_finer_near_the_best_value():
    levels = contour_levels([2.0, 5.0, 12.0])
    steps = np.diff(levels)
    assert all(steps[1:] > steps[:-1])
    assert levels[0] == pytest.approx(2.0 + 10 * 1e-3)
    assert levels[-1] == pytest.approx(12.0)
    mirrored = contour_levels([-2.0, -5.0, -12.0], higher_is_better=True)
    assert mirrored == pytest.approx([-v for v in reversed(levels)])


def test_linear_levels_and_flat_planes():
    assert contour_levels([0.0, 13.0], "linear") == pytest.approx(range(14))
    assert len(set(contour_levels([3.0, 3.0]))) == 14
    assert len(set(contour_levels([]))) == 14
    with pytest.raises(ConfigurationError, match="'cubic'"):
        contour_levels([1.0], "cubic")


def test_the_picture_uses_the_levels():
    figure = PLANE.plot(levels=[0.5, 1.0, 2.0])
    filled = figure.axes[0].collections[0]
    # Two bands between them, and one beyond each end.
    assert list(filled.levels) == [0.5, 1.0, 2.0]
    assert figure.axes[0].collections[1].levels.tolist() == [0.5, 1.0, 2.0]
    with pytest.raises(DataError, match="'f1'"):
        PLANE.plot(metric="f1")


def test_values_that_are_no_numbers_leave_holes():
    grid = ((math.nan, 1.0, 2.0), (0.0, 1.0, math.inf))
    plane = LossPlane((0.0, 1.0, 2.0), (0.0, 1.0), {"loss": grid})
    levels = plane.plot().axes[0].collections[0].levels
    assert levels[-1] == 2.0
