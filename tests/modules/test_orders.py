"""Permutations beside continuous elements: the start is the first projection, and pulls can move units."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.kinds import networks
from torch import Tensor

from lightning_rebasin import infer_spec
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.modules.orders import SETTLED_STEPS, LearnedOrders
from lightning_rebasin.symmetry import PermutationSpec, Transform

State = dict[str, Tensor]


def pair(name: str) -> tuple[PermutationSpec, State, State, tuple[str, ...]]:
    """Two canonical networks of one kind, with their spec and the names of their parameters."""
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    states = [
        spec.canonicalise(networks(name, seed)[0].state_dict())
        for seed in (0, 1)
    ]
    names = tuple(name for name, _ in module.named_parameters())
    return spec, states[0], states[1], names


@pytest.mark.parametrize("name", ["layer norm", "rotary", "relu", "tanh"])
def test_any_start_is_its_own_first_projection(name: str) -> None:
    spec, a, b, names = pair(name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        started = Transform.random(spec, generator).apply(b)
        orders = LearnedOrders(spec, a, started, names)
        assert orders.learns
        found, _ = orders.project(a, started, seed=5)
        for group, order in found.items():
            assert torch.equal(order, orders.permutation.orders[group])


def test_permutations_settle() -> None:
    spec, a, b, names = pair("tanh")
    orders = LearnedOrders(spec, a, b, names)
    assert orders.move(0, 10)
    assert orders.move(3, 10)
    assert not orders.move(4, 10)
    assert orders.move(SETTLED_STEPS - 1, math.inf)
    assert not orders.move(SETTLED_STEPS, math.inf)


def test_a_start_that_weights_found_needs_no_share_of_itself() -> None:
    spec, a, _, names = pair("tanh")
    assert LearnedOrders(spec, a, a, names).share == 0


def test_pulls_move_the_units_that_they_pull_and_what_is_inside() -> None:
    """Pulled towards the weights of another order, the units take that order, with the scales inside them."""
    spec, a, _, names = pair("relu")
    elements = LearnedElements(spec, Transform.identity(spec), a, a, names)
    with torch.no_grad():
        for latent in elements.latents:
            latent.normal_(std=0.1)
    moved = {name: t.detach() for name, t in elements.moved(a).items()}
    orders = elements.orders
    wanted = Transform.random(
        orders.spec, torch.Generator().manual_seed(1)
    ).apply(moved)
    with torch.no_grad():
        for name, pull in zip(orders._sizes, orders.pulls, strict=True):
            pull.copy_(100 * wanted[name] / orders._sizes[name])
    orders.put(orders.project(a, moved, seed=0)[0])
    assert not orders.permutation.is_identity
    for name, tensor in orders.permuted(moved).items():
        torch.testing.assert_close(tensor, wanted[name])
    # As a value, too: the element of all groups together does the same to the source.
    applied = elements.transform().apply(a)
    for name, tensor in applied.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_gradients_go_straight_through() -> None:
    """The derivative with respect to a pull is the gradient at the moved weights times their size."""
    spec, a, _, names = pair("tanh")
    elements = LearnedElements(spec, Transform.identity(spec), a, a, names)
    orders = elements.orders
    found = orders.permuted(elements.moved(a))
    weights = {n: torch.randn(t.shape).double() for n, t in found.items()}
    sum((found[n] * weights[n]).sum() for n in found).backward()  # type: ignore[union-attr]
    for name, pull in zip(orders._sizes, orders.pulls, strict=True):
        size = float(a[name].square().mean().sqrt())
        assert pull.grad is not None
        torch.testing.assert_close(pull.grad, size * weights[name])
