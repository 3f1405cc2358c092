"""Several networks annealed together, in the frame of one of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.costs import F64, State, cost_cache
from helpers.planted import chain, joint_objective, planted_networks
from helpers.specs import grouped_spec, nested_spec, random_state

from lightning_rebasin.matching.many.joint_anneal import joint_anneal
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.matching.search.anneal import (
    FAST,
    SLOW,
    Annealing,
    Schedule,
)
from lightning_rebasin.matching.steps.permutation import families_of
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

THIRDS = (1 / 3,) * 3


@pytest.mark.parametrize("schedule", [SLOW, FAST])
@pytest.mark.parametrize("frame", range(3))
def test_planted_permutations_are_found_in_any_frame(
    frame: int, schedule: Schedule
) -> None:
    spec, states, planted = planted_networks(3, 0.3)
    universe = Universe(spec, states, (0.5, 0.3, 0.2), "auto")
    joint_anneal(universe, frame, schedule, seed=0)
    assert universe.permutations[frame].is_identity
    for found, p in zip(universe.permutations, planted, strict=True):
        assert found == planted[frame].compose(p.inverse())


def test_nested_groups_are_found() -> None:
    spec = nested_spec()
    base = random_state(spec)
    generator = torch.Generator().manual_seed(0)
    planted = [Permutation.random(spec, generator) for _ in range(3)]
    states = [p.apply(base) for p in planted]
    universe = Universe(spec, states, THIRDS, "auto")
    joint_anneal(universe, 0, SLOW, seed=0)
    for found, p in zip(universe.permutations, planted, strict=True):
        assert found == planted[0].compose(p.inverse())


def test_where_the_networks_stood_before_makes_no_difference() -> None:
    spec, states, _ = planted_networks(3, 1.0)
    found = []
    for seed in range(2):
        universe = Universe(spec, states, THIRDS, "auto")
        generator = torch.Generator().manual_seed(seed)
        universe.move([Permutation.random(spec, generator) for _ in states])
        joint_anneal(universe, 1, FAST, seed=5)
        found.append(universe.permutations)
        assert universe.objective == pytest.approx(
            joint_objective(states, universe.permutations, THIRDS), rel=1e-5
        )
    assert found[0] == found[1]


def best_of_all(spec: PermutationSpec, states: list[State]) -> float:
    """The objective of the best orders of three units of three networks, the first held."""
    orders = [
        Permutation(spec, {"h": torch.tensor(order)})
        for order in itertools.permutations(range(3))
    ]
    still = Permutation.identity(spec)
    return max(
        joint_objective(states, [still, *pair], THIRDS)
        for pair in itertools.product(orders, repeat=2)
    )


def test_most_small_problems_are_solved() -> None:
    table = {"w": ("h", None), "v": (None, "h")}
    spec = PermutationSpec.from_table(table, {"w": (3, 2), "v": (2, 3)})
    solved = 0
    for seed in range(10):
        states = [random_state(spec, 3 * seed + i) for i in range(3)]
        universe = Universe(spec, states, THIRDS, "auto")
        joint_anneal(universe, 0, SLOW, seed=0)
        best = best_of_all(spec, states)
        assert universe.objective <= best + 1e-9
        solved += universe.objective >= best - 1e-9
    assert solved >= 8


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.1, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_of_two_networks_one_is_annealed_to_the_other(
    seed: int, weights: tuple[float, float]
) -> None:
    """Whatever its own weight: the network itself is no part of what it is drawn to."""
    table, a, b = chain((6, 12, 10, 4), seed, F64)
    spec = PermutationSpec.from_table(table, a)
    families = families_of(spec)
    generator = torch.Generator().manual_seed(0)
    alone = Annealing(families, cost_cache(spec, a, b), SLOW, generator)
    universe = Universe(spec, [a, b], weights, "auto")
    joint_anneal(universe, 0, SLOW, seed=0)
    expected = Permutation.from_flat(spec, alone.run())
    assert universe.permutations[1] == expected


def test_the_seed_draws_the_order_of_the_visits() -> None:
    states = [chain((6, 12, 10, 4), seed, F64)[1] for seed in range(4)]
    table = chain((6, 12, 10, 4), 0)[0]
    spec = PermutationSpec.from_table(table, states[0])
    universe = Universe(spec, states, (0.25,) * 4, "auto")
    ends = set()
    for seed in range(6):
        joint_anneal(universe, 0, Schedule(2), seed)
        ends.add(universe.objective)
    assert len(ends) > 1


def test_groups_on_joint_axes_stay_where_they_are() -> None:
    spec = grouped_spec()
    states = [random_state(spec, seed) for seed in range(3)]
    universe = Universe(spec, states, THIRDS, "auto")
    joint_anneal(universe, 0, FAST, seed=0)
    assert all(p.is_identity for p in universe.permutations)


def test_one_unit() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (1, 2)})
    states = [random_state(spec, seed) for seed in range(2)]
    universe = Universe(spec, states, (0.5, 0.5), "auto")
    before = universe.objective
    joint_anneal(universe, 1, FAST, seed=0)
    assert all(p.is_identity for p in universe.permutations)
    assert universe.objective == before
