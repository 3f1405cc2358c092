"""Reductions: a sum takes units in any order, a position that comes out does not."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_sum_marks_what_it_takes(keepdim):
    bench = Bench()
    result = bench.run(
        "sum",
        (2, 1) if keepdim else (2,),
        self=bench.units(2, 3),
        dim=[-1],
        keepdim=keepdim,
    )
    assert parts_of(result) == {(0,): [0, 1]} and bench.tables() == [
        ("mark", [2, 3, 4], [0, 0, 0])
    ]


def test_a_sum_over_everything_is_a_number():
    bench = Bench()
    assert (
        bench.run("sum", (), self=bench.units(2, 3)).shape == ()
        and len(bench.tables("mark")) == 2
    )


@pytest.mark.parametrize(
    ("needed", "pins"), [([0], set()), ([0, 1], {2, 3, 4})]
)
def test_the_place_of_an_extreme_matters_only_if_it_is_read(needed, pins):
    bench = Bench()
    bench.run(
        "max",
        (2,),
        (2,),
        self=bench.units(2, 3),
        dim=1,
        keepdim=False,
        needed=needed,
    )
    assert bench.pins == pins


@pytest.mark.parametrize("op", ["argmax", "trace"])
def test_positions_that_come_out_pin_what_they_count(op):
    bench = Bench()
    bench.run(op, (), self=bench.units(3, 3))
    assert bench.pins == {0, 1, 2, 3, 4, 5}


def test_the_larger_of_two_tensors_is_pointwise():
    bench = Bench()
    assert bench.run(
        "max", (2, 3), self=bench.units(2, 3), other=bench.units(2, 3)
    ).shape == (2, 3)
    assert len(bench.tables("equal")) == 2 and bench.tables("mark") == []


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (lambda h: h + h.logsumexp(1, keepdim=True), [(8, 1)]),
        (lambda h: h - h.max(1, keepdim=True).values, [(8, 1)]),
        (lambda h: h * h.argmax(1, keepdim=True), []),
        (lambda h: h.view(-1, 4, 2).amax(-1), [(4, 1), (2, 4)]),
        (lambda h: torch.maximum(h, h.std(1, keepdim=True)), [(8, 1)]),
    ],
)
def test_reductions_of_units(operation, groups):
    width = 4 if groups == [(4, 1), (2, 4)] else 8
    spec = exact(around(operation, width), noise(3, 5))
    assert spec.log10_symmetries == pytest.approx(log10(*groups))
