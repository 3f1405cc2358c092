"""The loss at points of input space: values, gradients, chunks."""

from __future__ import annotations

import pytest
import torch
from helpers.models import BatchNormCNN, mlp
from torch import nn

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.inputs.loss import (
    InputLoss,
    between,
    cross_entropies,
)
from lightning_rebasin.inputs.network import InputNetwork


def loss_of(module, target, **options):
    return InputLoss(InputNetwork(module), torch.tensor(target), **options)


def test_the_cross_entropy_is_that_of_each_sample():
    output = torch.randn(4, 3, 2, 5)
    target = torch.randint(3, (4, 2, 5))
    for i in range(4):
        expected = nn.functional.cross_entropy(
            output[i : i + 1], target[i : i + 1]
        )
        assert cross_entropies(output, target)[i] == pytest.approx(
            float(expected), rel=1e-5
        )


def test_owners_say_whose_target_counts():
    module = mlp(3, 4)
    own = loss_of(module, [0, 3])
    points = torch.randn(3, 3)
    with torch.no_grad():
        minus = -module(points).log_softmax(1)
    owners = torch.tensor([1, 0, 1])
    expected = torch.stack([minus[0, 3], minus[1, 0], minus[2, 3]])
    assert torch.allclose(own.values(points, owners), expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_segments_are_measured_point_by_point(size):
    module = BatchNormCNN().double()
    own = loss_of(module, [0, 1, 2], chunk_size=size)
    starts, ends = torch.rand(2, 3, 3, 8, 8, dtype=torch.float64)
    lambdas, owners = (0.0, 0.25, 1.0), torch.tensor([2, 0, 1])
    rows = own.along(starts, ends, lambdas, owners)
    for k, lam in enumerate(lambdas):
        points = (1 - lam) * starts + lam * ends
        assert torch.allclose(rows[:, k], own.values(points, owners))


@pytest.mark.parametrize("size", [1, 4, 100])
def test_gradients_are_those_of_differences(size):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    own = loss_of(module.double(), [0, 1], chunk_size=size)
    points = torch.randn(5, 3, dtype=torch.float64)
    owners = torch.tensor([0, 1, 0, 1, 1])
    losses, gradients = own.gradients(points, owners)
    assert torch.allclose(losses, own.values(points, owners))
    for axis in range(3):
        step = 1e-6 * torch.eye(3, dtype=torch.float64)[axis]
        ahead = own.values(points + step, owners)
        behind = own.values(points - step, owners)
        assert torch.allclose(
            (ahead - behind) / 2e-6, gradients[:, axis], atol=1e-8
        )


def test_both_ends_of_a_segment_are_exact():
    a, b = torch.rand(2, 6, 3)
    assert torch.equal(between(a, b, torch.zeros(6)), a)
    assert torch.equal(between(a, b, torch.ones(6)), b)


def test_wrong_losses_are_refused():
    points, owners = torch.randn(2, 3), torch.tensor([0, 0])
    with pytest.raises(DataError, match="target 4 is not a class"):
        loss_of(mlp(3, 4), [4]).values(points, owners)
    with pytest.raises(ConfigurationError, match="does not return logits"):
        loss_of(nn.Flatten(0), [0]).values(points, owners)
    per_class = loss_of(mlp(3, 4), [0], loss=lambda output, _: output)
    with pytest.raises(ConfigurationError, match=r"returned \(2, 4\)"):
        per_class.values(points, owners)
    a_number = loss_of(mlp(3, 4), [0], loss=lambda output, _: 1.0)
    with pytest.raises(ConfigurationError, match=r"returned 1\.0"):
        a_number.values(points, owners)
    flat = loss_of(mlp(3, 4), [0], loss=lambda output, _: 0 * output.sum(1))
    with pytest.raises(ConfigurationError, match="zero everywhere"):
        flat.check_slope(points, owners)
