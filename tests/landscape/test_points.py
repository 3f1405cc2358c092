"""Points: exact at anchors, the line as it always was, any combination otherwise."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_rebasin import interpolate
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import Point


def states(count, dtype=torch.float32, size=7):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        {
            "w": torch.randn(size, generator=generator).to(dtype),
            "n": torch.tensor(i),
        }
        for i in range(count)
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_interpolation_is_exact_at_the_ends_and_rounded_once_between(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {
            "w": torch.randn(50, generator=generator).to(dtype),
            "n": torch.tensor(k),
        }
        for k in (3, 8)
    )
    target = {"w": torch.empty(50, dtype=dtype), "n": torch.tensor(0)}
    for lam, expected in ((0.0, a), (1.0, b)):
        Line(a, b).at(lam).write(target)
        assert all(torch.equal(target[k], expected[k]) for k in a)
    Line(a, b).at(0.3).write(target)
    wide = 0.7 * a["w"].double() + 0.3 * b["w"].double()
    assert torch.allclose(
        target["w"].double(),
        wide,
        rtol=torch.finfo(dtype).eps,
        atol=torch.finfo(dtype).eps,
    )
    assert int(target["n"]) == 3


@given(lam=st.floats(-0.5, 1.5))
def test_a_point_of_two_anchors_is_interpolation_to_the_bit(lam):
    a, b = states(2)
    assert torch.equal(
        Line(a, b).at(lam).state()["w"], interpolate(a, b, lam)["w"]
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64]
)
def test_many_anchors_are_summed(dtype):
    anchors = states(4, dtype)
    coefficients = (0.5, -0.25, 0.125, 0.625)
    found = Point(anchors, coefficients).state()
    wide = sum(
        c * a["w"].double() for a, c in zip(anchors, coefficients, strict=True)
    )
    assert found["w"].dtype == dtype
    assert torch.allclose(
        found["w"].double(), wide, atol=4 * torch.finfo(dtype).eps
    )
    assert int(found["n"]) == 3, "a counter comes from the largest coefficient"


def test_an_anchor_is_known_as_such():
    a, b, c = states(3)
    assert Point((a, b, c), (0.0, 1.0, 0.0)).anchor is b
    assert Point((a, b, c), (0.0, 0.5, 0.5)).anchor is None
    assert len(Point((a, b, c), (0.0, 0.5, 0.5)).parts) == 2


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((0.5, 0.4), r"sum to 1, \(0.5, 0.4\) sum to 0.9"),
        ((100.0, -98.99995), "sum to 1"),
        ((1.0,), "one coefficient per anchor, got 1 for 2"),
        ((float("nan"), 1.0), "sum to 1"),
        ((float("inf"), float("-inf")), "sum to 1"),
    ],
)
def test_bad_coefficients_are_refused(coefficients, message):
    with pytest.raises(ConfigurationError, match=message):
        Point(states(2), coefficients)


@given(x=st.floats(-1e13, 1e13), y=st.floats(-1e13, 1e13))
def test_far_from_the_anchors_rounding_of_the_sum_is_forgiven(x, y):
    assert Point(states(3), (1.0 - x - y, x, y)).coefficients[1:] == (x, y)
