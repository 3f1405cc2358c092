"""Several networks at once: planted permutations, cycle consistency, monotone objectives."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from helpers.planted import chain, joint_objective, planted_networks
from helpers.specs import grouped_spec, nested_spec, random_state
from torch import Tensor

from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.matching import match_many
from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.many import match_many as match_many_module
from lightning_rebasin.matching.many.match_many import Method
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

METHODS: tuple[Method, ...] = ("merge_many", "cycle_consistent")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_permutations_are_recovered(
    method: Method, noise: float
) -> None:
    spec, states, permutations = planted_networks(4, noise)
    result = match_many(spec, states, method=method)
    assert result.permutations[0].is_identity
    for found, p in zip(result.permutations, permutations, strict=True):
        assert found == permutations[0].compose(p.inverse())


@pytest.mark.parametrize("method", METHODS)
def test_consistent_monotone_and_what_it_says(method: Method) -> None:
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
        joint_objective(states, result.permutations, share), rel=1e-5
    )
    identities = [Permutation.identity(spec)] * 4
    assert result.identity_objective == pytest.approx(
        joint_objective(states, identities, share), abs=1e-4
    )
    assert "4 networks" in repr(result)
    assert result.to_dict()["method"] == method


@pytest.mark.parametrize("make", [nested_spec, grouped_spec])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_spec(
    make: Callable[[], PermutationSpec], method: Method
) -> None:
    spec = make()
    states = [random_state(spec, seed) for seed in range(3)]
    result = match_many(spec, states, method=method)
    assert result.objective >= result.identity_objective
    assert result.pairwise(1, 2).compose(
        result.pairwise(2, 0)
    ) == result.pairwise(1, 0)


def test_states_may_be_loaded_one_at_a_time() -> None:
    spec, states, permutations = planted_networks(3)
    alive, most = 0, 0

    class Loaded(dict[str, Tensor]):
        def __init__(self, state: Mapping[str, Tensor]) -> None:
            nonlocal alive, most
            super().__init__(state)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    result = match_many(spec, [partial(Loaded, s) for s in states])
    assert result.permutations[1] == permutations[0].compose(
        permutations[1].inverse()
    )
    assert most <= 2


def test_small_networks_are_matched_on_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside other computing processes two threads take minutes; the caller's count comes back."""
    seen: list[int] = []

    def watched(*_: object) -> None:
        seen.append(torch.get_num_threads())

    for name in ("joint_anneal", "frank_wolfe"):
        monkeypatch.setattr(match_many_module, name, watched)
    monkeypatch.setattr(Universe, "gather", watched)
    spec, states, _ = planted_networks(2, 1.0)
    torch.set_num_threads(2)
    match_many(spec, states, method="cycle_consistent")
    assert len(seen) == 4
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_nothing_large_is_left_to_the_garbage_collector() -> None:
    spec, states, _ = planted_networks(3, 1.0)
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


def test_errors() -> None:
    spec, states, _ = planted_networks(2)
    with pytest.raises(ConfigurationError, match="at least two"):
        match_many(spec, states[:1])
    with pytest.raises(ConfigurationError, match="method"):
        match_many(spec, states, method="mean")  # type: ignore[arg-type]
    for weights in ([1.0], [1.0, -1.0], [1.0, float("nan")], [0.0, 1.0]):
        with pytest.raises(ConfigurationError, match="weights"):
            match_many(spec, states, weights=weights)
    with pytest.raises(StateDictError, match="network 1"):
        match_many(spec, [states[0], {}])
    broken = {n: t.clone() for n, t in states[1].items()}
    broken["0.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"network 1.*0\.weight"):
        match_many(spec, [states[0], broken])
