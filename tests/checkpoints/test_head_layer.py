"""The head is found by looking at a run, and what cannot be one is refused."""

import pytest
import torch
from helpers.models import mlp
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_rebasin.checkpoints.head_layer import (
    different_heads,
    find_head,
)
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.run.examples import Example

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Misleading(nn.Module):
    """The layer that is called the classifier is not the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(8, 3)
        self.classifier = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.features(self.classifier(x).relu())}


class Two(nn.Module):
    """A network with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 2)
        self.two = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


def test_the_name_does_not_matter() -> None:
    assert find_head(Misleading(), [X]) == "features"
    assert find_head(nn.Linear(6, 2), [X]) == ""


def test_hooks_are_gone_afterwards() -> None:
    net = mlp(6, 4, 3)
    find_head(net, [X])
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(mlp(6, 4, 3), nn.Softmax(1)), "something else"),
        (nn.Sequential(mlp(6, 4, 3), nn.ReLU(inplace=True)), "something else"),
        (Two(), r"several layers \(one, two\)"),
        (weight_norm(nn.Linear(6, 3)), "parametrization"),
    ],
)
def test_what_is_no_head_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        find_head(net, [X])


def test_a_weight_of_two_layers_is_refused() -> None:
    net = mlp(6, 6, 6)
    net[2].weight = net[0].weight
    with pytest.raises(ConfigurationError, match=r"0\.weight, 2\.weight"):
        find_head(net, [X])


def test_a_step_has_no_head() -> None:
    with pytest.raises(ConfigurationError, match="that its forward takes"):
        find_head(mlp(6, 4, 3), [Example((X,), method="validation_step")])


def test_only_rows_of_one_layer_may_differ() -> None:
    first = mlp(6, 4, 3).state_dict()
    assert different_heads([first, mlp(6, 4, 2).state_dict()]) == "2"
    assert different_heads([first, first]) == ""
    assert different_heads([first, mlp(6, 5, 3).state_dict()]) == ""
    assert different_heads([first, mlp(7, 4, 2).state_dict()]) == ""
