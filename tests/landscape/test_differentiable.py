"""The loss as a function of weights: the same number as the module's own, with gradients in everything that moves."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier, val_loader
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.differentiable import (
    DifferentiableLoss,
    derivative,
)


def mean_square(module, x):
    return module(x).square().mean()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 4)),
        (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
        (nn.BatchNorm3d(3, eps=0.1), (2, 3, 2, 2, 2)),
    ],
)
def test_batch_norm_is_computed_as_pytorch_does(norm, shape):
    torch.manual_seed(0)
    norm = norm.double().eval()
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    x = torch.randn(shape, dtype=torch.float64)
    loss = DifferentiableLoss(norm, mean_square)
    state = norm.state_dict()
    variables = loss.variables(state)
    value = loss.at(variables, state, x)
    assert float(value.detach()) == pytest.approx(
        float(norm(x).square().mean().detach()), rel=1e-12
    )
    names = list(variables)
    gradient = derivative(value, list(variables.values()))
    for name, own in zip(names, gradient, strict=True):
        assert torch.any(own != 0), name

    # The derivative in the running variance by a difference.
    def shifted(step):
        moved = dict(state)
        moved["running_var"] = state["running_var"] + step
        return float(loss.at(loss.variables(moved), moved, x).detach())

    slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    total = float(gradient[names.index("running_var")].sum())
    assert total == pytest.approx(slope, rel=1e-6)


def test_a_step_without_a_trainer_and_the_metrics_it_feeds():
    module = Classifier()
    loss = DifferentiableLoss(module)
    batch = next(iter(val_loader()))
    state = module.state_dict()
    weights = {k: v for k, v in state.items() if k.startswith("net.")}
    value = loss.at(loss.variables(weights), weights, loss.ready(batch))
    x, y = batch
    expected = nn.functional.cross_entropy(module(x), y)
    assert float(value.detach()) == float(expected.detach())
    assert loss.metric == "val_loss"
    assert module.val_acc.update_count == 0


class Halved(Classifier):
    """Its data are scaled on the way to the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 2, batch[1]


def test_the_modules_own_transfer_hooks_are_called():
    batch = next(iter(val_loader()))
    moved = DifferentiableLoss(Halved()).ready(batch)
    assert torch.equal(moved[0], batch[0] / 2)
    plain = DifferentiableLoss(Halved(), mean_square).ready(batch)
    assert torch.equal(plain[0], batch[0])


def test_derivatives_of_a_constant_and_of_what_has_none():
    w = torch.tensor(2.0, requires_grad=True)
    assert derivative(torch.tensor(1.0), [w]) == (0.0,)
    v = torch.tensor(3.0, requires_grad=True)
    assert derivative(w * w, [w, v]) == (4.0, 0.0)
    value = w * w
    derivative(value, [w])
    with pytest.raises(ConfigurationError, match="second time"):
        derivative(value, [w])
