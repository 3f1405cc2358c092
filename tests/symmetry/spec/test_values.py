"""The values that a spec is made of: sizes of nested groups, sites of a tensor, rows of units."""

import math

import pytest
import torch
from helpers.specs import blocks_spec, grouped_spec, nested_spec

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    rows_of_units,
)


def test_sizes_of_nested_groups():
    heads = Group("heads", 2)
    dims = Group("dims", 3, heads)
    parts = Group("parts", 4, dims)
    assert parts.shape == (2, 3, 4)
    assert (heads.instances, dims.instances, parts.instances) == (1, 2, 6)
    assert (heads.members, dims.members, parts.members) == (2, 6, 24)
    assert parts.root is heads and heads.root is heads
    # (3!)² orders of the dims of both heads
    assert 10**dims.log10_symmetries == pytest.approx(36)


def test_only_permutations_are_counted():
    assert Group("s", 5, kind="sign").log10_symmetries == 0
    assert Group("s", 5).log10_symmetries == pytest.approx(math.log10(120))


def test_sites_of_a_split_dimension():
    axis_map = AxisMap("w", ((2, 3), (), (5,)), ())
    assert axis_map.shape == (6, 1, 5)
    assert axis_map.site_shape == (2, 3, 5)
    assert axis_map.site_dims == (0, 0, 2)
    assert axis_map.groups == () and axis_map.whole_axes == ()


def test_whole_axes_are_known_from_their_index():
    nested = nested_spec().maps
    assert nested["scale"].whole_axes == ((0, "heads"),)
    # two sites of one component, two components of one site, and a shifted index are not whole axes
    assert nested["value.weight"].whole_axes is None
    assert grouped_spec().maps["conv.weight"].whole_axes is None
    blocks = blocks_spec().maps
    assert blocks["part.weight"].whole_axes is None
    assert blocks["crelu.weight"].whole_axes is None
    assert blocks["linear.weight"].whole_axes == ((1, "c"),)


def test_clusters_join_components_that_share_a_site():
    index = torch.arange(2)[:, None]
    a = Component("a", (0, 1), index)
    b = Component("b", (1, 2), index)
    c = Component("c", (3,), index)
    axis_map = AxisMap("w", ((2,), (2,), (2,), (2,)), (a, c, b))
    found = [
        (sites, {x.group for x in own}) for sites, own in axis_map.clusters
    ]
    assert found == [((3,), {"c"}), ((0, 1, 2), {"a", "b"})]
    assert axis_map.dims_of("b") == (1, 2)
    assert axis_map.dims_of("z") == ()


def test_rows_of_units_over_two_sites():
    # Units of a 2×3 tensor that are its anti-diagonal positions (0, 2) and (1, 1).
    component = Component("h", (0, 1), torch.tensor([[2], [4]]))
    weight = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert rows_of_units(weight, component).tolist() == [[[3]], [[5]]]


def test_an_address_arranges_an_operand_whose_batch_is_unknown():
    # Two channels, flattened with their three positions.
    component = Component("c", (1,), torch.arange(6).reshape(2, 3))
    address = ActivationAddress(0, "aten.mm", 0, ((-1,), (6,)), component)
    operand = torch.arange(24).reshape(4, 6)
    units = address.units(operand)
    assert units.shape == (2, 3, 4)
    assert units[1, 0].tolist() == [3, 9, 15, 21]
    with pytest.raises(TraceError, match=r"has shape \(4, 5\), expected"):
        address.units(operand[:, :5])


def test_group_arithmetic() -> None:
    a = Group("a", 4)
    b = Group("b", 3, a)
    c = Group("c", 2, b)
    assert (c.shape, c.instances, c.members, c.root) == ((4, 3, 2), 12, 24, a)
    assert c.log10_symmetries == pytest.approx(12 * math.log10(2))
    assert b.log10_symmetries == pytest.approx(4 * math.log10(6))
