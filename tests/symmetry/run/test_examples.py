"""``example_input_array`` is an attribute of a LightningModule and its input at once: the input counts."""

from __future__ import annotations

import torch
from helpers.models import mlp
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_rebasin.symmetry.infer import infer_spec


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 4, 2)
        self.example_input_array = torch.zeros(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_constant_example_does_not_free_the_inputs() -> None:
    """As a constant of the model, an array of zeros would be free along every dimension."""
    net = Net()
    for spec in (infer_spec(net), infer_spec(net, net.example_input_array)):
        assert [group.size for group in spec.groups.values()] == [4]
        assert spec.maps["net.0.weight"].dims_of(next(iter(spec.groups))) == (
            0,
        )
