"""Lengths among outputs: closed forms of softmax outputs and of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.classifier import val_loader
from helpers.models import BatchNormCNN
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from scipy.spatial.distance import jensenshannon
from torch import nn

from lightning_rebasin import geodesic_length
from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.landscape.paths import Line


def logit_net():
    """Two classes with logits (0, w) whatever the input."""
    return nn.Linear(1, 2, bias=False).double()


def at(w):
    return {"weight": torch.tensor([[0.0], [w]], dtype=torch.float64)}


def js(v, w):
    p = torch.tensor([0.0, v], dtype=torch.float64).softmax(0)
    q = torch.tensor([0.0, w], dtype=torch.float64).softmax(0)
    return float(jensenshannon(p, q)) ** 2


ONES = [torch.ones(3, 1, dtype=torch.float64)]


def test_the_straight_path_of_known_divergences():
    found = geodesic_length(logit_net(), Line(at(0.0), at(4.0)), ONES, 5)
    expected = [js(k, k + 1) for k in range(4)]
    assert found.divergences == pytest.approx(expected, rel=1e-9)
    assert found.ends == pytest.approx(js(0, 4), rel=1e-9)
    assert found.energy == pytest.approx(sum(expected), rel=1e-9)
    length = sum(math.sqrt(8 * x) for x in expected)
    assert found.length == pytest.approx(length, rel=1e-9)
    assert found.normalised_length == pytest.approx(
        length / math.sqrt(8 * js(0, 4)), rel=1e-9
    )
    assert found.samples == 3


def test_fine_steps_give_the_arc_on_the_sphere():
    """Two classes: the length of Fisher and Rao is ``2·arccos Σ √(p q)``."""
    found = geodesic_length(logit_net(), Line(at(-1.0), at(3.0)), ONES, 401)
    p = torch.tensor([0.0, -1.0], dtype=torch.float64).softmax(0)
    q = torch.tensor([0.0, 3.0], dtype=torch.float64).softmax(0)
    expected = 2 * math.acos(float((p * q).sqrt().sum()))
    assert found.length == pytest.approx(expected, rel=1e-5)


def test_samples_are_averaged_over_batches_of_unequal_size():
    x = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    whole = geodesic_length(logit_net(), Line(at(0.0), at(1.0)), [x], 3)
    parts = geodesic_length(
        logit_net(), Line(at(0.0), at(1.0)), [x[:1], x[1:]], 3
    )
    assert parts.divergences == pytest.approx(whole.divergences, rel=1e-12)
    expected = (js(0, 0.25) + js(0, 0.5) + js(0, 1.0)) / 3
    assert whole.divergences[0] == pytest.approx(expected, rel=1e-9)


def test_a_detour_is_longer_and_a_closed_path_has_no_ratio():
    net = logit_net()
    straight = geodesic_length(net, [at(0.0), at(1.0)], ONES, 9)
    detour = geodesic_length(net, [at(0.0), at(3.0), at(1.0)], ONES, 9)
    assert 1.0 <= straight.normalised_length < 1.01
    assert detour.normalised_length > 2.0
    closed = geodesic_length(net, [at(0.0), at(3.0), at(0.0)], ONES, 9)
    assert math.isnan(closed.normalised_length)


def test_statistics_are_re_estimated_and_output_chooses():
    torch.manual_seed(0)
    net = BatchNormCNN()
    a, b = (BatchNormCNN().state_dict() for _ in range(2))
    images = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    plain = geodesic_length(net, [a, b], images, 3)
    reset = geodesic_length(net, [a, b], images, 3, batch_norm=images)
    assert abs(plain.length / reset.length - 1) > 0.01
    sharp = geodesic_length(
        net, [a, b], images, 3, output=lambda m, x: 5 * m(x)
    )
    assert sharp.length > plain.length


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True)
    train = list(val_loader(seed=3))
    with untouched(module):
        geodesic_length(module, [a, b], val_loader(), 3, batch_norm=train)


def test_wrong_input_is_named():
    with pytest.raises(ConfigurationError, match="output="):
        geodesic_length(
            nn.Linear(1, 1),
            [nn.Linear(1, 1).state_dict()] * 2,
            [torch.ones(1, 1)],
        )
    with pytest.raises(DataError, match="no batch"):
        geodesic_length(logit_net(), [at(0.0), at(1.0)], [])
