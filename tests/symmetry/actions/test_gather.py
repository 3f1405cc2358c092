"""Moving units: gather indices of every kind of component, against plain loops."""

from __future__ import annotations

import itertools
import math

import torch
from helpers.algebra import randomly, seeds
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_rebasin.symmetry import AxisMap, Component, Permutation
from lightning_rebasin.symmetry.actions.gather import (
    cluster_index,
    gather_units,
)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_nested_groups_against_plain_loops(
    heads: int, inner: int, width: int, seed: int
) -> None:
    spec = nested_spec(heads, inner, width)
    p, state = randomly(spec, seed), random_state(spec)
    new = p.apply(state)
    for h, i, c in itertools.product(range(heads), range(inner), range(width)):
        old_h = int(p["heads"][h])
        old_i, old_c = int(p["value"][h, i]), int(p["model"][c])
        assert (
            new["value.weight"][h * inner + i, c]
            == state["value.weight"][old_h * inner + old_i, old_c]
        )
        assert (
            new["out.weight"][c, h * inner + i]
            == state["out.weight"][old_c, old_h * inner + old_i]
        )
        assert new["scale"][h] == state["scale"][old_h]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=40)
def test_grouped_convolution_against_plain_loops(
    groups: int, inputs: int, outputs: int, seed: int
) -> None:
    spec = grouped_spec(groups, inputs, outputs)
    p, state = randomly(spec, seed), random_state(spec)
    new = p.apply(state)
    for g, o, i in itertools.product(
        range(groups), range(outputs), range(inputs)
    ):
        old = int(p["g"][g]) * outputs + int(p["out"][g, o])
        assert torch.equal(
            new["conv.weight"][g * outputs + o, i],
            state["conv.weight"][old, int(p["in"][g, i])],
        )
        assert new["conv.bias"][g * outputs + o] == state["conv.bias"][old]


def test_grouped_convolution_computes_the_same() -> None:
    spec = grouped_spec(3, 4, 2)
    p, state = randomly(spec, 1), random_state(spec)
    x = torch.randn(2, 4, 7, dtype=torch.float64)

    def run(s: dict[str, Tensor]) -> Tensor:
        hidden = torch.nn.functional.conv1d(x, s["before.weight"][:, :, None])
        out = torch.nn.functional.conv1d(
            hidden, s["conv.weight"], s["conv.bias"], groups=3
        )
        return out.sum(1)

    assert torch.allclose(run(state), run(p.apply(state)), atol=1e-12)
    half = Permutation(
        spec, {"in": p["in"]}
    )  # only the inputs inside each group
    assert torch.allclose(run(state), run(half.apply(state)), atol=1e-12)


def test_blocks_copies_and_pinned_positions() -> None:
    spec = blocks_spec(3, 2)
    p = Permutation(spec, {"c": torch.tensor([2, 0, 1])})
    state = {
        name: torch.arange(math.prod(i.shape)).reshape(i.shape)
        for name, i in spec.tensors.items()
    }
    new = p.apply(state)
    assert new["linear.weight"].tolist() == [
        [4, 5, 0, 1, 2, 3],
        [10, 11, 6, 7, 8, 9],
    ]
    assert new["crelu.weight"].tolist() == [2, 0, 1, 5, 3, 4]
    assert new["part.weight"].tolist() == [0, 3, 1, 2, 4]
    assert new["rest"].tolist() == [0, 1]


def orders(seed: int, **groups: int) -> dict[str, Tensor]:
    """A random flat order for every group by its size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group: torch.randperm(size, generator=generator)
        for group, size in groups.items()
    }


def whole(group: str, site: int, size: int) -> Component:
    return Component(group, (site,), torch.arange(size)[:, None])


@given(st.integers(1, 4), st.integers(1, 5), seeds)
@settings(deadline=None, max_examples=40)
def test_both_axes_of_a_weight_move_on_their_own(
    outputs: int, inputs: int, seed: int
) -> None:
    flat = orders(seed, out=outputs, inp=inputs)
    axis_map = AxisMap(
        "w",
        ((outputs,), (inputs,)),
        (whole("out", 0, outputs), whole("inp", 1, inputs)),
    )
    old = torch.arange(outputs * inputs).reshape(outputs, inputs)
    new = gather_units(old, axis_map, flat.__getitem__)
    for o, i in itertools.product(range(outputs), range(inputs)):
        assert new[o, i] == old[flat["out"][o], flat["inp"][i]]


@given(st.integers(2, 5), st.integers(1, 3), seeds)
@settings(deadline=None, max_examples=40)
def test_part_of_a_split_dimension_moves_in_blocks(
    units: int, positions: int, seed: int
) -> None:
    """A flatten puts ``positions`` columns of every channel side by side, behind an axis that stays."""
    flat = orders(seed, c=units)
    axis_map = AxisMap(
        "w", ((2,), (units, positions)), (whole("c", 1, units),)
    )
    old = torch.arange(2 * units * positions).reshape(2, -1)
    new = gather_units(old, axis_map, flat.__getitem__)
    for row, u, p in itertools.product(
        range(2), range(units), range(positions)
    ):
        source = int(flat["c"][u]) * positions + p
        assert new[row, u * positions + p] == old[row, source]
    assert new.is_contiguous()


def test_positions_that_no_component_names_stay() -> None:
    middle = Component("h", (0,), torch.tensor([[1], [3]]))
    axis_map = AxisMap("w", ((5,),), (middle,))
    old = torch.tensor([10, 11, 12, 13, 14])
    swap = torch.tensor([1, 0])
    new = gather_units(old, axis_map, lambda _: swap)
    assert new.tolist() == [10, 13, 12, 11, 14]


def test_two_groups_side_by_side_on_one_axis() -> None:
    """A concatenation: the first two positions belong to one group, the last three to another."""
    components = (
        Component("a", (0,), torch.tensor([[0], [1]])),
        Component("b", (0,), torch.tensor([[2], [3], [4]])),
    )
    axis_map = AxisMap("w", ((5,),), components)
    flat = {"a": torch.tensor([1, 0]), "b": torch.tensor([2, 0, 1])}
    index = cluster_index(axis_map, (0,), components, flat.__getitem__)
    assert index.tolist() == [1, 0, 4, 2, 3]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), seeds)
@settings(deadline=None, max_examples=40)
def test_the_index_of_overlapping_sites_is_that_of_a_plain_loop(
    groups: int, inputs: int, outputs: int, seed: int
) -> None:
    """The two axes of a grouped convolution: sites (group, output) and (group, input) share the group."""
    spec = grouped_spec(groups, inputs, outputs)
    axis_map = spec.maps["conv.weight"]
    p = randomly(spec, seed)
    ((sites, components),) = axis_map.clusters
    assert sites == (0, 1, 2)
    index = cluster_index(axis_map, sites, components, p.flat)
    expected = []
    for g, o, i in itertools.product(
        range(groups), range(outputs), range(inputs)
    ):
        old_g, old_o, old_i = p["g"][g], p["out"][g, o], p["in"][g, i]
        expected.append(int((old_g * outputs + old_o) * inputs + old_i))
    assert index.tolist() == expected


def test_a_tensor_without_components_comes_back_as_a_copy() -> None:
    old = torch.arange(6).reshape(2, 3)
    axis_map = AxisMap("w", ((2,), (3,)), ())
    new = gather_units(old, axis_map, lambda group: orders(0)[group])
    assert torch.equal(new, old)
    assert new.data_ptr() != old.data_ptr()
