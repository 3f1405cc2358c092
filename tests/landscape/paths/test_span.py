"""Points that directions reach."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.span import Span


def test_points_are_the_origin_and_steps_along_the_directions():
    torch.manual_seed(0)
    origin = {
        "w": torch.randn(4, 3, dtype=torch.float64),
        "n": torch.tensor(7),
    }
    d, e = ({"w": torch.randn(4, 3, dtype=torch.float64)} for _ in range(2))
    state = Span(origin, (d, e)).at(0.3, -2.5).state()
    expected = origin["w"] + 0.3 * d["w"] - 2.5 * e["w"]
    torch.testing.assert_close(state["w"], expected, rtol=1e-12, atol=1e-12)
    assert state["n"] == 7


def test_the_origin_is_exact():
    origin = {"w": torch.randn(5)}
    span = Span(origin, ({"w": torch.randn(5)},))
    assert span.at(0.0).anchor is origin


def test_directions_that_do_not_fit_are_named():
    origin = {"w": torch.zeros(2)}
    with pytest.raises(ConfigurationError, match="direction 2: tensor 'v'"):
        Span(origin, ({}, {"v": torch.zeros(2)}))
    with pytest.raises(ConfigurationError, match="'w' of shape \\(3,\\)"):
        Span(origin, ({"w": torch.zeros(3)},))
    with pytest.raises(ConfigurationError, match="at least one"):
        Span(origin, ())
    with pytest.raises(ConfigurationError, match="1 steps for 2"):
        Span(origin, ({}, {})).at(1.0)
