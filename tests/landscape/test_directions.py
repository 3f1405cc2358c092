"""Filter normalisation by norms, tied weights, seeds."""

from __future__ import annotations

import torch
from helpers.models import BatchNormCNN
from torch import nn

from lightning_rebasin.landscape.directions import (
    filter_normalised,
    random_direction,
    tied,
)


def test_every_filter_has_the_length_of_the_one_it_changes():
    torch.manual_seed(0)
    net = BatchNormCNN()
    weights = net.state_dict()
    direction = {n: torch.randn(t.shape) for n, t in net.named_parameters()}
    scaled = filter_normalised(direction, weights)
    moved = 0
    for name, change in scaled.items():
        if weights[name].ndim < 2:
            # Biases and the weights of normalisation layers.
            assert not change.any()
            continue
        moved += 1
        for filter_, own, drawn in zip(
            change, weights[name], direction[name], strict=True
        ):
            torch.testing.assert_close(filter_.norm(), own.norm())
            cosine = nn.functional.cosine_similarity(
                filter_.flatten(), drawn.flatten(), dim=0
            )
            torch.testing.assert_close(cosine, torch.tensor(1.0))
    assert moved >= 2


def test_filters_that_do_not_move_stay():
    scaled = filter_normalised(
        {"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3)}
    )
    assert not scaled["w"].any()


def test_a_random_direction_is_seeded_and_leaves_buffers_and_generators_alone():
    net = BatchNormCNN()
    state = net.state_dict()
    before = torch.get_rng_state()
    one, same = (random_direction(net, state, 5) for _ in range(2))
    other = random_direction(net, state, 6)
    assert torch.equal(before, torch.get_rng_state())
    assert set(one) == {name for name, _ in net.named_parameters()}
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_tied_weights_move_together():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    direction = random_direction(net, net.state_dict())
    assert direction["2.weight"] is direction["0.weight"]
    assert set(tied(net, {"0.bias": torch.ones(3)})) == {"0.bias"}
