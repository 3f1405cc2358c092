import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.polygon import Polygon


def corners(count):
    return tuple(
        {"w": torch.tensor([float(i), float(i % 2)])} for i in range(count)
    )


@given(count=st.integers(2, 6), t=st.floats(0.0, 1.0))
def test_the_chain_is_linear_in_t_along_its_first_coordinate(count, t):
    """The corners lie at 0, 1, 2, … so the first coordinate is t times the number of pieces."""
    point = Polygon(corners(count)).at(t)
    assert sum(point.coefficients) == pytest.approx(1.0)
    assert sum(c != 0.0 for c in point.coefficients) <= 2
    assert float(point.state()["w"][0]) == pytest.approx(
        t * (count - 1), abs=1e-5
    )


def test_corners_are_anchors():
    given_ = corners(3)
    chain = Polygon(given_)
    assert [chain.at(t).anchor for t in (0.0, 0.5, 1.0)] == list(given_)


def test_one_anchor_is_refused():
    with pytest.raises(ConfigurationError, match="two anchors or more, got 1"):
        Polygon(corners(1))
