"""Several networks at once: planted permutations, cycle consistency, monotone objectives."""

import gc
import itertools

import pytest
import torch
from helpers.planted import chain
from helpers.specs import grouped_spec, nested_spec, random_state

from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.matching import match_many
from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.many.frank_wolfe import _FrankWolfe, _mix
from lightning_rebasin.matching.many.soft import SoftNetworks
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

METHODS = ("merge_many", "cycle_consistent")


def planted(count, noise=0.0, seed=0):
    table, base, _ = chain((10, 30, 20, 5), seed)
    spec = PermutationSpec.from_table(table, base)
    generator = torch.Generator().manual_seed(seed)
    permutations = [Permutation.random(spec, generator) for _ in range(count)]
    states = [
        {
            n: t + noise * t.std() * torch.randn(t.shape, generator=generator)
            for n, t in p.apply(base).items()
        }
        for p in permutations
    ]
    return spec, states, permutations


def direct_objective(spec, states, permutations, weights):
    moved = [p.apply(s) for p, s in zip(permutations, states, strict=True)]
    return sum(
        weights[i]
        * weights[j]
        * float((moved[i][n].double() * moved[j][n].double()).sum())
        for i, j in itertools.combinations(range(len(states)), 2)
        for n in states[0]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_permutations_are_recovered(method, noise):
    spec, states, permutations = planted(4, noise)
    result = match_many(spec, states, method=method)
    assert result.permutations[0].is_identity
    for found, p in zip(result.permutations, permutations, strict=True):
        assert found == permutations[0].compose(p.inverse())


@pytest.mark.parametrize("method", METHODS)
def test_consistent_monotone_and_what_it_says(method):
    table, *_ = chain((10, 30, 20, 5), 0)
    states = [chain((10, 30, 20, 5), seed)[1] for seed in range(4)]
    spec = PermutationSpec.from_table(table, states[0])
    weights = (1.0, 2.0, 3.0, 4.0)
    result = match_many(spec, states, method=method, weights=weights)
    for a, b, c in itertools.product(range(4), repeat=3):
        assert result.pairwise(a, b).compose(
            result.pairwise(b, c)
        ) == result.pairwise(a, c)
    assert all(
        y >= x - 1e-6 * abs(x)
        for x, y in itertools.pairwise(result.objectives)
    )
    assert result.objective >= result.identity_objective
    share = [w / 10 for w in weights]
    assert result.weights == pytest.approx(share)
    # The running sum is float32, so its objective carries rounding errors of that size.
    assert result.objective == pytest.approx(
        direct_objective(spec, states, result.permutations, share), rel=1e-5
    )
    identities = [Permutation.identity(spec)] * 4
    assert result.identity_objective == pytest.approx(
        direct_objective(spec, states, identities, share), abs=1e-4
    )
    assert "4 networks" in repr(result)
    assert result.to_dict()["method"] == method


@pytest.mark.parametrize("make", [nested_spec, grouped_spec])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_spec(make, method):
    spec = make()
    states = [random_state(spec, seed) for seed in range(3)]
    result = match_many(spec, states, method=method)
    assert result.objective >= result.identity_objective
    assert result.pairwise(1, 2).compose(
        result.pairwise(2, 0)
    ) == result.pairwise(1, 0)


def test_soft_networks_are_the_permuted_ones_at_the_vertices():
    spec, states, permutations = planted(2)
    universe = Universe(spec, states, (0.5, 0.5), "auto")
    networks = SoftNetworks(universe)
    hard = {g: torch.eye(len(p))[p] for g, p in permutations[1].orders.items()}
    mixed, moved = (
        networks.applied(states[0], hard),
        permutations[1].apply(states[0]),
    )
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, moved[name])


def test_line_search_is_exact():
    spec, states, _ = planted(3, 1.0)
    universe = Universe(spec, states, (1 / 3,) * 3, "auto")
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


def test_states_may_be_loaded_one_at_a_time():
    spec, states, permutations = planted(3)
    alive, most = 0, 0

    class Loaded(dict):
        def __init__(self, state):
            nonlocal alive, most
            super().__init__(state)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    result = match_many(spec, [lambda s=s: Loaded(s) for s in states])
    assert result.permutations[1] == permutations[0].compose(
        permutations[1].inverse()
    )
    assert most <= 2


def test_nothing_large_is_left_to_the_garbage_collector():
    spec, states, _ = planted(3, 1.0)
    gc.collect()
    gc.disable()  # it runs seldom where there are few objects, however large
    try:
        match_many(spec, states)
        assert not [
            item
            for item in gc.get_objects()
            if type(item) in {Layouts, CostCache}
        ]
    finally:
        gc.enable()


def test_errors():
    spec, states, _ = planted(2)
    with pytest.raises(ConfigurationError, match="at least two"):
        match_many(spec, states[:1])
    with pytest.raises(ConfigurationError, match="method"):
        match_many(spec, states, method="mean")
    for weights in ([1.0], [1.0, -1.0], [1.0, float("nan")], [0.0, 1.0]):
        with pytest.raises(ConfigurationError, match="weights"):
            match_many(spec, states, weights=weights)
    with pytest.raises(StateDictError, match="network 1"):
        match_many(spec, [states[0], {}])
    broken = {n: t.clone() for n, t in states[1].items()}
    broken["0.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"network 1.*0\.weight"):
        match_many(spec, [states[0], broken])
