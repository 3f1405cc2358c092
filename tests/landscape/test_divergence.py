"""Jensen–Shannon divergences against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.divergence import (
    forward,
    jensen_shannon,
    log_probabilities,
)


def test_it_is_scipys_squared_distance_averaged_over_samples():
    torch.manual_seed(0)
    p, q = (torch.randn(6, 5, dtype=torch.float64) for _ in range(2))
    expected = jensenshannon(p.softmax(1), q.softmax(1), axis=1) ** 2
    found = jensen_shannon(p.log_softmax(1), q.log_softmax(1))
    assert float(found) == pytest.approx(expected.mean(), rel=1e-12)
    pixels = [x.reshape(2, 3, 5).movedim(-1, 1) for x in (p, q)]
    found = jensen_shannon(*(x.log_softmax(1) for x in pixels))
    assert float(found) == pytest.approx(expected.mean(), rel=1e-12)


def test_opposite_outputs_are_ln_2_apart():
    logits = torch.tensor([[50.0, -50.0]], dtype=torch.float64)
    one, other = logits.log_softmax(1), (-logits).log_softmax(1)
    assert float(jensen_shannon(one, other)) == pytest.approx(math.log(2))


def test_eight_times_it_is_the_length_of_fisher_and_rao():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    step = 1e-4 * torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64)
    p, q = logits.softmax(1), (logits + step).softmax(1)
    expected = float(((q - p).square() / p).sum())
    found = 8 * float(jensen_shannon(p.log(), q.log()))
    assert found == pytest.approx(expected, rel=1e-3)


def test_single_precision_is_compared_in_double():
    assert log_probabilities(torch.zeros(2, 3)).dtype == torch.float64


@pytest.mark.parametrize("output", [torch.zeros(3), torch.zeros(3, 1), "text"])
def test_outputs_that_are_no_logits_are_refused(output):
    with pytest.raises(ConfigurationError, match="output="):
        log_probabilities(output)


def test_the_input_is_the_first_item_of_a_batch():
    net = nn.Linear(2, 3)
    x = torch.ones(4, 2)
    for batch in (x, (x, "label"), [x], {"input": x}):
        assert torch.equal(forward(net, batch), net(x))
