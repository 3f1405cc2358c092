"""Frank–Wolfe: best vertices by trying all, an exact line search, and an end that is never below the start."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.planted import joint_objective, planted_networks
from helpers.specs import grouped_spec, nested_spec, random_state

from lightning_rebasin.matching.many.frank_wolfe import (
    _FrankWolfe,
    _mix,
    frank_wolfe,
)
from lightning_rebasin.matching.many.soft import SoftNetworks
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

THIRDS = (1 / 3,) * 3


def small_spec() -> PermutationSpec:
    """One hidden layer of three units."""
    table = {"w": ("h", None), "v": (None, "h")}
    return PermutationSpec.from_table(table, {"w": (3, 2), "v": (2, 3)})


def small(seed: int) -> Universe:
    spec = small_spec()
    states = [random_state(spec, 3 * seed + i) for i in range(3)]
    return Universe(spec, states, THIRDS, "auto")


def test_line_search_is_exact() -> None:
    spec, states, _ = planted_networks(3, 1.0)
    universe = Universe(spec, states, THIRDS, "auto")
    engine, networks = _FrankWolfe(universe), SoftNetworks(universe)
    soft = [engine._half_way(Permutation.identity(spec)) for _ in states]
    target = engine._direction(soft)
    step, value = engine._line(soft, target)
    tried = [
        networks.value(
            [_mix(s, t, k / 50) for s, t in zip(soft, target, strict=True)]
        )
        for k in range(51)
    ]
    assert value >= max(tried) - 1e-5 * abs(value)
    assert 0.0 <= step <= 1.0


@pytest.mark.parametrize("network", range(3))
def test_the_direction_is_the_best_vertex_of_each_network(
    network: int,
) -> None:
    """The others held where they are, the objective is linear in one matrix here: no order of the six is better."""
    universe = small(0)
    spec = universe.spec
    engine, networks = _FrankWolfe(universe), SoftNetworks(universe)
    soft = [engine._half_way(Permutation.identity(spec)) for _ in range(3)]
    target = engine._direction(soft)

    def value(vertex: torch.Tensor) -> float:
        """Its inner product with the others, without what its own norm adds."""
        moved = [*soft]
        moved[network] = {"h": vertex}
        total, squares = networks.total(moved)
        norm = sum(float((t.double() ** 2).sum()) for t in total.values())
        return 0.5 * (norm - squares)

    eye = torch.eye(3, dtype=networks.dtype)
    tried = [
        value(eye[list(order)]) for order in itertools.permutations(range(3))
    ]
    assert value(target[network]["h"]) == pytest.approx(max(tried))


@pytest.mark.parametrize("seed", range(10))
def test_never_below_the_start_and_often_the_best_of_all(seed: int) -> None:
    universe = small(seed)
    spec = universe.spec
    before = universe.objective
    found = frank_wolfe(universe)
    states = [random_state(spec, 3 * seed + i) for i in range(3)]
    assert found == universe.objective >= before
    exact = joint_objective(states, universe.permutations, THIRDS)
    assert found == pytest.approx(exact)


def test_most_small_problems_are_solved() -> None:
    solved = 0
    for seed in range(10):
        universe = small(seed)
        orders = [
            Permutation(universe.spec, {"h": torch.tensor(order)})
            for order in itertools.permutations(range(3))
        ]
        best = -float("inf")
        still = Permutation.identity(universe.spec)
        for pair in itertools.product(orders, repeat=2):
            universe.move([still, *pair])
            best = max(best, universe.objective)
        universe.move([still] * 3)
        solved += frank_wolfe(universe) >= best - 1e-9
    assert solved >= 5


def test_planted_permutations_are_found() -> None:
    spec, states, planted = planted_networks(3)
    universe = Universe(spec, states, THIRDS, "auto")
    assert frank_wolfe(universe) == pytest.approx(universe.bound, rel=1e-5)
    found = universe.permutations
    for a, b in itertools.pairwise(range(3)):
        between = found[a].inverse().compose(found[b])
        assert between == planted[a].compose(planted[b].inverse())


def test_the_best_there_is_stays() -> None:
    spec, states, planted = planted_networks(3)
    universe = Universe(spec, states, THIRDS, "auto")
    home = [p.inverse() for p in planted]
    universe.move(home)
    before = universe.objective
    assert frank_wolfe(universe) == before
    assert universe.permutations == home


def test_nested_groups_are_found() -> None:
    """From most starts: the search is local, and which start misses depends on the machine's rounding."""
    spec = nested_spec()
    base = random_state(spec)
    reached = 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        states = [
            Permutation.random(spec, generator).apply(base) for _ in range(3)
        ]
        universe = Universe(spec, states, THIRDS, "auto")
        begin, bound = universe.objective, universe.bound
        assert begin < 0.9 * bound
        end = frank_wolfe(universe)
        assert begin < end <= bound * (1 + 1e-9)
        reached += end == pytest.approx(bound)
    assert reached >= 9


def test_groups_on_joint_axes_stay_where_they_are() -> None:
    spec = grouped_spec()
    states = [random_state(spec, seed) for seed in range(3)]
    universe = Universe(spec, states, THIRDS, "auto")
    generator = torch.Generator().manual_seed(0)
    start = [Permutation.random(spec, generator) for _ in states]
    universe.move(start)
    before = universe.objective
    assert frank_wolfe(universe) == before
    assert universe.permutations == start


def test_one_unit() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (1, 2)})
    states = [random_state(spec, seed) for seed in range(3)]
    universe = Universe(spec, states, THIRDS, "auto")
    before = universe.objective
    assert frank_wolfe(universe) == before
    assert all(p.is_identity for p in universe.permutations)
