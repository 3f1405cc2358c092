"""The contract of a kind, and the one place that knows all kinds."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lightning_rebasin.errors import SpecError, TransformError
from lightning_rebasin.symmetry import Group
from lightning_rebasin.symmetry.actions.action import (
    Action,
    action_of,
    register_action,
    registered_action,
)


class ShiftAction(Action):
    """Every unit has a number added to it: as small as a kind can be."""

    kind = "shift"

    def identity(self, group: Group) -> Tensor:
        return torch.zeros(group.shape)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        return torch.rand(group.shape, generator=generator)

    def check(self, group: Group, element: Tensor) -> Tensor:
        return element.clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        return after + before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        return -element

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        shift = element.reshape(group.instances, group.size, 1)
        return units + power * shift

    def distance(self, group: Group, element: Tensor) -> float:
        return float((element != 0).double().mean())


SHIFTED = Group("h", 3, kind="shift")


def test_a_kind_is_known_inside_its_block_only() -> None:
    with registered_action(ShiftAction()) as action:
        assert action_of(SHIFTED) is action
    with pytest.raises(TransformError, match="kind 'shift'"):
        action_of(SHIFTED)


def test_a_block_that_fails_forgets_its_kind_too() -> None:
    with pytest.raises(ZeroDivisionError), registered_action(ShiftAction()):
        _ = 1 / 0
    with pytest.raises(TransformError, match="kind 'shift'"):
        action_of(SHIFTED)


def test_an_unknown_kind_is_reported_with_the_known_ones() -> None:
    message = (
        "group 'h' is of the kind 'shift', for which no action is registered "
        r"\(known: .*'permutation'"
    )
    with pytest.raises(TransformError, match=message):
        action_of(SHIFTED)


def test_a_kind_cannot_be_taken_twice() -> None:
    with registered_action(ShiftAction()) as first:
        with pytest.raises(SpecError, match="'shift' has an action already"):
            register_action(ShiftAction())
        # The one that was first stays.
        assert action_of(SHIFTED) is first


def test_what_a_kind_need_not_say() -> None:
    action = ShiftAction()
    assert (action.cost, action.rearranges, action.exact) == (
        "matrix",
        False,
        False,
    )
    assert not action.trivial(SHIFTED)
    first, again = action.far(SHIFTED), action.far(SHIFTED)
    assert torch.equal(first, again)
    assert action.distance(SHIFTED, first) == 1.0


def test_a_kind_must_say_the_rest() -> None:
    class Half(ShiftAction):
        inverse = Action.inverse

    with pytest.raises(TypeError, match="inverse"):
        Half()


kinds = st.sampled_from(["permutation", "shift"])
sizes = st.integers(1, 4)


@given(kinds, sizes, sizes, st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_elements_multiply_invert_and_act(
    kind: str, heads: int, size: int, seed: int
) -> None:
    """Instance by instance, so for groups inside others too."""
    group = Group("inner", size, Group("outer", heads), kind)
    generator = torch.Generator().manual_seed(seed)
    with registered_action(ShiftAction()):
        action = action_of(group)
    p, q, r = (action.random(group, generator) for _ in range(3))
    units = torch.randn(heads, size, 2, generator=generator)

    def product(after: Tensor, before: Tensor) -> Tensor:
        return action.compose(group, after, before)

    def act(element: Tensor, tensor: Tensor) -> Tensor:
        return action.apply(group, element, tensor, 1)

    close = torch.testing.assert_close
    close(product(product(p, q), r), product(p, product(q, r)))
    close(product(p, action.inverse(group, p)), action.identity(group))
    close(product(action.inverse(group, p), p), action.identity(group))
    close(act(product(p, q), units), act(p, act(q, units)))
    close(act(action.identity(group), units), units)
    assert action.distance(group, action.identity(group)) == 0.0


def test_units_of_a_permutation_are_read_from_their_old_place() -> None:
    group = Group("inner", 3, Group("outer", 2))
    element = torch.tensor([[2, 0, 1], [0, 2, 1]])
    units = torch.arange(6.0).reshape(2, 3, 1)
    for power in (1, -1):
        moved = action_of(group).apply(group, element, units, power)
        assert moved.flatten().tolist() == [2, 0, 1, 3, 5, 4]


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_control_of_a_permutation_moves_every_unit(size: int) -> None:
    group = Group("h", size)
    action = action_of(group)
    assert action.distance(group, action.far(group)) == 1.0
    assert not action.trivial(group)
    assert action.trivial(Group("one", 1))
