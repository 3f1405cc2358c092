"""Linear equations between exponents, and signs of writers and readers, against brute force."""

from __future__ import annotations

import itertools
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from lightning_rebasin.symmetry.continuous.systems import Equations, Parities

NAMES = ("a", "b", "c", "d")
rows = st.lists(
    st.tuples(*[st.integers(-2, 2) for _ in NAMES]), min_size=0, max_size=4
)


def row(coefficients: tuple[int, ...]) -> dict[str, int]:
    return {n: c for n, c in zip(NAMES, coefficients, strict=True) if c}


@given(rows)
def test_solutions_are_a_basis_of_the_null_space(system):
    equations = Equations()
    for coefficients in system:
        equations.add(row(coefficients))
    found = equations.solutions(list(NAMES))
    matrix = np.array([[0] * len(NAMES), *system], dtype=float)
    basis = np.array(
        [[float(s.get(n, 0)) for n in NAMES] for s in found]
    ).reshape(-1, len(NAMES))
    assert np.abs(matrix @ basis.T).max(initial=0) < 1e-9
    nullity = len(NAMES) - np.linalg.matrix_rank(matrix)
    assert len(found) == nullity
    if found:
        assert np.linalg.matrix_rank(basis) == nullity


@given(rows)
def test_modulo_two_against_all_assignments(system):
    equations = Equations(modulo=2)
    for coefficients in system:
        equations.add(row(coefficients))
    found = equations.solutions(list(NAMES))
    solved = [
        bits
        for bits in itertools.product((0, 1), repeat=len(NAMES))
        if all(sum(map(int.__mul__, r, bits)) % 2 == 0 for r in system)
    ]
    assert 2 ** len(found) == len(solved)
    for solution in found:
        assert tuple(int(solution.get(n, 0)) for n in NAMES) in solved


@given(rows)
def test_an_unknown_is_zero_if_every_solution_says_so(system):
    equations = Equations()
    for coefficients in system:
        equations.add(row(coefficients))
    found = equations.solutions(list(NAMES))
    for name in NAMES:
        zero = all(not s.get(name, Fraction(0)) for s in found)
        assert equations.is_zero(name) == zero


def test_what_contradicts_an_earlier_sign_is_seen():
    parities = Parities()
    assert parities.tie("writer", "reader", -1)
    assert parities.tie("reader", "other reader", 1)
    assert parities.tie("writer", "other reader", -1)
    assert not parities.tie("writer", "other reader", 1)
