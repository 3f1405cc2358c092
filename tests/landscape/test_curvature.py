"""Derivatives along a direction against a dense Hessian of a small network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.curvature import (
    DerivativeAverages,
    difference,
)
from lightning_rebasin.landscape.differentiable import DifferentiableLoss
from lightning_rebasin.landscape.layers import layers_of

torch.manual_seed(2)
NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
X = torch.randn(7, 3, dtype=torch.float64)


def loss(module, x):
    return module(x).pow(4).mean()


def dense(state, direction):
    """The gradient and ΔᵀHΔ for every pair of tensors, from the whole Hessian."""

    names = list(state)

    def value(*tensors):
        weights = dict(zip(names, tensors, strict=True))
        return functional_call(NET, weights, (X,)).pow(4).mean()

    found = torch.autograd.functional.hessian(value, tuple(state.values()))
    blocks = {}
    for row, inner in zip(names, found, strict=True):
        for column, block in zip(names, inner, strict=True):
            left = direction[row].flatten()
            right = direction[column].flatten()
            flat = block.reshape(len(left), len(right))
            blocks[row, column] = float(left @ flat @ right)
    return blocks


def test_products_are_those_of_the_hessian():
    state = {k: v.detach() for k, v in NET.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    direction = {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype)
        for k, v in state.items()
    }
    averages = DerivativeAverages(
        DifferentiableLoss(NET, loss), direction, layers_of(NET), state
    )
    averages.update(state, X[:2])
    averages.update(state, X[2:])
    found = averages.mean()
    blocks = dense(state, direction)
    assert found.curvature == pytest.approx(sum(blocks.values()), rel=1e-10)
    for layer, own in found.layer_curvatures.items():
        inside = [
            value
            for (row, column), value in blocks.items()
            if row.startswith(f"{layer}.") and column.startswith(f"{layer}.")
        ]
        assert own == pytest.approx(sum(inside), rel=1e-10)
    assert sum(found.layer_slopes.values()) == pytest.approx(found.slope)
    # The mean gradient over all samples.
    NET.zero_grad()
    loss(NET, X).backward()
    for name, parameter in NET.named_parameters():
        square = float(parameter.grad.square().sum())
        assert found.squares[name] == pytest.approx(square, rel=1e-10)
    NET.zero_grad()


def test_two_processes_are_averaged_by_samples():
    """Each has batches of its own; one of them has none of the second size."""
    state = {k: v.detach() for k, v in NET.state_dict().items()}
    direction = {k: torch.ones_like(v) for k, v in state.items()}

    def part(*batches):
        function = DifferentiableLoss(NET, loss)
        averages = DerivativeAverages(
            function, direction, layers_of(NET), state
        )
        for batch in batches:
            averages.update(state, batch)
        return averages

    sent = []
    with pytest.raises(DataError, match="no batch"):
        part().mean(lambda tensor: sent.append(tensor) or tensor)
    sent = []
    part(X[:2]).mean(lambda tensor: sent.append(tensor) or tensor)
    other = iter(sent)
    both = part(X[2:]).mean(lambda tensor: tensor + next(other))
    whole = part(X).mean()
    assert both.curvature == pytest.approx(whole.curvature, rel=1e-10)
    assert both.layer_slopes == pytest.approx(whole.layer_slopes, rel=1e-10)
    assert both.squares == pytest.approx(whole.squares, rel=1e-10)


def test_what_does_not_move_has_no_part():
    state = NET.state_dict()
    moved = dict(state) | {"0.bias": state["0.bias"] + 1}
    direction = difference(state, moved)
    assert list(direction) == ["0.bias"]
    averages = DerivativeAverages(
        DifferentiableLoss(NET, loss), direction, layers_of(NET)
    )
    averages.update(state, X)
    found = averages.mean()
    assert found.layer_slopes["2"] == 0.0
    assert found.layer_curvatures["0"] == found.curvature != 0


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    direction = {k: torch.ones_like(v) for k, v in NET.state_dict().items()}
    averages = DerivativeAverages(
        DifferentiableLoss(NET, lambda m, x: m[2].bias.sum() * x.mean()),
        direction,
    )
    averages.update(NET.state_dict(), X)
    found = averages.mean()
    assert found.slope == pytest.approx(2 * float(X.mean()))
    assert found.curvature == 0.0
