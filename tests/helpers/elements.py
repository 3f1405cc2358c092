"""What the elements of every kind owe: the axioms of a group, and what readers and writers keep."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
    Transform,
)
from lightning_rebasin.symmetry.actions.action import Action


def inside(kind: str, size: int, outer: int = 0) -> Group:
    """A group of a kind, at the top or inside each of ``outer`` units."""
    parent = Group("outer", outer) if outer else None
    return Group("inner", size, parent, kind)


def drawn(action: Action, group: Group, count: int, seed: int) -> list[Tensor]:
    """Random elements."""
    generator = torch.Generator().manual_seed(seed)
    return [action.random(group, generator) for _ in range(count)]


def some_units(group: Group, seed: int, rest: int = 3) -> Tensor:
    """Float64 units ``(instances, size, rest)``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (group.instances, group.size, rest)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_group(action: Action, group: Group, seed: int) -> None:
    """Identity, inverse, associativity; products act like their factors one after the other, on both sides."""
    p, q, r = drawn(action, group, 3, seed)
    one = action.identity(group)
    compose = action.compose
    units = some_units(group, seed)
    left = compose(group, compose(group, p, q), r)
    right = compose(group, p, compose(group, q, r))
    _close(left, right)
    inverse = action.inverse(group, p)
    for product in (
        compose(group, p, inverse),
        compose(group, inverse, p),
        compose(group, one, one),
    ):
        _close(product, one)
    _close(compose(group, one, p), p)
    _close(compose(group, p, one), p)
    for power in (1, -1):
        once = action.apply(group, compose(group, p, q), units, power)
        inner = action.apply(group, q, units, power)
        _close(once, action.apply(group, p, inner, power))
        _close(action.apply(group, one, units, power), units)
    assert action.distance(group, one) == 0
    for element in (p, inverse, left, one, action.far(group)):
        _close(action.check(group, element), element)


def assert_products_kept(action: Action, group: Group, seed: int) -> None:
    """``Nᵀ P``, what a reader makes of what a writer wrote, stays: readers are changed by the contragredient."""
    (element,) = drawn(action, group, 1, seed)
    writers = some_units(group, seed, 3)
    readers = some_units(group, seed + 1, 2)
    written = action.apply(group, element, writers, 1)
    read = action.apply(group, element, readers, -1)
    _close(read.mT @ written, readers.mT @ writers)


def assert_private_copy(action: Action, group: Group) -> None:
    """What somebody does to his element later is no business of the checked one."""
    given = action.identity(group)
    kept = action.check(group, given)
    given.zero_()
    assert torch.equal(kept, action.identity(group))


def assert_drawn_from_state(action: Action, group: Group) -> None:
    """Elements follow from the generator alone; the global one is neither used nor moved."""
    before = torch.get_rng_state()
    first, second = drawn(action, group, 2, 5)
    again = drawn(action, group, 2, 5)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def assert_rounded_once(action: Action, group: Group, seed: int) -> None:
    """Float32 units come back as float32, as if computed in float64; also on another device than the element's."""
    (element,) = drawn(action, group, 1, seed)
    units = some_units(group, seed).float()
    for power in (1, -1):
        found = action.apply(group, element, units, power)
        wide = action.apply(group, element, units.double(), power)
        assert torch.equal(found, wide.float())
        # Tensors on "meta" have no values; mixing them with others fails as on any other device.
        elsewhere = action.apply(group, element, units.to("meta"), power)
        assert elsewhere.device.type == "meta"
        assert elsewhere.shape == units.shape


def assert_kept_by_files(action: Action, group: Group, path: str) -> None:
    """A transform with a far element of the kind comes back from its file with the same bits."""
    members = torch.arange(group.members)[:, None]
    maps = {
        name: AxisMap(
            name,
            ((group.members,), (2,)),
            (Component(group.id, (0,), members, power),),
        )
        for name, power in (("writer", 1), ("reader", -1))
    }
    groups = {group.id: group}
    if group.parent is not None:
        groups = {group.parent.id: group.parent, **groups}
    tensors = {name: TensorInfo((group.members, 2)) for name in maps}
    spec = PermutationSpec(groups, tensors, maps)
    transform = Transform.of(spec, {group.id: action.far(group)})
    transform.save(path)
    loaded = Transform.load(path, spec)
    assert loaded == transform
    assert loaded.spec.groups[group.id].kind == action.kind
    state = {
        name: some_units(group, 1, 2).reshape(group.members, 2)
        for name in maps
    }
    undone = loaded.inverse().apply(loaded.apply(state))
    for name, tensor in state.items():
        _close(undone[name], tensor)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
