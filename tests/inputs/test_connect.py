"""Paths of low loss: the geometry is known, many pairs are what each is alone, and wrong input is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.input_spaces import (
    Quadratic,
    TokenClassifier,
    TwoMoons,
    itself,
    moon_distance,
    moon_loss,
)
from helpers.models import BatchNormCNN
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import connect_inputs, input_barrier
from lightning_rebasin.errors import ConfigurationError, DataError

#: Two points of the upper moon, 20° above the tips; the lower moon comes between them.
HORNS = torch.tensor([[-0.9397, 0.342]]), torch.tensor([[0.9397, 0.342]])
MOON = {"learning_rate": 0.02, "proximity": 0.0, "threshold": 0.5}


def test_a_path_goes_round_the_other_moon():
    module = TwoMoons()
    straight = input_barrier(module, *HORNS, 0)
    assert straight.maxima[0] > 8
    paths = connect_inputs(module, *HORNS, 0, **MOON)
    (path,) = paths
    assert paths.connected() == (True,)
    assert 2 <= path.pieces <= 8
    for k in range(201):
        point = path.input_at(k / 200).numpy().astype(float)
        # Between the measured points the loss may be a little higher.
        assert moon_loss(point, 0) < 0.55
        assert moon_distance(point, 0) < moon_distance(point, 1)
    assert torch.equal(path.corners[[0, -1]], torch.cat(HORNS))


def test_losses_on_a_path_are_those_of_its_inputs():
    (path,) = connect_inputs(TwoMoons(), *HORNS, 0, **MOON)
    for lam, loss in zip(path.lambdas, path.losses, strict=True):
        point = path.input_at(lam).numpy().astype(float)
        assert loss == pytest.approx(moon_loss(point, 0), rel=1e-2, abs=1e-3)


def test_a_low_segment_stays_straight():
    module = Quadratic(torch.eye(3), torch.zeros(3))
    a, b = 0.1 * torch.randn(2, 4, 3)
    paths = connect_inputs(module, a, b, None, loss=itself, points=5)
    assert all(path.pieces == 1 for path in paths)
    same = input_barrier(module, a, b, None, loss=itself, points=5)
    assert [p.losses for p in paths] == [p.losses for p in same]


def test_a_wall_without_a_gap_is_given_up():
    class Wall(nn.Module):
        def forward(self, x):
            return 3 * (-x[:, 0].square()).exp() + 0.01 * x[:, 1].square()

    a, b = torch.tensor([[-3.0, 0.5]]), torch.tensor([[3.0, 0.5]])
    paths = connect_inputs(Wall(), a, b, None, loss=itself, steps=50)
    assert paths.connected() == (False,)
    # More corners would not help where one could not get below.
    assert paths[0].pieces == 2
    assert paths[0].maximum == pytest.approx(3, abs=0.05)


def test_no_path_has_more_pieces_than_allowed():
    for most in (1, 2, 3):
        paths = connect_inputs(
            TwoMoons(),
            *HORNS,
            0,
            **{**MOON, "threshold": 0.01},
            max_pieces=most,
        )
        assert paths[0].pieces <= most
    assert paths[0].pieces == 3


def test_many_pairs_are_what_each_is_alone_whatever_the_chunk():
    module = TwoMoons().double()
    angles = torch.pi * torch.tensor([[0.1, 0.15, 0.2, 0.3], [0.9] * 4])
    a, b = torch.stack([angles.cos(), angles.sin()], 2).double()
    target = torch.zeros(4, dtype=torch.long)
    options = {**MOON, "threshold": 0.02, "steps": 150, "points": 9}
    together = connect_inputs(module, a, b, target, **options)
    assert len({path.pieces for path in together}) > 1
    for size in (7, 1000):
        chunked = connect_inputs(
            module, a, b, target, **options, chunk_size=size
        )
        assert np.allclose(chunked.maxima, together.maxima, rtol=1e-9)
    for i in range(len(a)):
        one = slice(i, i + 1)
        (alone,) = connect_inputs(
            module, a[one], b[one], target[one], **options
        )
        assert alone.pieces == together[i].pieces
        assert torch.allclose(
            alone.corners, together[i].corners, rtol=1e-7, atol=1e-9
        )
        assert np.allclose(alone.losses, together[i].losses, rtol=1e-7)


def test_no_more_inputs_than_a_chunk_go_through_the_network_at_once():
    module, seen = TwoMoons(), []
    module.register_forward_hook(lambda _m, x, _o: seen.append(len(x[0])))
    a, b = (end.expand(9, 2) for end in HORNS)
    connect_inputs(module, a, b, 0, **MOON, steps=3, chunk_size=4)
    assert max(seen) == 4


@pytest.mark.parametrize("inference", [False, True])
def test_the_module_and_the_generators_are_untouched(inference):
    module = nn.Sequential(BatchNormCNN(), nn.Dropout(0.5))
    with untouched(module), torch.inference_mode(inference):
        a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
        connect_inputs(
            module, a, b, 0, threshold=10.0, steps=2, bounds=(0.0, 1.0)
        )


def test_the_same_seed_gives_the_same_path():
    found = [
        connect_inputs(TwoMoons(), *HORNS, 0, **MOON, seed=seed)[0]
        for seed in (3, 3)
    ]
    assert torch.equal(found[0].corners, found[1].corners)
    assert found[0].losses == found[1].losses


def test_bounds_hold_along_the_whole_path():
    high = torch.tensor([1.0, 0.8])
    paths = connect_inputs(TwoMoons(), *HORNS, 0, **MOON, bounds=(-1.0, high))
    assert paths[0].pieces > 1
    assert bool((paths[0].corners <= high).all())
    free = connect_inputs(TwoMoons(), *HORNS, 0, **MOON)
    assert not bool((free[0].corners <= high).all())


def test_texts_are_joined_among_their_embeddings():
    torch.manual_seed(0)
    module = TokenClassifier()
    a, b = torch.randint(11, (2, 2, 5))
    paths = connect_inputs(
        module, a, b, 0, threshold=3.0, steps=5, embedding="words"
    )
    assert paths[0].corners.shape[1:] == (5, 8)


TWO = torch.zeros(2, 6), torch.ones(2, 6)


def linear():
    """The class is the first of three whose input is largest, by far."""
    module = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(10 * torch.eye(3, 6))
    return module


def test_another_class_at_an_end_is_refused():
    a, b = torch.zeros(2, 2, 6)
    a[:, 0] = b[0, 0] = b[1, 1] = 1.0
    message = r"the loss at x_b of pair 1 is 10, above threshold=0.5 already"
    with pytest.raises(DataError, match=message):
        connect_inputs(linear(), a, b, 0)
    with pytest.raises(DataError, match=r"x_a of pair 0 \(and 1 more\)"):
        connect_inputs(linear(), a, b, 1)


def test_a_loss_without_a_gradient_is_refused():
    class Step(nn.Module):
        def forward(self, x):
            return (x[:, 0].abs() < 1).float() + 0 * x[:, 1]

    a, b = torch.tensor([[-2.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    with pytest.raises(
        ConfigurationError, match=r"gradient of the loss .* is zero"
    ):
        connect_inputs(Step(), a, b, None, loss=itself)
    a, b = torch.zeros(2, 1, 6)
    a[0, 0] = b[0, 0] = 1.0
    b[0, 2] = 0.5

    def detached(output, target):
        return output.detach()[:, 2] * (4 - 8 * output.detach()[:, 2] / 10)

    with pytest.raises(ConfigurationError, match="not a differentiable"):
        connect_inputs(linear(), a, b, None, loss=detached)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold=-1.0: must be a finite number"),
        ({"proximity": float("nan")}, "proximity=nan"),
        ({"variation": -1.0}, "variation"),
        ({"points": 2}, "points=2: must be 3"),
        ({"max_pieces": 0}, "max_pieces=0"),
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"bounds": (1.0, 0.0)}, "low ≤ high"),
        ({"bounds": 3.0}, "bounds must be a pair"),
        ({"bounds": (0.0, torch.ones(5))}, "broadcast"),
        ({"bounds": (torch.zeros(4, 6), 1.0)}, "broadcast"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        connect_inputs(
            linear(),
            *TWO,
            None,
            **{"loss": lambda y, _: 0 * y[:, 0], **options},
        )


def test_an_end_outside_the_bounds_is_refused():
    with pytest.raises(DataError, match="x_b of pair 0 lies outside bounds"):
        connect_inputs(linear(), *TWO, 0, threshold=9.0, bounds=(0.0, 0.5))
