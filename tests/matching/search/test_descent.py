"""Coordinate descent: the textbook's trajectory, exact steps, and gains that are gains of the objective."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from helpers import textbook
from helpers.costs import F64, State, cost_cache, flats_of, random_pair
from helpers.planted import chain
from helpers.specs import grouped_spec, nested_spec, random_state
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.costs.cache import TermTable
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search.descent import (
    CoordinateDescent,
    Duals,
)
from lightning_rebasin.matching.search.policy import orders
from lightning_rebasin.matching.steps.permutation import (
    Family,
    FlatOrder,
    Matrix,
    families_of,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Axes = tuple[str | None, ...]


def descent(
    spec: PermutationSpec,
    a: State,
    b: State,
    solver: Solver = "auto",
    duals: dict[str, Duals] | None = None,
) -> CoordinateDescent:
    """A descent on one pair of float64 models, from the identity."""
    table = TermTable.of(spec)
    families = families_of(spec, table.coupled)

    def local(family: Family, flats: Mapping[str, Tensor]) -> float:
        p = Permutation.from_flat(spec, flats)
        names = table.tensors_of(family.root.id)
        return objective(spec, a, b, p, names)

    size = sum(float(a[n].norm() * b[n].norm()) for n in a)
    run = CoordinateDescent(
        families,
        cost_cache(spec, a, b),
        {family.root.id: size for family in families},
        torch.finfo(F64).eps,
        local,
        solver,
        {} if duals is None else duals,
    )
    run.start(flats_of(Permutation.identity(spec)))
    return run


def reached(
    spec: PermutationSpec, a: State, b: State, run: CoordinateDescent
) -> float:
    """The objective where a descent stands."""
    return objective(spec, a, b, Permutation.from_flat(spec, run.flats))


def all_orders(size: int) -> list[Tensor]:
    found = itertools.permutations(range(size))
    return [torch.tensor(order) for order in found]


# --- the textbook ----------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "seed"),
    [((6, 20, 15, 4), 0), ((10, 30, 30, 30, 5), 1), ((8, 200, 170, 3), 2)],
)
def test_same_trajectory_as_the_textbook(
    sizes: tuple[int, ...], seed: int
) -> None:
    table, a, b = chain(sizes, seed, F64)
    spec = PermutationSpec.from_table(table, a)
    generator = torch.Generator().manual_seed(seed)
    groups = list(spec.groups)
    visits = list(orders("random", len(groups), 100, generator))
    trace: list[tuple[str, float]] = []
    expected = textbook.weight_matching(
        table,
        a,
        b,
        lambda sweep: [groups[i] for i in visits[sweep]],
        trace=trace,
    )
    result = match_weights(spec, a, b, init="identity", seed=seed)
    for group in groups:
        assert torch.equal(result.permutation[group], expected[group])
    gains = np.diff(result.descents[0].objectives)
    per_sweep = [
        sum(gain for _, gain in trace[k : k + len(groups)])
        for k in range(0, len(trace), len(groups))
    ]
    np.testing.assert_allclose(gains, per_sweep, atol=1e-9)
    assert result.objective == pytest.approx(
        textbook.objective(table, a, b, expected), rel=1e-12
    )


@pytest.mark.parametrize("solver", ["scipy", "lap", "numba"])
def test_solvers_agree(solver: str) -> None:
    table, a, b = chain((10, 50, 40, 5), 5, F64)
    spec = PermutationSpec.from_table(table, a)
    auto = match_weights(spec, a, b, init="identity")
    other = match_weights(spec, a, b, init="identity", solver=solver)
    assert other.permutation == auto.permutation


# --- one visit -------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "numba"])
@pytest.mark.parametrize("seed", range(3))
def test_a_visit_takes_the_best_of_all_orders(
    seed: int, solver: Solver
) -> None:
    table, a, b = chain((3, 4, 5, 2), seed, F64)
    spec = PermutationSpec.from_table(table, a)
    run = descent(spec, a, b, solver)
    values = {
        tuple(order.tolist()): objective(
            spec, a, b, Permutation(spec, {"h0": order})
        )
        for order in all_orders(4)
    }
    best = max(values, key=lambda order: values[order])
    gain = run.visit(run.families[0])
    assert tuple(run.flats["h0"].tolist()) == best
    assert run.flats["h1"].tolist() == [0, 1, 2, 3, 4]
    assert gain == pytest.approx(values[best] - values[0, 1, 2, 3])


def test_sweeps_end_where_no_group_gains_alone() -> None:
    table, a, b = chain((3, 4, 5, 2), 0, F64)
    spec = PermutationSpec.from_table(table, a)
    run = descent(spec, a, b)
    value = objective(spec, a, b)
    for _ in range(20):
        gain = sum(run.visits([0, 1]))
        value += gain
        assert reached(spec, a, b, run) == pytest.approx(value)
        if not gain:
            break
    assert gain == 0.0
    for group, size in (("h0", 4), ("h1", 5)):
        for order in all_orders(size):
            elsewhere = {**run.flats, group: order}
            p = Permutation.from_flat(spec, elsewhere)
            assert objective(spec, a, b, p) <= value + 1e-9


def test_units_as_good_elsewhere_stay_where_they_are() -> None:
    """All orders are as good: nothing moves without a gain, or the descent would never end."""
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 2)})
    same = {"w": torch.full((3, 2), 0.1, dtype=F64)}
    run = descent(spec, same, same)
    run.start({"h": torch.tensor([2, 0, 1])})
    assert sum(run.visits([0])) == 0.0
    assert run.flats["h"].tolist() == [2, 0, 1]


def test_one_unit_has_nowhere_to_go() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (1, 2)})
    run = descent(spec, *random_pair({"w": (1, 2)}))
    assert sum(run.visits([0])) == 0.0
    assert run.flats["h"].tolist() == [0]


# --- families that are not plain -------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_nested_groups_gain_what_they_say(seed: int) -> None:
    spec = nested_spec(3, 2, 4)
    a, b = random_state(spec, seed), random_state(spec, seed + 50)
    run = descent(spec, a, b)
    heads = next(f for f in run.families if f.root.id == "heads")
    gain = run.visit(heads)
    # Every order of three heads, with both orders of the units of each.
    values = []
    for order in all_orders(3):
        for inside in itertools.product(all_orders(2), repeat=3):
            moved = {"heads": order, "value": torch.stack(inside)}
            values.append(objective(spec, a, b, Permutation(spec, moved)))
    start = objective(spec, a, b)
    assert reached(spec, a, b, run) == pytest.approx(max(values))
    assert gain == pytest.approx(max(values) - start)


def tied_spec() -> PermutationSpec:
    """A group on both axes of one weight, as in a recurrent layer."""
    table: dict[str, Axes] = {"w": ("h", "h"), "v": ("h", None)}
    return PermutationSpec.from_table(table, {"w": (4, 4), "v": (4, 1)})


@pytest.mark.parametrize("make", [tied_spec, grouped_spec])
def test_steps_that_are_linearisations_never_lose(
    make: Callable[[], PermutationSpec],
) -> None:
    spec = make()
    gains: list[float] = []
    for seed in range(10):
        a, b = random_state(spec, seed), random_state(spec, seed + 50)
        run = descent(spec, a, b)
        assert all(family.coupled for family in run.families)
        value = objective(spec, a, b)
        for _ in range(4):
            gain = sum(run.visits(range(len(run.families))))
            assert gain >= 0.0
            value += gain
            gains.append(gain)
            assert reached(spec, a, b, run) == pytest.approx(value)
    assert max(gains) > 0.0


# --- what is kept ----------------------------------------------------------


def test_a_cold_start_forgets_the_duals_and_a_warm_one_keeps_them() -> None:
    table, a, b = chain((3, 6, 2), 0, F64)
    spec = PermutationSpec.from_table(table, a)
    duals: dict[str, Duals] = {}
    run = descent(spec, a, b, "numba", duals)
    sum(run.visits([0]))
    assert duals["h0"].held.tolist() == run.flats["h0"].tolist()
    ended, still = run.flats, flats_of(Permutation.identity(spec))
    run.start(still, warm=True)
    assert list(duals) == ["h0"]
    assert run.flats["h0"].tolist() == list(range(6))
    sum(run.visits([0]))
    assert torch.equal(run.flats["h0"], ended["h0"])
    run.start(still)
    assert not duals


def test_a_group_whose_neighbours_stayed_is_not_solved_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, a, b = chain((3, 4, 2), 0, F64)
    spec = PermutationSpec.from_table(table, a)
    run = descent(spec, a, b)
    solved: list[str] = []
    solve = CoordinateDescent._solve

    def watched(
        self: CoordinateDescent, group: str, cost: Matrix
    ) -> FlatOrder:
        solved.append(group)
        return solve(self, group, cost)

    monkeypatch.setattr(CoordinateDescent, "_solve", watched)
    sum(run.visits([0]))
    sum(run.visits([0]))
    assert solved == ["h0"]
    run.start(run.flats)
    sum(run.visits([0]))
    assert solved == ["h0", "h0"]
