"""Annealed starts: the schedule in closed form, soft orders that are doubly stochastic, and where they end."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.costs import F64, State, cost_cache, random_pair
from helpers.planted import chain
from helpers.specs import nested_spec, random_state
from torch import Tensor

from lightning_rebasin.matching.costs.cache import TermTable
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search.anneal import (
    FAST,
    SLOW,
    Annealing,
    Schedule,
    SoftOrders,
)
from lightning_rebasin.matching.steps.permutation import Family, families_of
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(size: int) -> Family:
    group = Group("h", size)
    return Family(group, (group,), coupled=False)


def soft_orders(family: Family, noise: float = 0.0) -> SoftOrders:
    return SoftOrders([family], F64, CPU, generator(), noise)


def annealed(
    spec: PermutationSpec, a: State, b: State, schedule: Schedule
) -> Permutation:
    families = families_of(spec, TermTable.of(spec).coupled)
    costs = cost_cache(spec, a, b)
    found = Annealing(families, costs, schedule, generator()).run()
    return Permutation.from_flat(spec, found)


# --- the schedule ----------------------------------------------------------


def test_the_temperature_falls_by_the_same_factor_each_sweep() -> None:
    schedule = Schedule(5, hot=2.0, cold=0.125)
    found = [schedule.temperature(sweep, 5) for sweep in range(5)]
    assert found == pytest.approx([2.0, 1.0, 0.5, 0.25, 0.125])
    # However many sweeps there are, the last one is as cold.
    assert schedule.temperature(2, 3) == pytest.approx(0.125)
    assert schedule.temperature(0, 1) == 2.0


@pytest.mark.parametrize(
    ("work", "sweeps"),
    [(0.0, 30), (1e8, 30), (5e8, 20), (1e9, 10), (1e15, 8)],
)
def test_large_networks_have_fewer_sweeps(work: float, sweeps: int) -> None:
    """1e10 operations in all, but at least eight sweeps."""
    assert SLOW.affordable(work) == sweeps
    assert FAST.affordable(work) == min(sweeps, 10)


def test_no_more_sweeps_than_were_asked_for() -> None:
    assert Schedule(3).affordable(1e15) == 3


# --- soft orders -----------------------------------------------------------


def test_nothing_is_known_at_first() -> None:
    soft = soft_orders(plain(4)).soft["h"]
    assert torch.equal(soft, torch.full((4, 4), 0.25, dtype=F64))


def test_noise_is_drawn_from_the_generator() -> None:
    first, second = (soft_orders(plain(40), 0.3).soft["h"] for _ in "ab")
    assert torch.equal(first, second)
    # Relative to the uniform matrix the disturbance has the size of the noise.
    relative = 40 * first - 1
    assert float(relative.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(relative.mean())) < 0.05


def random_cost(members: int, seed: int = 0) -> Tensor:
    return torch.randn(members, members, generator=generator(seed), dtype=F64)


def check_doubly_stochastic(soft: Tensor) -> None:
    ones = torch.ones(len(soft), dtype=F64)
    assert bool((soft >= 0).all())
    torch.testing.assert_close(soft.sum(0), ones, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(soft.sum(1), ones, rtol=1e-6, atol=1e-6)


def test_cooled_orders_are_the_sinkhorn_projection() -> None:
    """Doubly stochastic, and ``exp(C / T)`` up to a factor for each row and each column."""
    family, cost = plain(5), random_cost(5)
    orders = soft_orders(family)
    for _ in range(30):  # the potentials are kept, so repeated visits settle
        orders.cool(family, {"h": cost}, 0.7)
    soft = orders.soft["h"]
    check_doubly_stochastic(soft)
    rest = soft.log() - cost / (0.7 * cost.std())
    rest = rest - rest.mean(0, keepdim=True)
    rest = rest - rest.mean(1, keepdim=True)
    torch.testing.assert_close(rest, torch.zeros(5, 5, dtype=F64))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_temperatures_are_in_units_of_the_costs(scale: float) -> None:
    family, cost = plain(5), random_cost(5)
    orders, scaled = soft_orders(family), soft_orders(family)
    orders.cool(family, {"h": cost}, 0.7)
    scaled.cool(family, {"h": scale * cost}, 0.7)
    torch.testing.assert_close(scaled.soft["h"], orders.soft["h"])


@pytest.mark.parametrize("seed", range(5))
def test_cold_orders_are_the_best_permutation(seed: int) -> None:
    family, cost = plain(4), random_cost(4, seed)
    orders = soft_orders(family)
    for sweep in range(60):
        orders.cool(family, {"h": cost}, 0.9**sweep)
    best = max(
        itertools.permutations(range(4)),
        key=lambda p: sum(float(cost[i, p[i]]) for i in range(4)),
    )
    expected = torch.eye(4, dtype=F64)[list(best)]
    torch.testing.assert_close(
        orders.soft["h"], expected, rtol=0.01, atol=0.01
    )


def test_equal_costs_say_nothing() -> None:
    family = plain(4)
    orders = soft_orders(family, 0.3)
    orders.cool(family, {"h": torch.ones(4, 4, dtype=F64)}, 0.5)
    assert torch.equal(orders.soft["h"], torch.full((4, 4), 0.25, dtype=F64))


def test_one_unit_is_where_it_is() -> None:
    family = plain(1)
    orders = soft_orders(family)
    orders.cool(family, {"h": torch.tensor([[3.0]], dtype=F64)}, 0.5)
    assert orders.soft["h"].tolist() == [[1.0]]


def test_units_inside_heads_are_as_soft_as_their_heads() -> None:
    heads = Group("heads", 3)
    inner = Group("inner", 2, heads)
    family = Family(heads, (heads, inner), coupled=False)
    costs = {"heads": random_cost(3), "inner": random_cost(6)}
    orders = soft_orders(family)
    for _ in range(30):
        orders.cool(family, costs, 0.7)
    check_doubly_stochastic(orders.soft["heads"])
    check_doubly_stochastic(orders.soft["inner"])
    # All units of new head h together come from old head k as far as h does.
    blocks = orders.soft["inner"].reshape(3, 2, 3, 2)
    torch.testing.assert_close(
        blocks.sum((1, 3)) / 2, orders.soft["heads"], rtol=1e-6, atol=1e-6
    )


def test_heads_are_told_apart_by_what_is_inside_them() -> None:
    heads = Group("heads", 2)
    inner = Group("inner", 2, heads)
    family = Family(heads, (heads, inner), coupled=False)
    # Exchanged heads, exchanged units inside: nothing else fits at all.
    order = [3, 2, 1, 0]
    costs = {
        "heads": torch.zeros(2, 2, dtype=F64),
        "inner": torch.eye(4, dtype=F64)[order],
    }
    orders = soft_orders(family)
    for sweep in range(60):
        orders.cool(family, costs, 0.9**sweep)
    turned = torch.eye(2, dtype=F64).flip(0)
    torch.testing.assert_close(
        orders.soft["heads"], turned, rtol=0.01, atol=0.01
    )
    torch.testing.assert_close(
        orders.soft["inner"], costs["inner"], rtol=0.01, atol=0.01
    )


# --- the whole annealing ---------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_single_group_ends_in_its_best_order(seed: int) -> None:
    """Without neighbours the costs are exact from the first sweep on."""
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (4, 3)})
    a, b = random_pair({"w": (4, 3)}, seed=seed)
    found = annealed(spec, a, b, FAST)
    best = max(
        objective(spec, a, b, Permutation(spec, {"h": torch.tensor(order)}))
        for order in itertools.permutations(range(4))
    )
    assert objective(spec, a, b, found) == pytest.approx(best)


@pytest.mark.parametrize("schedule", [SLOW, FAST, Schedule(1)])
def test_a_planted_permutation_is_found(schedule: Schedule) -> None:
    """Even in one sweep the first layer tells its units apart; the second one does not."""
    table, b, _ = chain((10, 30, 20, 5), 0, F64)
    spec = PermutationSpec.from_table(table, b)
    p = Permutation.random(spec, generator(1))
    found = annealed(spec, p.apply(b), b, schedule)
    assert torch.equal(found["h0"], p["h0"])
    if schedule.sweeps > 1:
        assert found == p


def test_nested_groups_are_found_too() -> None:
    spec = nested_spec()
    b = random_state(spec)
    p = Permutation.random(spec, generator(1))
    assert annealed(spec, p.apply(b), b, SLOW) == p


def test_one_unit_and_a_spec_without_groups() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (1, 3)})
    a, b = random_pair({"w": (1, 3)})
    assert annealed(spec, a, b, FAST)["h"].tolist() == [0]
    empty = PermutationSpec.from_table({}, {"w": (1, 3)})
    assert annealed(empty, a, b, FAST).is_identity


def test_where_the_units_stand_makes_no_difference() -> None:
    """Another order of the source's units is undone, and nothing else changes: the start is not in any order."""
    table, a, b = chain((6, 12, 10, 4), 0, F64)
    spec = PermutationSpec.from_table(table, a)
    q = Permutation.random(spec, generator(5))
    found = annealed(spec, a, b, SLOW)
    again = annealed(spec, a, q.apply(b), SLOW)
    assert again.compose(q) == found
