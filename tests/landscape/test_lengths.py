"""Lengths of paths against points that are written out, and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lightning_rebasin.landscape.lengths import (
    arc_lengths,
    corners,
    normalised_length,
)
from lightning_rebasin.landscape.paths import Bezier, Line, Polygon
from lightning_rebasin.landscape.points import Point


def states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        found.append(
            {
                "w": torch.randn(3, 4, generator=generator),
                "b": torch.randn(3, generator=generator),
                "count": torch.tensor(5),
            }
        )
    return found


def test_arc_lengths_equal_those_of_points_written_out():
    path = Bezier(tuple(states(4)))
    ts = (0.0, 0.2, 0.35, 0.9, 1.0)
    points = [path.at(t) for t in ts]
    total, expected = 0.0, [0.0]
    for one, two in pairwise(points):
        x, y = one.state(), two.state()
        total += math.sqrt(
            sum(
                float((x[n].double() - y[n].double()).square().sum())
                for n in "wb"
            )
        )
        expected.append(total)
    assert arc_lengths(points) == pytest.approx(expected, rel=1e-6)


def test_only_named_tensors_count():
    a, b = states(2)
    (_, length) = arc_lengths(
        [Point((a,), (1.0,)), Point((b,), (1.0,))], ["b"]
    )
    assert length == pytest.approx(float((a["b"] - b["b"]).norm()), rel=1e-6)


def test_over_a_centre_the_ratio_is_the_published_one():
    """(‖θ1 − c‖ + ‖c − θ2‖)/‖θ1 − θ2‖, with a corner that no even grid of 61 points without it would miss."""
    one, centre, two = states(3)

    def distance(x, y):
        return math.sqrt(
            sum(float((x[n] - y[n]).square().sum()) for n in "wb")
        )

    expected = (distance(one, centre) + distance(centre, two)) / distance(
        one, two
    )
    found = normalised_length(Polygon((one, centre, two)), points=2)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_straight_path_has_ratio_one_and_a_closed_one_none():
    a, b = states(2)
    assert normalised_length(Line(a, b)) == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(normalised_length(Polygon((a, b, a))))


def test_the_length_of_a_parabola():
    """Bezier (0,0), (1,1), (2,0): y = x − x²/2, of length √2 + ln(1 + √2)."""
    anchors = [
        {"w": torch.tensor(v, dtype=torch.float64)}
        for v in ([0.0, 0.0], [1.0, 1.0], [2.0, 0.0])
    ]
    found = normalised_length(Bezier(tuple(anchors)), points=2001)
    expected = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 2
    assert found == pytest.approx(expected, rel=1e-6)


def test_corners_of_a_chain():
    assert corners(Polygon(tuple(states(4)))) == (0.0, 1 / 3, 2 / 3, 1.0)
    assert corners(Line(*states(2))) == ()
