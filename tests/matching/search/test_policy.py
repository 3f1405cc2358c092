"""Which descents are run, in which order they visit the groups, and which options are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.planted import chain

from lightning_rebasin.errors import ConfigurationError, PermutationError
from lightning_rebasin.matching import MatchState, match_weights
from lightning_rebasin.matching.search.anneal import FAST, SLOW
from lightning_rebasin.matching.search.policy import (
    NOISE,
    VisitOrder,
    check_options,
    orders,
    plan,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def small_spec(members: int = 3) -> PermutationSpec:
    return PermutationSpec.from_table({"w": ("h", None)}, {"w": (members, 1)})


def state_of(spec: PermutationSpec) -> MatchState:
    flats = {"h": torch.arange(spec.groups["h"].members)}
    return MatchState(spec, flats, {}, torch.Generator().get_state(), 0)


def test_the_default_plan() -> None:
    starts = plan(None, None, None)
    assert [s.name for s in starts] == [
        "identity",
        "annealed slowly",
        "annealed fast",
    ]
    assert [s.kind for s in starts] == ["identity", "annealed", "annealed"]
    assert {s.order for s in starts} == {"forward"}
    assert [s.schedule for s in starts[1:]] == [SLOW, FAST]


@pytest.mark.parametrize("restarts", [1, 2, 3])
def test_fewer_descents_are_the_first_of_the_plan(restarts: int) -> None:
    assert plan(None, restarts, None) == plan(None, None, None)[:restarts]


def test_further_descents_are_annealed_and_all_different() -> None:
    starts = plan(None, 23, None)
    assert len(starts) == 23
    assert starts[:3] == plan(None, None, None)
    variants = starts[3:]
    assert {s.kind for s in variants} == {"annealed"}
    assert {s.order for s in variants} == {"random"}
    assert {s.schedule.noise for s in variants} == {NOISE}
    # Four first temperatures times five lengths.
    assert len({(s.schedule.hot, s.schedule.sweeps) for s in variants}) == 20
    assert len({s.name for s in starts}) == 23
    # Then the schedules come again; the noise still makes a difference.
    again = plan(None, 24, None)[-1]
    assert again.schedule == variants[0].schedule


def test_an_order_that_was_asked_for_holds_for_all_descents() -> None:
    given = Permutation.identity(small_spec())
    for init in (None, "identity", given):
        starts = plan(init, 5, "backward")
        assert [s.order for s in starts] == ["backward"] * 5


def test_descents_from_what_was_given() -> None:
    assert [s.kind for s in plan("random", None, None)] == ["random"]
    assert [s.kind for s in plan("identity", 2, None)] == ["identity"] * 2
    spec = small_spec()
    for init in (Permutation.identity(spec), state_of(spec)):
        assert [s.kind for s in plan(init, 2, None)] == ["given"] * 2


def test_only_the_first_descent_from_a_permutation_goes_forward() -> None:
    given = Permutation.identity(small_spec())
    starts = plan(given, 3, None)
    assert [s.order for s in starts] == ["forward", "random", "random"]
    assert starts[0].name == "given, forward order 0"
    # A state goes on as it was stopped, in random order.
    assert plan(state_of(small_spec()), 1, None)[0].order == "random"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("forward", [[0, 1, 2], [0, 1, 2], [0, 1, 2]]),
        ("backward", [[2, 1, 0], [2, 1, 0], [2, 1, 0]]),
        ("alternating", [[0, 1, 2], [2, 1, 0], [0, 1, 2]]),
    ],
)
def test_orders_of_visits(
    order: VisitOrder, expected: list[list[int]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [list(visits) for visits in orders(order, 3, 3, generator)]
    assert found == expected


def test_random_orders_visit_all_and_follow_the_generator() -> None:
    first, second, other = (
        [
            list(visits)
            for visits in orders(
                "random", 6, 8, torch.Generator().manual_seed(seed)
            )
        ]
        for seed in (0, 0, 1)
    )
    assert first == second != other
    assert all(sorted(visits) == list(range(6)) for visits in first)
    assert len({tuple(visits) for visits in first}) > 1


def test_nothing_to_visit() -> None:
    generator = torch.Generator()
    assert [list(v) for v in orders("random", 0, 2, generator)] == [[], []]
    assert not list(orders("forward", 3, 0, generator))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"init": "best"},
            "init must be None, 'identity', 'random' or a Permutation, not 'best'",
        ),
        ({"init": 3}, "not 3"),
        ({"restarts": 0}, "restarts must be at least 1, not 0"),
        ({"max_sweeps": 0}, "max_sweeps must be at least 1, not 0"),
        (
            {"order": "sideways"},
            "order must be one of random, forward, backward, alternating, not 'sideways'",
        ),
    ],
)
def test_options_that_cannot_work(
    option: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {
        "init": None,
        "restarts": None,
        "max_sweeps": 1,
        "order": None,
    }
    check_options(small_spec(), **options)
    with pytest.raises(ConfigurationError) as caught:
        check_options(small_spec(), **{**options, **option})
    assert str(caught.value).endswith(message)


def test_starts_of_an_equal_spec_and_of_another_one() -> None:
    spec, equal, other = small_spec(), small_spec(), small_spec(4)
    for init in (Permutation.identity(equal), state_of(equal)):
        check_options(spec, init, 1, 1, None)
    for init in (Permutation.identity(other), state_of(other)):
        with pytest.raises(PermutationError, match="belongs to another spec"):
            check_options(spec, init, 1, 1, None)


def test_init_of_another_spec() -> None:
    table, a, b = chain((4, 5, 3), 0)
    other = Permutation.identity(small_spec())
    with pytest.raises(PermutationError):
        match_weights(PermutationSpec.from_table(table, a), a, b, init=other)
