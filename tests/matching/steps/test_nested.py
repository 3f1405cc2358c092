"""Whole families of any kinds, against all elements tried one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.elements import drawn, inside
from helpers.signs import SignAction, known_signs
from torch import Tensor

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.steps.nested import best_elements
from lightning_rebasin.symmetry.actions.action import (
    action_of,
    registered_action,
)
from lightning_rebasin.symmetry.spec.values import Group

UNITS = Group("units", 3)
INNER = Group("inner", 2, UNITS)
SIGNS = Group("signs", 2, UNITS, "flip")


@pytest.fixture
def signs() -> Iterator[None]:
    with known_signs():
        yield


def random_cost(group: Group, seed: int) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal(
        (group.members, group.members)
    )
    return torch.from_numpy(numbers)


def orders(size: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(size)))


@pytest.mark.parametrize("seed", range(5))
def test_one_group_is_an_assignment(seed: int) -> None:
    group = Group("h", 4)
    cost = random_cost(group, seed)
    found = best_elements([group], {"h": cost})["h"].tolist()
    tried = {p: sum(float(cost[i, p[i]]) for i in range(4)) for p in orders(4)}
    assert tuple(found) == max(tried, key=lambda p: tried[p])


@pytest.mark.parametrize("seed", range(5))
def test_orders_inside_orders_are_chosen_jointly(seed: int) -> None:
    outer, inner = random_cost(UNITS, seed), random_cost(INNER, seed + 100)

    def value(units: tuple[int, ...], inside: list[tuple[int, ...]]) -> float:
        total = 0.0
        for i, old in enumerate(units):
            total += float(outer[i, old])
            for k, chosen in enumerate(inside[i]):
                total += float(inner[2 * i + k, 2 * old + chosen])
        return total

    found = best_elements([UNITS, INNER], {"units": outer, "inner": inner})
    units = tuple(found["units"].tolist())
    inside = [tuple(order) for order in found["inner"].tolist()]
    best = max(
        value(p, list(q))
        for p in orders(3)
        for q in itertools.product(orders(2), repeat=3)
    )
    assert value(units, inside) == pytest.approx(best)


@pytest.mark.usefixtures("signs")
@pytest.mark.parametrize("seed", range(5))
def test_signs_inside_units_are_chosen_jointly(seed: int) -> None:
    """Two signs in each unit; only the products of equal places count for them."""
    outer, inner = random_cost(UNITS, seed), random_cost(SIGNS, seed + 100)

    def value(units: tuple[int, ...], signs: list[tuple[int, ...]]) -> float:
        total = 0.0
        for i, old in enumerate(units):
            total += float(outer[i, old])
            for k, sign in enumerate(signs[i]):
                total += sign * float(inner[2 * i + k, 2 * old + k])
        return total

    found = best_elements([UNITS, SIGNS], {"units": outer, "signs": inner})
    assert found["signs"].shape == (3, 2)
    units = tuple(found["units"].tolist())
    signs = [tuple(map(int, row)) for row in found["signs"].tolist()]
    pairs = list(itertools.product((-1, 1), repeat=2))
    best = max(
        value(p, list(q))
        for p in orders(3)
        for q in itertools.product(pairs, repeat=3)
    )
    assert value(units, signs) == pytest.approx(best)


def test_groups_without_costs_gain_nothing_themselves() -> None:
    """The units have no cost of their own: the best orders inside them decide."""
    inner = torch.zeros(6, 6, dtype=torch.float64)
    # Unit 0 fits old unit 2 with its two places exchanged, unit 1 fits itself.
    inner[0, 5] = inner[1, 4] = inner[2, 2] = inner[3, 3] = 1.0
    found = best_elements([UNITS, INNER], {"inner": inner})
    assert found["units"].tolist() == [2, 1, 0]
    assert found["inner"][:2].tolist() == [[1, 0], [0, 1]]


@pytest.mark.usefixtures("signs")
def test_one_unit() -> None:
    one = Group("one", 1)
    assert best_elements([one], {})["one"].tolist() == [0]
    sign = Group("flip", 1, one, "flip")
    cost = torch.tensor([[-2.0]], dtype=torch.float64)
    found = best_elements([one, sign], {"flip": cost})
    assert found["flip"].tolist() == [[-1]]


def test_a_kind_without_a_step_is_named() -> None:
    group = Group("r", 2, kind="flip")
    message = "group 'r' is of the kind 'flip', which the matching cannot"
    with (
        registered_action(SignAction()),
        pytest.raises(ConfigurationError, match=message),
    ):
        best_elements([group], {})


def test_decided_elements_that_are_matrices_come_back_as_matrices() -> None:
    """A rotation in each of three units stays where it was put, whichever old unit comes there."""
    rotations = inside("orthogonal", 2, 3)
    units = rotations.parent
    assert units is not None
    (fixed,) = drawn(action_of(rotations), rotations, 1, 0)
    cost = random_cost(units, 0)
    found = best_elements(
        [units, rotations],
        {units.id: cost, rotations.id: random_cost(rotations, 1)},
        fixed={rotations.id: fixed},
    )
    assert torch.equal(found[rotations.id], fixed)
