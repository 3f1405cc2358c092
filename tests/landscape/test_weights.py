"""The weights of a module: names of checkpoints, storage of the module, no states of metrics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_rebasin.errors import StateDictError
from lightning_rebasin.landscape.weights import (
    check_ends,
    weights_of,
    without_compilation_prefix,
)


def test_names_are_those_of_the_plain_module_and_storage_is_shared():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    plain = set(net.state_dict())
    net[0] = torch.compile(net[0], backend="eager")
    found = weights_of(torch.compile(net, backend="eager"))
    assert set(found) == plain
    found["0.weight"].zero_()
    assert not bool(net[0].weight.any())
    assert set(without_compilation_prefix(net.state_dict())) == plain


def test_persistent_states_of_metrics_are_left_out():
    module = nn.Module()
    module.layer = nn.Linear(2, 2)
    module.mean = MeanMetric()
    module.mean.persistent(mode=True)
    assert any(name.startswith("mean.") for name in module.state_dict())
    assert set(weights_of(module)) == {"layer.weight", "layer.bias"}


def test_ends_that_do_not_fit_are_named():
    net = nn.Linear(2, 2)
    good = net.state_dict()
    check_ends(net, good, good)
    with pytest.raises(StateDictError, match=r"b \(λ = 1\).*'bias'"):
        check_ends(net, good, {"weight": good["weight"]})
