"""Bernstein polynomials against de Casteljau's construction."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.bezier import Bezier


def anchors(count):
    generator = torch.Generator().manual_seed(count)
    return tuple(
        {"w": torch.randn(5, generator=generator, dtype=torch.float64)}
        for _ in range(count)
    )


@given(count=st.integers(2, 6), t=st.floats(0.0, 1.0))
def test_the_curve_is_de_casteljaus(count, t):
    given_ = anchors(count)
    points = [state["w"] for state in given_]
    while len(points) > 1:
        points = [torch.lerp(a, b, t) for a, b in pairwise(points)]
    point = Bezier(given_).at(t)
    assert sum(point.coefficients) == pytest.approx(1.0)
    assert torch.allclose(point.state()["w"], points[0], atol=1e-12)


def test_ends_are_exact_and_the_middle_of_one_bend_is_known():
    a, c, b = anchors(3)
    curve = Bezier((a, c, b))
    assert curve.at(0.0).anchor is a
    assert curve.at(1.0).anchor is b
    assert curve.at(0.5).coefficients == (0.25, 0.5, 0.25)


def test_one_anchor_is_refused():
    with pytest.raises(ConfigurationError, match="two anchors or more, got 1"):
        Bezier(anchors(1))
