"""What is learned, what stays, what a call needs."""

import pytest
import torch
from helpers.valleys import Valley
from lightning.pytorch import LightningModule
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.tensors import TensorNames, check_built


class Net(nn.Module):
    """A tied layer, a batch norm, a table."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_every_tensor_has_its_place():
    net = Net()
    net.first.bias.requires_grad_(requires_grad=False)
    names = TensorNames(net, net)
    assert names.trained == (
        "first.weight",
        "second.bias",
        "norm.weight",
        "norm.bias",
    )
    assert names.fixed == ("first.bias", "table")
    assert names.aliases == {"second.weight": "first.weight"}
    assert names.statistics == {
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert "second.weight" not in names.callable
    assert set(names.callable) > set(names.fixed) | names.statistics


class Late(LightningModule):
    """Built by the trainer."""

    def configure_model(self):
        self.net = nn.Linear(1, 1)


def test_what_is_not_built_yet_is_refused():
    check_built(Valley())
    with pytest.raises(ConfigurationError, match="configure_model"):
        check_built(Late())
    with pytest.raises(ConfigurationError, match="no parameters"):
        check_built(nn.ReLU())
    with pytest.raises(ConfigurationError, match="first forward"):
        check_built(nn.LazyLinear(2))
