"""Two processes with half of the batches each find what one process finds on all of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.models import BatchNormCNN, randomise
from helpers.processes import side_by_side
from torch import Tensor, nn

from lightning_rebasin import repair, reset_batch_norm
from lightning_rebasin.merging.layers import Moments
from lightning_rebasin.merging.processes import (
    Total,
    alone,
    device_of,
    total_number,
)


def images() -> list[Tensor]:
    """Three batches of one size, not of one distribution."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(16, 3, 8, 8, generator=generator) * (k + 1) + k
        for k in range(3)
    ]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(BatchNormCNN(), seed)


def parts() -> list[list[Tensor]]:
    every = images()
    return [every[:1], every[1:]]


def ranks() -> list[tuple[nn.Module, list[Tensor]]]:
    """A network and the batches of each rank; made one after the other, because seeding is not safe in threads."""
    return [(network(1), own) for own in parts()]


def assert_alike(found: nn.Module, expected: nn.Module) -> None:
    states = found.state_dict(), expected.state_dict()
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            tensor, states[1][name], rtol=1e-4, atol=1e-5
        )


def test_moments_are_those_of_all_values() -> None:
    values = [torch.randn(n, 3) * n + n for n in (5, 20)]

    def job(own: Tensor, total: Total) -> Moments:
        moments = Moments()
        moments.update(own)
        moments.reduce(total)
        return moments

    every = torch.cat(values).double()
    for moments in side_by_side([partial(job, own) for own in values]):
        assert moments.count == 25
        torch.testing.assert_close(moments.mean, every.mean(0))
        torch.testing.assert_close(
            moments.variance, every.var(0, correction=0)
        )


def test_reset_counts_every_batch_once() -> None:
    def job(net: nn.Module, own: list[Tensor], total: Total) -> nn.Module:
        return reset_batch_norm(net, own, total=total)

    expected = reset_batch_norm(network(1), images())
    for found in side_by_side([partial(job, *each) for each in ranks()]):
        assert_alike(found, expected)
    local = reset_batch_norm(network(1), parts()[0])
    with pytest.raises(AssertionError):
        assert_alike(local, expected)


def test_repair_is_that_of_all_batches() -> None:
    states = [network(seed).state_dict() for seed in (1, 2)]

    def job(net: nn.Module, own: list[Tensor], total: Total) -> nn.Module:
        return repair(net, states, own, total=total).module

    expected = repair(network(1), states, images()).module
    for found in side_by_side([partial(job, *each) for each in ranks()]):
        assert_alike(found, expected)


def test_a_number_is_added_up_where_the_weights_are() -> None:
    assert total_number(alone, 7) == 7.0
    assert total_number(lambda tensor: 3 * tensor, 7) == 21.0
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"
