"""Operations for which the order matters pin it and give positions of their own."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of


def test_the_best_columns_are_positions():
    bench = Bench()
    values, places = bench.run(
        "topk", (2, 2), (2, 2), self=bench.units(2, 3), k=2, dim=-1
    )
    assert bench.pins == {2, 3, 4}
    for label in (values, places):
        assert parts_of(label) == {(0,): [0, 1]} and label.pinned == {1}


def test_a_dimension_may_be_dropped_or_followed_by_a_window():
    bench = Bench()
    assert bench.run("kthvalue", (2,), (2,), self=bench.units(2, 3), dim=1)[
        0
    ].shape == (2,)
    windows = bench.run(
        "unfold",
        (2, 3, 4),
        self=bench.units(2, 6),
        dimension=1,
        size=4,
        step=1,
    )
    assert windows.pinned == {1, 2} and parts_of(windows) == {(0,): [5, 6]}


def test_without_a_dimension_the_last_one_is_meant():
    bench = Bench()
    bench.run("sort", (2, 3), (2, 3), self=bench.units(2, 3))
    assert bench.pins == {2, 3, 4}


def test_a_triangle_keeps_what_is_before_it_and_a_factorisation_nothing():
    bench = Bench()
    lower = bench.run("tril", (2, 3, 3), self=bench.units(2, 3, 3))
    assert bench.pins == {2, 3, 4, 5, 6, 7} and parts_of(lower) == {
        (0,): [0, 1]
    }
    inverse = bench.run(
        "linalg_inv_ex", (2, 3, 3), (2,), A=bench.units(2, 3, 3)
    )
    assert inverse[0].pinned == {0, 1, 2} and {8, 9} <= bench.pins


def test_a_diagonal_is_read_along_the_dimensions_it_names():
    bench = Bench()
    bench.run(
        "diagonal", (4, 2), self=bench.units(2, 4, 3), offset=0, dim1=0, dim2=2
    )
    reasons = {t.reason: sorted(t.left.tolist()) for t in bench.store.tables}
    assert reasons["aten.diagonal depends on positions"] == [
        6,
        7,
        8,
    ] and bench.pins == set(range(9))


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (lambda h: h.sort(1).values, []),
        (lambda h: h.view(-1, 2, 4).cumsum(1).reshape(-1, 8), [(4, 1)]),
        (lambda h: torch.fft.fft(h, dim=1).real, []),
        (lambda h: h.view(-1, 2, 4).tril().flatten(1), []),
        (lambda h: h.cummax(0).values, [(8, 1)]),
    ],
)
def test_ordered_units(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6
