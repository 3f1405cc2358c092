"""Cost matrices that are kept and updated, against their definition."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from helpers import textbook
from helpers.costs import (
    F64,
    SPECS,
    cost_cache,
    flats_of,
    random_pair,
    random_soft,
    roll_some,
    soft_cost,
)
from helpers.planted import chain
from helpers.specs import blocks_spec, nested_spec, random_state

from lightning_rebasin.matching.costs.cache import _TABLES, TermTable
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Axes = tuple[str | None, ...]


def chain_spec() -> PermutationSpec:
    """A perceptron of four layers."""
    return PermutationSpec.from_table(*chain((5, 7, 6, 4), 0)[:2])


@pytest.mark.parametrize("make", [nested_spec, blocks_spec, chain_spec])
def test_cost_is_the_change_of_the_objective_by_definition(
    make: Callable[[], PermutationSpec],
) -> None:
    """Summed over a permutation of one group, ``C`` is the exact objective up to what the group does not touch."""
    spec = make()
    a, b = random_state(spec, 0), random_state(spec, 1)
    generator = torch.Generator().manual_seed(0)
    costs = cost_cache(spec, a, b)
    for _ in range(4):
        p = Permutation.random(spec, generator)
        flats = flats_of(p)
        for name, group in spec.groups.items():
            if spec.children(name):
                continue  # moving a parent moves its children too
            matrix = costs.matrix(name, flats)
            rows = torch.arange(group.members)
            inner = torch.stack(
                [
                    torch.randperm(group.size, generator=generator)
                    for _ in range(group.instances)
                ]
            )
            moved = {**p.orders, name: inner.reshape(group.shape)}
            q = Permutation(spec, moved)
            before, after = objective(spec, a, b, p), objective(spec, a, b, q)
            gains = matrix[rows, q.flat(name)] - matrix[rows, p.flat(name)]
            predicted = float(gains.sum())
            assert after - before == pytest.approx(predicted, abs=1e-9)


def test_updated_costs_equal_costs_built_anew() -> None:
    table, a, b = chain((9, 40, 30, 20, 5), 3, F64)
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b)
    generator = torch.Generator().manual_seed(0)
    flats = flats_of(Permutation.identity(spec))
    for step in range(40):
        group = list(flats)[step % 3]
        costs.matrix(group, flats)
        moved = roll_some(flats[group], 2 + step % 5, generator)
        flats = {**flats, group: moved}
        for name in flats:
            orders = Permutation.from_flat(spec, flats).orders
            expected = textbook.cost_matrix(table, name, a, b, orders)
            torch.testing.assert_close(
                costs.matrix(name, flats), expected, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize(
    "name", ["nested", "flatten block", "vgg", "transformer"]
)
def test_soft_costs_at_permutation_matrices_are_the_hard_costs(
    name: str,
) -> None:
    spec = SPECS[name]()
    shapes = {name: info.shape for name, info in spec.tensors.items()}
    costs = cost_cache(spec, *random_pair(shapes))
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    flats = flats_of(p)
    soft = {
        group: torch.eye(len(flat), dtype=F64)[flat]
        for group, flat in flats.items()
    }
    for group in spec.groups:
        torch.testing.assert_close(
            costs.soft_matrix(group, soft), costs.matrix(group, flats)
        )


@pytest.mark.parametrize("keep", [True, False])
def test_soft_costs_of_large_blocks_are_the_definition(keep: bool) -> None:
    """Blocks beyond the cache are mixed into memory that is used again; soft orders that are no permutations."""
    table: dict[str, Axes] = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "dense": ("g", "h"),
        "cube": ("g", "h", "k"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (144, 160, 3, 3),
        "dense": (160, 144),
        "cube": (160, 144, 6),
    }
    a, b = random_pair(shapes)
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b, keep=keep)
    generator = torch.Generator().manual_seed(0)
    sizes = {"g": 160, "h": 144, "k": 6}
    for _ in range(2):
        soft = {g: random_soft(n, generator) for g, n in sizes.items()}
        for group in ("g", "h"):
            torch.testing.assert_close(
                costs.soft_matrix(group, soft),
                soft_cost(table, group, a, b, soft),
            )


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("moved", [0, 12, 64, 160])
def test_updated_costs_of_large_convolutions_are_the_definition(
    moved: int, keep: bool
) -> None:
    """Blocks beyond the cache are gathered into memory that is used again; a step may skip, update or build anew."""
    table: dict[str, Axes] = {
        "first": ("g", None, None, None),
        "middle": ("h", "g", None, None),
        "dense": ("g", "h"),
        "last": (None, "h"),
    }
    shapes = {
        "first": (160, 3, 3, 3),
        "middle": (160, 160, 3, 3),
        "dense": (160, 160),
        "last": (10, 160),
    }
    a, b = random_pair(shapes, seed=moved)
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b, keep=keep)
    generator = torch.Generator().manual_seed(moved)
    flats = {
        "g": torch.randperm(160, generator=generator),
        "h": torch.randperm(160, generator=generator),
    }
    for _ in range(4):
        for group in ("h", "g"):
            expected = textbook.cost_matrix(table, group, a, b, flats)
            torch.testing.assert_close(costs.matrix(group, flats), expected)
        flats = {
            group: roll_some(flat, moved, generator)
            for group, flat in flats.items()
        }


def test_tables_are_kept_per_spec_and_let_go_with_it() -> None:
    table, a, _ = chain((4, 5, 3), 0)
    spec = PermutationSpec.from_table(table, a)
    assert TermTable.of(spec) is TermTable.of(spec)
    key = id(spec)
    assert key in _TABLES
    del spec
    gc.collect()
    assert key not in _TABLES


@pytest.mark.cuda
def test_costs_on_a_gpu_give_the_same_matching() -> None:
    from lightning_rebasin.matching import match_weights

    table, a, b = chain((20, 60, 50, 5), 0)
    spec = PermutationSpec.from_table(table, a)
    x, y = ({n: t.cuda() for n, t in state.items()} for state in (a, b))
    assert (
        match_weights(spec, x, y).permutation
        == match_weights(spec, a, b).permutation
    )
