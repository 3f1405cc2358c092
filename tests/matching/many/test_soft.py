"""Networks under doubly stochastic matrices, against dense products."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.costs import CPU, F64, State, random_soft
from helpers.planted import joint_objective, planted_networks
from helpers.specs import grouped_spec, nested_spec, random_state
from torch import Tensor

from lightning_rebasin.matching.many.soft import (
    Soft,
    SoftNetworks,
    permutation_matrix,
    uniform_matrix,
)
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

WEIGHTS = (0.7, 0.3)


def networks_of(
    spec: PermutationSpec, states: Sequence[State]
) -> SoftNetworks:
    return SoftNetworks(Universe(spec, states, WEIGHTS, "auto"))


def hard(p: Permutation) -> dict[str, Tensor]:
    """The permutation as matrices."""
    return {g: permutation_matrix(p.flat(g), F64) for g in p.orders}


def two_layers(seed: int) -> tuple[PermutationSpec, State]:
    table = {"w": ("h", None), "v": ("k", "h", None), "free": (None,)}
    shapes = {"w": (3, 2), "v": (4, 3, 2), "free": (5,)}
    spec = PermutationSpec.from_table(table, shapes)
    return spec, random_state(spec, seed)


def random_softs(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_soft(group.members, generator)
        for name, group in spec.groups.items()
    }


def test_soft_networks_are_the_permuted_ones_at_the_vertices() -> None:
    spec, states, permutations = planted_networks(2)
    universe = Universe(spec, states, (0.5, 0.5), "auto")
    networks = SoftNetworks(universe)
    hard = {g: torch.eye(len(p))[p] for g, p in permutations[1].orders.items()}
    mixed = networks.applied(states[0], hard)
    moved = permutations[1].apply(states[0])
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, moved[name])


def test_nested_networks_are_the_permuted_ones_at_the_vertices() -> None:
    spec = nested_spec()
    state = random_state(spec)
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    mixed = networks_of(spec, [state, state]).applied(state, hard(p))
    moved = p.apply(state)
    assert mixed.keys() == moved.keys()
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, moved[name])


def test_every_axis_is_mixed() -> None:
    spec, state = two_layers(0)
    soft = random_softs(spec, 0)
    mixed = networks_of(spec, [state, state]).applied(state, soft)
    h, k = soft["h"].numpy(), soft["k"].numpy()
    w, v = state["w"].numpy(), state["v"].numpy()
    np.testing.assert_allclose(mixed["w"].numpy(), h @ w)
    np.testing.assert_allclose(
        mixed["v"].numpy(), np.einsum("ab,cd,bde->ace", k, h, v)
    )
    assert torch.equal(mixed["free"], state["free"])
    # Groups without a matrix stay as they are.
    alone = networks_of(spec, [state, state]).applied(state, {"h": soft["h"]})
    np.testing.assert_allclose(
        alone["v"].numpy(), np.einsum("cd,bde->bce", h, v)
    )


def test_the_network_itself_is_not_written_to() -> None:
    spec, state = two_layers(0)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    networks = networks_of(spec, [state, state])
    for soft in (random_softs(spec, 0), {}):
        for tensor in networks.applied(state, soft).values():
            tensor.zero_()
    assert all(torch.equal(state[n], kept[n]) for n in state)


def test_value_and_total_of_all_networks() -> None:
    spec, first = two_layers(0)
    states = [first, two_layers(1)[1]]
    networks = networks_of(spec, states)
    softs = [random_softs(spec, seed) for seed in range(2)]
    a, b = (
        networks.applied(state, soft)
        for state, soft in zip(states, softs, strict=True)
    )
    total, squares = networks.total(softs)
    for name in spec.tensors:
        expected = 0.7 * a[name] + 0.3 * b[name]
        torch.testing.assert_close(total[name], expected)
    norms = [sum(float((t**2).sum()) for t in x.values()) for x in (a, b)]
    assert squares == pytest.approx(0.49 * norms[0] + 0.09 * norms[1])
    product = sum(float((a[n] * b[n]).sum()) for n in a)
    assert networks.value(softs) == pytest.approx(0.21 * product)


def test_the_value_at_permutations_is_the_objective() -> None:
    spec = nested_spec()
    states = [random_state(spec, seed) for seed in range(2)]
    generator = torch.Generator().manual_seed(0)
    permutations = [Permutation.random(spec, generator) for _ in states]
    found = networks_of(spec, states).value([hard(p) for p in permutations])
    expected = joint_objective(states, permutations, WEIGHTS)
    assert found == pytest.approx(expected)


def test_costs_are_those_of_two_networks() -> None:
    """With the partner in a soft order, the cost of ``h`` is linear in its own matrix."""
    spec, a = two_layers(0)
    b = two_layers(1)[1]
    networks = networks_of(spec, [a, b])
    soft = random_softs(spec, 0)
    cost = networks.costs(a, b).soft_matrix("h", soft).numpy()
    mixed = np.einsum("ab,bde->ade", soft["k"].numpy(), b["v"].numpy())
    expected = a["w"].numpy() @ b["w"].numpy().T
    expected += np.einsum("aie,aje->ij", a["v"].numpy(), mixed)
    np.testing.assert_allclose(cost, expected)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_takes_the_best_permutation(seed: int) -> None:
    spec, state = two_layers(0)
    networks = networks_of(spec, [state, state])
    generator = torch.Generator().manual_seed(seed)
    costs = {
        group: torch.randn(size, size, generator=generator)
        for group, size in (("h", 3), ("k", 4))
    }
    found = networks.rounded(0, costs)
    for group, cost in costs.items():
        best = max(
            itertools.permutations(range(len(cost))),
            key=lambda p: sum(float(cost[i, j]) for i, j in enumerate(p)),
        )
        assert tuple(found[group].tolist()) == best


def test_groups_on_joint_axes_stay_as_the_universe_has_them() -> None:
    spec = grouped_spec()
    states = [random_state(spec, seed) for seed in range(2)]
    universe = Universe(spec, states, WEIGHTS, "auto")
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    universe.move([Permutation.identity(spec), p])
    networks = SoftNetworks(universe)
    assert networks.families == ()
    assert networks.groups == []
    moved = p.apply(states[1])
    for name, tensor in networks.source(1).items():
        assert torch.equal(tensor, moved[name])
    assert networks.rounded(1, {}) == p
    no_soft: list[Soft] = [{}, {}]
    assert networks.value(no_soft) == pytest.approx(universe.objective)


def test_matrices() -> None:
    flat = torch.tensor([2, 0, 1])
    matrix = permutation_matrix(flat, F64)
    units = torch.tensor([10.0, 20.0, 30.0], dtype=F64)
    assert (matrix @ units).tolist() == [30.0, 10.0, 20.0]
    assert torch.equal(matrix @ matrix.T, torch.eye(3, dtype=F64))
    assert permutation_matrix(torch.tensor([0]), F64).tolist() == [[1.0]]
    half = torch.full((2, 2), 0.5, dtype=F64)
    assert torch.equal(uniform_matrix(2, F64), half)
    assert matrix.device == CPU
