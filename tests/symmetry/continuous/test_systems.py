"""Parities and small exact systems, against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lightning_rebasin.symmetry.continuous.systems import Equations, Parities

ROWS = st.lists(
    st.dictionaries(
        st.sampled_from("abcd"), st.sampled_from([-1, 1]), min_size=1
    ),
    max_size=4,
)


@given(rows=ROWS)
def test_solutions_modulo_two_are_all_of_them(rows) -> None:
    system = Equations(2)
    for row in rows:
        system.add(row)
    basis = system.solutions(list("abcd"))
    spanned = set()
    for picks in itertools.product((0, 1), repeat=len(basis)):
        total = [
            sum(
                p * int(s.get(k, 0)) for p, s in zip(picks, basis, strict=True)
            )
            % 2
            for k in "abcd"
        ]
        spanned.add(tuple(total))
    wanted = set()
    for values in itertools.product((0, 1), repeat=4):
        named = dict(zip("abcd", values, strict=True))
        if all(
            sum(c * named[k] for k, c in row.items()) % 2 == 0 for row in rows
        ):
            wanted.add(values)
    assert spanned == wanted


@given(rows=ROWS)
def test_rational_solutions_solve(rows) -> None:
    system = Equations()
    for row in rows:
        system.add(row)
    for solution in system.solutions(list("abcd")):
        for row in rows:
            assert sum(c * solution.get(k, 0) for k, c in row.items()) == 0


def test_what_is_forced_is_zero() -> None:
    system = Equations()
    system.add({"a": 1, "b": -1})
    assert not system.is_zero("a")
    system.zero("b")
    assert system.is_zero("a")


def test_an_odd_circle_contradicts_itself() -> None:
    parities = Parities()
    assert parities.tie("a", "b", -1)
    assert parities.tie("b", "c", -1)
    assert parities.tie("a", "c", 1)
    assert not parities.tie("c", "a", -1)
