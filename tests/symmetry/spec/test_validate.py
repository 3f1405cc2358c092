"""Specs that contradict themselves are refused, however they are made."""

import pytest
import torch

from lightning_rebasin.errors import (
    SpecError,
)
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
)


def test_overlapping_units_are_refused():
    index = torch.arange(3)[:, None]
    axis_map = AxisMap(
        "w",
        ((4,),),
        (Component("a", (0,), index), Component("b", (0,), index + 1)),
    )
    with pytest.raises(SpecError, match="belongs to two units"):
        PermutationSpec(
            {"a": Group("a", 3), "b": Group("b", 3)},
            {"w": TensorInfo((4,))},
            {"w": axis_map},
        )


def whole(group, site, size):
    return Component(group, (site,), torch.arange(size)[:, None])


def build(component, shape=(4, 3)):
    sites = tuple((size,) for size in shape)
    return PermutationSpec(
        {"h": Group("h", 4)},
        {"w": TensorInfo((4, 3))},
        {"w": AxisMap("w", sites, (component,))},
    )


def test_a_map_that_fits_is_taken():
    assert build(whole("h", 0, 4)).tensors_of("h") == ("w",)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (whole("k", 0, 4), "'w' is mapped to the unknown group 'k'"),
        (whole("h", 1, 3), r"has shape \(3, 1\), expected \(4, copies\)"),
        (whole("h", 2, 4), r"sites \(2,\) are not ascending"),
        (Component("h", (), torch.zeros(4, 1).long()), "not ascending"),
        (Component("h", (1, 0), torch.arange(4)[:, None]), "not ascending"),
        (Component("h", (0,), torch.arange(4)), r"has shape \(4,\)"),
        (Component("h", (0,), torch.arange(4)[:, None] + 1), "exceed 4"),
        (Component("h", (0,), torch.arange(4)[:, None] - 1), "exceed 4"),
    ],
)
def test_components_that_do_not_fit_are_refused(component, message):
    with pytest.raises(SpecError, match=message):
        build(component)


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(SpecError, match=r"has shape \(4, 2\), the tensor"):
        build(whole("h", 0, 4), (4, 2))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": Group("b", 2)}, "group 'b' is listed as 'a'"),
        ({"a": Group("a", 0)}, "'a' has 0 units"),
        ({"a": Group("a", 2, kind="")}, "unknown kind"),
        ({"a": Group("a", 2, Group("p", 2))}, "'a' lies in 'p'"),
        (
            {"p": Group("p", 3), "a": Group("a", 2, Group("p", 2))},
            "'a' lies in 'p'",
        ),
    ],
)
def test_groups_that_contradict_themselves_are_refused(groups, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec(groups, {}, {})


@pytest.mark.parametrize(
    "aliases", [{"w": "ghost"}, {"v": "w", "u": "v"}, {"x": "w"}]
)
def test_ties_that_cannot_be_are_refused(aliases):
    tensors = {name: TensorInfo((4,)) for name in "uvw"}
    tensors["x"] = TensorInfo((5,))
    with pytest.raises(SpecError, match="cannot be tied to"):
        PermutationSpec({}, tensors, {}, aliases=aliases)
