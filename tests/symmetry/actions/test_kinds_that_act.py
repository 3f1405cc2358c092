"""Signs, scales, rotations, linear maps and planes: groups that act, refuse what is none of them, and go into files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
    Transform,
)
from lightning_rebasin.symmetry.actions.action import action_of

KINDS = (
    "sign",
    "scale",
    "orthogonal",
    "orthogonal_mean",
    "linear",
    "plane",
)
HEADS = Group("heads", 3)


def group_of(kind: str, *, nested: bool) -> Group:
    return Group("g", 4, HEADS if nested else None, kind)


def spec_of(kind: str, *, nested: bool) -> PermutationSpec:
    """A writer (rows are units) and a reader (columns are units)."""
    group = group_of(kind, nested=nested)
    groups = {"heads": HEADS, "g": group} if nested else {"g": group}
    count = group.members
    index = torch.arange(count)[:, None]
    writer = AxisMap(
        "writer", ((count,), (5,)), (Component("g", (0,), index),)
    )
    reader = AxisMap(
        "reader", ((2,), (count,)), (Component("g", (1,), index, -1),)
    )
    tensors = {
        "writer": TensorInfo((count, 5)),
        "reader": TensorInfo((2, count)),
    }
    return PermutationSpec(
        groups, tensors, {"writer": writer, "reader": reader}
    )


def weights(spec: PermutationSpec, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(info.shape, generator=generator, dtype=torch.float64)
        for name, info in spec.tensors.items()
    }


def drawn(spec: PermutationSpec, seed: int) -> Transform:
    return Transform.random(spec, torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-9, atol=1e-9))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**31)] * 2))
def test_elements_are_a_group_that_acts(
    kind: str, nested: bool, seeds: tuple[int, int]
) -> None:
    spec = spec_of(kind, nested=nested)
    p, q = (drawn(spec, seed) for seed in seeds)
    state = weights(spec)
    both, one_by_one = p.compose(q).apply(state), p.apply(q.apply(state))
    back = p.inverse().apply(p.apply(state))
    for name, tensor in state.items():
        assert close(both[name], one_by_one[name])
        assert close(back[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_readers_undo_what_writers_do(kind: str) -> None:
    spec = spec_of(kind, nested=True)
    state = weights(spec)
    # Of complex pairs the real part of q·k̄ stays, which is the sum over both units as well.
    product = state["reader"] @ state["writer"]
    moved = drawn(spec, 3).apply(state)
    assert close(moved["reader"] @ moved["writer"], product)
    assert not close(moved["writer"], state["writer"])


@pytest.mark.parametrize("kind", KINDS)
def test_random_elements_are_far_from_the_identity(kind: str) -> None:
    group = group_of(kind, nested=True)
    action = action_of(group)
    identity = action.identity(group)
    assert action.distance(group, identity) == 0
    element = action.random(group, torch.Generator().manual_seed(1))
    assert action.distance(group, element) > 0.2
    again = action.random(group, torch.Generator().manual_seed(1))
    assert torch.equal(element, again)


@pytest.mark.parametrize("kind", KINDS)
def test_files_keep_elements(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, nested=True)
    transform = drawn(spec, 2)
    transform.save(tmp_path / "t.pt")
    assert Transform.load(tmp_path / "t.pt", spec) == transform


WRONG = {
    "sign": torch.tensor([1.0, 1.0, 2.0, -1.0]),
    "scale": torch.tensor([1.0, 1.0, -2.0, 1.0]),
    "orthogonal": 2 * torch.eye(4),
    # A rotation, but the mean does not stay.
    "orthogonal_mean": torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0])),
    "linear": torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-9])),
    "plane": torch.zeros(2, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_element_is_refused(kind: str) -> None:
    group = group_of(kind, nested=False)
    with pytest.raises(TransformError, match="group 'g'"):
        action_of(group).check(group, WRONG[kind])
    with pytest.raises(TransformError, match="group 'g'"):
        action_of(group).check(group, torch.ones(7))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sign"])
def test_latents_stand_for_elements_and_begin_at_the_identity(
    kind: str,
) -> None:
    group = group_of(kind, nested=True)
    action = action_of(group)
    start = action.latent(group)
    assert start is not None
    identity = action.from_latent(group, start.double())
    assert close(identity, action.identity(group))
    latent = torch.randn(
        start.shape,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    ).requires_grad_()
    element = action.from_latent(group, 3 * latent)
    # Even of large latents an element comes that is accepted, and the gradient arrives.
    action.check(group, element)
    element.square().sum().backward()
    assert latent.grad is not None
    assert bool(torch.isfinite(latent.grad).all())


def test_signs_cannot_be_learned() -> None:
    group = group_of("sign", nested=False)
    assert action_of(group).latent(group) is None
    with pytest.raises(TransformError, match="cannot be learned"):
        action_of(group).from_latent(group, torch.zeros(4))


def test_a_reader_of_squared_units_is_divided_twice() -> None:
    group = group_of("scale", nested=False)
    element = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    units = torch.ones(1, 4, 1)
    changed = action_of(group).apply(group, element, units, -2)
    assert changed.flatten().tolist() == [0.25, 1, 1, 1]


def test_a_plane_is_a_complex_factor() -> None:
    group = Group("g", 2, None, "plane")
    factor = complex(0.6, -1.1)
    element = torch.tensor([[factor.real, factor.imag]], dtype=torch.float64)
    units = torch.tensor([[[2.0], [3.0]]], dtype=torch.float64)
    action = action_of(group)
    query = action.apply(group, element, units, 1).flatten()
    key = action.apply(group, element, units, -1).flatten()
    assert complex(*query.tolist()) == pytest.approx(factor * (2 + 3j))
    assert complex(*key.tolist()) == pytest.approx(
        (2 + 3j) / factor.conjugate()
    )


def test_random_signs_are_never_the_identity() -> None:
    group = Group("g", 1, None, "sign")
    for seed in range(20):
        drawn = action_of(group).random(
            group, torch.Generator().manual_seed(seed)
        )
        assert drawn.tolist() == [-1]
