"""Coordinate descent over groups of any kind, against all their elements and the engine for permutations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.costs import State, random_pair
from helpers.planted import chain
from helpers.signs import known_signs
from helpers.specs import grouped_spec, nested_spec, random_state

from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.matching import MatchResult, match_weights
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search.general import GeneralMatcher
from lightning_rebasin.matching.search.generally import match_generally
from lightning_rebasin.matching.search.policy import orders
from lightning_rebasin.symmetry import Component, Group, Transform
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@pytest.fixture
def signs() -> Iterator[None]:
    with known_signs():
        yield


def matched(
    spec: PermutationSpec,
    a: State,
    b: State,
    init: Any = None,
    restarts: int | None = None,
    max_sweeps: int = 100,
    seed: int = 0,
) -> MatchResult:
    """Through the general engine, whatever the kinds."""
    roots = sum(group.parent is None for group in spec.groups.values())

    def sweeps(generator: torch.Generator) -> Iterator[Sequence[int]]:
        return orders("random", roots, max_sweeps, generator)

    return match_generally(
        spec,
        a,
        b,
        init=init,
        restarts=restarts,
        sweeps=sweeps,
        seed=seed,
        solver="auto",
        progress=False,
        order=lambda *_: Transform.identity(spec),
    )


def layer(width: int = 3) -> tuple[PermutationSpec, State, State]:
    """One hidden layer: its costs are exact, so one visit finds the best."""
    shapes = {"w": (width, 2), "v": (2, width)}
    table = {"w": ("h", None), "v": (None, "h")}
    return PermutationSpec.from_table(table, shapes), *random_pair(shapes)


def with_signs(spec: PermutationSpec) -> PermutationSpec:
    """A sign inside every unit of ``h``."""
    inside = Group("h/sign", 1, spec.groups["h"], "flip")
    maps = {
        name: replace(
            axis_map,
            components=tuple(
                Component("h/sign", c.sites, c.index)
                for c in axis_map.components
            ),
        )
        for name, axis_map in spec.maps.items()
    }
    groups = {**spec.groups, "h/sign": inside}
    return replace(spec, groups=groups, maps=maps)


@pytest.mark.parametrize("seed", range(5))
def test_one_layer_ends_in_the_best_of_all_orders(seed: int) -> None:
    spec, *_ = layer(4)
    a, b = random_state(spec, seed), random_state(spec, seed + 50)
    best = max(
        objective(spec, a, b, Permutation(spec, {"h": torch.tensor(order)}))
        for order in itertools.permutations(range(4))
    )
    assert matched(spec, a, b).objective == pytest.approx(best)


@pytest.mark.usefixtures("signs")
@pytest.mark.parametrize("seed", range(5))
def test_orders_with_signs_inside_end_in_the_best_of_all(seed: int) -> None:
    spec = with_signs(layer(3)[0])
    a, b = random_state(spec, seed), random_state(spec, seed + 50)
    matcher = GeneralMatcher(spec, a, b)
    values = []
    for order in itertools.permutations(range(3)):
        for sign in itertools.product((-1.0, 1.0), repeat=3):
            elements = {
                "h": torch.tensor(order),
                "h/sign": torch.tensor(sign)[:, None],
            }
            transform = Transform.of(spec, elements)
            values.append(matcher.objective(transform))
    result = matched(spec, a, b)
    assert result.objective == pytest.approx(max(values))
    assert matcher.objective(result.transform) == pytest.approx(max(values))


@pytest.mark.usefixtures("signs")
def test_the_objective_with_signs_by_hand() -> None:
    spec = with_signs(layer(2)[0])
    a = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "v": torch.zeros(2, 2)}
    b = {"w": torch.tensor([[5.0, 6.0], [7.0, 8.0]]), "v": torch.ones(2, 2)}
    sign = torch.tensor([[1.0], [-1.0]])
    turned = Transform.of(spec, {"h": torch.tensor([1, 0]), "h/sign": sign})
    # (1·7 + 2·8) − (3·5 + 4·6)
    assert GeneralMatcher(spec, a, b).objective(turned) == 23.0 - 39.0


@pytest.mark.parametrize("make", [nested_spec, grouped_spec])
def test_the_objective_is_that_of_permutations(
    make: Callable[[], PermutationSpec],
) -> None:
    spec = make()
    a, b = random_state(spec, 0), random_state(spec, 1)
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    found = GeneralMatcher(spec, a, b).objective(p)
    assert found == pytest.approx(objective(spec, a, b, p))


@pytest.mark.parametrize("seed", range(3))
def test_same_descent_as_the_engine_for_permutations(seed: int) -> None:
    table, a, b = chain((6, 20, 15, 4), seed, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    fast = match_weights(spec, a, b, init="identity", seed=seed)
    general = matched(spec, a, b, "identity", seed=seed)
    assert general.transform == fast.permutation
    assert general.descents[0].objectives == pytest.approx(
        fast.descents[0].objectives
    )
    assert general.norms == pytest.approx(fast.norms)
    assert general.identity_objective == pytest.approx(fast.identity_objective)


@pytest.mark.parametrize("make", [nested_spec, grouped_spec])
def test_no_sweep_loses_and_the_end_is_never_below_the_identity(
    make: Callable[[], PermutationSpec],
) -> None:
    """Also where two axes of one weight move together, and a step is a linearisation."""
    spec = make()
    for seed in range(5):
        a, b = random_state(spec, seed), random_state(spec, seed + 50)
        result = matched(spec, a, b, seed=seed)
        assert result.objective >= result.identity_objective
        assert result.objective == pytest.approx(
            objective(spec, a, b, result.permutation)
        )
        for descent in result.descents:
            assert descent.converged
            assert list(descent.objectives) == sorted(descent.objectives)


def test_doing_nothing_is_kept_where_a_descent_ends_lower() -> None:
    table, a, _ = chain((6, 20, 15, 4), 0, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    result = matched(spec, a, a, "random", max_sweeps=1)
    assert result.descents[0].objective < result.identity_objective
    assert result.objective == result.identity_objective
    assert result.transform.is_identity


def test_descents_that_were_asked_for() -> None:
    spec, a, b = layer()

    def starts(init: Any, restarts: int | None = None) -> list[str]:
        result = matched(spec, a, b, init, restarts)
        return [descent.start for descent in result.descents]

    # one step finds the best of one layer, so other starts are of no use
    assert starts(None) == ["identity"]
    assert starts(None, 3) == ["identity", "random", "random"]
    assert starts(None, 1) == ["identity"]
    assert starts("random") == ["random"]
    assert starts("identity", 2) == ["identity"] * 2
    assert starts(Permutation.identity(spec)) == ["given"]


def test_several_layers_are_descended_from_several_starts() -> None:
    table, a, b = chain((6, 20, 15, 4), 0, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    names = [descent.start for descent in matched(spec, a, b).descents]
    assert names == ["best order", "identity", "random"]


def test_a_descent_starts_where_it_is_told_to() -> None:
    spec, a, b = layer()
    start = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
    descent = matched(spec, a, b, start).descents[0]
    first = objective(spec, a, b, start)
    assert descent.objectives[0] == pytest.approx(first)


def test_sweeps_end_where_they_are_told_to() -> None:
    table, a, b = chain((6, 20, 15, 4), 0, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    descent = matched(spec, a, b, "identity", max_sweeps=1).descents[0]
    assert descent.sweeps == 1
    assert not descent.converged


def test_same_seed_same_result_and_models_untouched() -> None:
    table, a, b = chain((6, 20, 15, 4), 0)
    spec = PermutationSpec.from_table(table, a)
    kept = [{n: t.clone() for n, t in s.items()} for s in (a, b)]
    first, second, other = (
        matched(spec, a, b, "random", seed=seed) for seed in (1, 1, 2)
    )
    assert first.transform == second.transform != other.transform
    for state, before in zip((a, b), kept, strict=True):
        assert all(torch.equal(state[n], before[n]) for n in state)


def test_one_unit_and_nothing_to_change() -> None:
    for table in ({"w": ("h", None)}, {}):
        spec = PermutationSpec.from_table(table, {"w": (1, 2)})
        a = {"w": torch.tensor([[1.0, 2.0]])}
        b = {"w": torch.tensor([[3.0, 4.0]])}
        result = matched(spec, a, b)
        assert result.objective == result.identity_objective == 11.0
        assert result.transform.is_identity


def test_models_that_do_not_fit_are_named() -> None:
    spec, a, b = layer()
    with pytest.raises(StateDictError, match=r"reference.*'v'"):
        GeneralMatcher(spec, {"w": a["w"]}, b)
    with pytest.raises(StateDictError, match=r"source.*extra"):
        GeneralMatcher(spec, a, {**b, "extra": torch.zeros(1)})
    broken = {**b, "v": b["v"] * float("nan")}
    with pytest.raises(NonFiniteError, match=r"source.*'v'"):
        GeneralMatcher(spec, a, broken)


@pytest.mark.parametrize("init", ["best", 3])
def test_an_unknown_start_is_refused(init: Any) -> None:
    spec, a, b = layer()
    with pytest.raises(
        ConfigurationError,
        match=f"or a Transform for this spec, not {init!r}",
    ):
        matched(spec, a, b, init)


def test_a_start_of_another_spec_is_refused() -> None:
    spec, a, b = layer()
    with pytest.raises(
        ConfigurationError,
        match="the initial transform belongs to another spec",
    ):
        matched(spec, a, b, Permutation.identity(layer(4)[0]))
