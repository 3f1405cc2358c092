"""Gauss–Lobatto rules against polynomials, and both identities of a function and its chord."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.quadrature import ChordGrid, green


def test_places_are_those_of_lobatto():
    """Known nodes: 0 and ±1 for three, ±1/√5 inside for four, ±√(3/7) and 0 for five."""
    assert ChordGrid(2, 3).at == (0.0, 0.25, 0.5, 0.75, 1.0)
    four = ChordGrid(2, 4).at
    assert four[1:3] == pytest.approx(
        [(1 - 5**-0.5) / 4, (1 + 5**-0.5) / 4], rel=1e-14
    )
    five = ChordGrid(2, 5).at
    assert five[1] == pytest.approx((1 - math.sqrt(3 / 7)) / 4, rel=1e-14)
    assert 0.5 in ChordGrid(6, 7).at


@given(
    st.integers(1, 4),
    st.integers(2, 6),
    st.lists(st.floats(-2, 2), min_size=10, max_size=10),
)
@settings(max_examples=50, deadline=None)
def test_polynomials_are_integrated_exactly(half, nodes, coefficients):
    grid = ChordGrid(2 * half, nodes)
    function = np.polynomial.Polynomial(coefficients[: 2 * nodes - 2])
    values = [float(function(s)) for s in grid.at]
    whole = function.integ()
    for piece, found in enumerate(grid.integrals(values)):
        low, high = grid.borders[piece], grid.borders[piece + 1]
        assert found == pytest.approx(whole(high) - whole(low), abs=1e-12)


@pytest.mark.parametrize("function", [np.polynomial.Polynomial([1, -2, 3, 4])])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_both_integrals_give_the_height_above_the_chord(function, alpha):
    grid = ChordGrid(4, 4)
    first, second = function.deriv(), function.deriv(2)
    chord = (1 - alpha) * function(0.0) + alpha * function(1.0)
    height = pytest.approx(float(function(alpha) - chord), abs=1e-12)
    assert grid.from_slopes([first(s) for s in grid.at], alpha) == height
    assert grid.from_curvatures([second(s) for s in grid.at], alpha) == height


def test_only_slopes_see_a_kink():
    """φ = |s − ½|: the second derivative is 0 wherever it exists."""
    grid = ChordGrid(2, 2)
    # The slope has a jump at ½; the mean there is what a symmetric rule needs.
    slopes = [-1.0, 0.0, 1.0]
    assert ChordGrid(2, 2).from_curvatures([0.0] * 3, 0.5) == 0.0
    fine = ChordGrid(64, 2)
    slopes = [math.copysign(1.0, s - 0.5) for s in fine.at]
    assert fine.from_slopes(slopes, 0.5) == pytest.approx(-0.5, abs=0.02)
    assert grid.borders == (0.0, 0.5, 1.0)


def test_the_kernel_has_mass_one_eighth_in_the_middle():
    grid = ChordGrid(2, 3)
    values = [green(0.5, s) for s in grid.at]
    assert sum(grid.integrals(values)) == pytest.approx(1 / 8)
    assert [2 * v for v in values] == [0.0, 0.25, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(("pieces", "nodes"), [(3, 4), (0, 4), (2, 1)])
def test_grids_that_cannot_work(pieces, nodes):
    with pytest.raises(ConfigurationError, match=f"pieces={pieces}"):
        ChordGrid(pieces, nodes)
