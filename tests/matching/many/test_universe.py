"""The networks of a joint matching, and the one sum that all of it needs."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from helpers.costs import State
from helpers.planted import joint_objective, planted_networks
from helpers.specs import grouped_spec, nested_spec, random_state

from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

WEIGHTS = (0.5, 0.3, 0.2)


def small() -> tuple[PermutationSpec, list[State]]:
    """Three networks of one hidden layer of three units."""
    table = {"w": ("h", None), "v": (None, "h")}
    spec = PermutationSpec.from_table(table, {"w": (3, 2), "v": (2, 3)})
    return spec, [random_state(spec, seed) for seed in range(3)]


def all_permutations(spec: PermutationSpec) -> list[Permutation]:
    orders = itertools.permutations(range(3))
    return [Permutation(spec, {"h": torch.tensor(order)}) for order in orders]


def test_the_objective_is_that_of_all_pairs() -> None:
    for spec in (nested_spec(), grouped_spec()):
        states = [random_state(spec, seed) for seed in range(3)]
        universe = Universe(spec, states, WEIGHTS, "auto")
        still = [Permutation.identity(spec)] * 3
        generator = torch.Generator().manual_seed(0)
        moved = [Permutation.random(spec, generator) for _ in states]
        for permutations in (still, moved):
            universe.move(permutations)
            expected = joint_objective(states, permutations, WEIGHTS)
            assert universe.objective == pytest.approx(expected)
            assert universe.permutations == permutations


def test_the_sum_is_weighted_and_permuted() -> None:
    spec, states = small()
    universe = Universe(spec, states, WEIGHTS, "auto")
    turn = Permutation(spec, {"h": torch.tensor([2, 1, 0])})
    universe.move([Permutation.identity(spec), turn, turn])
    a, b, c = (state["w"] for state in states)
    expected = 0.5 * a + 0.3 * b.flip(0) + 0.2 * c.flip(0)
    torch.testing.assert_close(universe.sum["w"], expected)


def test_vectors_say_nothing_about_likeness() -> None:
    shapes = {"w": (3, 2), "gain": (3,)}
    table = {"w": ("h", None), "gain": ("h",)}
    spec = PermutationSpec.from_table(table, shapes)
    states = [random_state(spec, seed) for seed in range(3)]
    universe = Universe(spec, states, WEIGHTS, "auto")
    permutations = all_permutations(spec)[1:4]
    matrices = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 2)})
    alone = [{"w": state["w"]} for state in states]
    orders = [Permutation(matrices, p.orders) for p in permutations]
    expected = joint_objective(alone, orders, WEIGHTS)
    assert universe.alike(permutations) == pytest.approx(expected)
    # It only asks: the universe stands where it stood.
    assert all(p.is_identity for p in universe.permutations)


def test_equal_networks_reach_the_bound_and_others_do_not() -> None:
    spec, states = small()
    same = Universe(spec, [states[0]] * 3, WEIGHTS, "auto")
    assert same.objective == pytest.approx(same.bound)
    # Half of (1² − Σ w²), times the squared norm.
    squares = sum(float((t**2).sum()) for t in states[0].values())
    assert same.bound == pytest.approx(0.5 * (1 - 0.38) * squares)
    other = Universe(spec, states, WEIGHTS, "auto")
    for permutations in itertools.product(all_permutations(spec), repeat=3):
        other.move(permutations)
        assert other.objective < other.bound


@pytest.mark.parametrize("network", range(3))
def test_a_visit_takes_the_best_of_all_orders(network: int) -> None:
    """With one hidden layer a step is exact: all six orders are tried, the other networks held."""
    spec, states = small()
    universe = Universe(spec, states, WEIGHTS, "auto")
    values = []
    for p in all_permutations(spec):
        permutations = [Permutation.identity(spec)] * 3
        permutations[network] = p
        values.append(joint_objective(states, permutations, WEIGHTS))
    assert universe.sweep([network], seed=0) == pytest.approx(max(values))


def test_sweeps_never_lose_and_say_what_they_reach() -> None:
    spec, states, _ = planted_networks(3, 1.0)
    universe = Universe(spec, states, WEIGHTS, "auto")
    value = universe.objective
    for seed in range(4):
        after = universe.sweep([2, 0, 1], seed)
        assert after >= value - 1e-6 * abs(value)
        assert after == pytest.approx(
            joint_objective(states, universe.permutations, WEIGHTS), rel=1e-5
        )
        value = after
    assert value > joint_objective(
        states, [Permutation.identity(spec)] * 3, WEIGHTS
    )


def test_the_first_pass_stays_in_the_frame_of_the_first() -> None:
    spec, states, planted = planted_networks(3)
    universe = Universe(spec, states, WEIGHTS, "auto")
    universe.gather(seed=0)
    assert universe.permutations[0].is_identity
    for found, p in zip(universe.permutations, planted, strict=True):
        assert found == planted[0].compose(p.inverse())
    assert universe.objective == pytest.approx(universe.bound, rel=1e-5)


def test_networks_may_be_functions_and_of_half_precision() -> None:
    spec, states = small()
    half = [{n: t.half() for n, t in s.items()} for s in states]
    given = Universe(spec, half, WEIGHTS, "auto")
    loaders = [partial(half.__getitem__, i) for i in range(3)]
    loaded = Universe(spec, loaders, WEIGHTS, "auto")
    assert loaded.load(1) is half[1]
    assert loaded.objective == given.objective
    assert given.sum["w"].dtype is torch.float32
    exact = joint_objective(half, given.permutations, WEIGHTS)
    assert given.objective == pytest.approx(exact, rel=1e-5)


def test_what_cannot_be_averaged_is_that_of_the_first() -> None:
    table = {"w": ("h",)}
    shapes = {"w": (2,), "bn.num_batches_tracked": ()}
    spec = PermutationSpec.from_table(table, shapes)
    states = [
        {
            "w": torch.tensor([1.0, 2.0]),
            "bn.num_batches_tracked": torch.tensor(steps),
        }
        for steps in (7, 100)
    ]
    universe = Universe(spec, states, (0.5, 0.5), "auto")
    assert universe.sum["bn.num_batches_tracked"].item() == 7
    assert universe.sum["w"].tolist() == [1.0, 2.0]


def test_models_and_solvers_that_do_not_fit_are_named() -> None:
    spec, states = small()
    with pytest.raises(ConfigurationError, match="solver must be one of"):
        Universe(spec, states, WEIGHTS, "best")
    with pytest.raises(StateDictError, match="network 1"):
        Universe(spec, [states[0], {}, states[2]], WEIGHTS, "auto")
    broken = {**states[2], "v": states[2]["v"] * float("inf")}
    with pytest.raises(NonFiniteError, match="network 2"):
        Universe(spec, [*states[:2], broken], WEIGHTS, "auto")
