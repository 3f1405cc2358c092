"""What counts as a layer, in networks of all kinds."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier
from helpers.models import BatchNormCNN
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.layers import layers_of, ordered
from lightning_rebasin.landscape.weights import weights_of


def all_tensors(layers):
    return sorted(name for own in layers.values() for name in own)


def test_every_tensor_is_in_one_layer_and_norms_follow_their_layer():
    net = Classifier(batch_norm=True)
    layers = layers_of(net)
    assert list(layers) == ["net.fc1", "net.fc2"]
    assert layers["net.fc1"] == (
        "net.fc1.weight",
        "net.fc1.bias",
        "net.norm.weight",
        "net.norm.bias",
        "net.norm.running_mean",
        "net.norm.running_var",
        "net.norm.num_batches_tracked",
    )
    for other in (net, BatchNormCNN()):
        assert all_tensors(layers_of(other)) == sorted(weights_of(other))


def test_a_norm_in_front_stands_alone():
    net = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
    assert list(layers_of(net)) == ["0", "1"]


def test_tied_tensors_move_with_the_first_owner_and_shared_modules_are_one():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert layers_of(net) == {
        "0": ("0.weight", "0.bias", "1.weight"),
        "1": ("1.bias",),
    }
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    assert layers_of(net) == {
        "0": ("0.weight", "0.bias", "2.weight", "2.bias")
    }


def test_parametrized_fused_and_own_tensors():
    net = nn.Sequential(
        weight_norm(nn.Linear(2, 4)), nn.MultiheadAttention(4, 2)
    )
    layers = layers_of(net)
    assert list(layers) == ["0", "1", "1.out_proj"]
    assert set(layers["0"]) == {
        "0.bias",
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }
    assert "1.in_proj_weight" in layers["1"]

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.fc = nn.Linear(1, 1)

    assert layers_of(Own())[""] == ("scale",)


def test_compiled_names_are_plain():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    expected = layers_of(net)
    net[0] = torch.compile(net[0], backend="eager")
    net[1] = torch.compile(net[1], backend="eager")
    assert layers_of(net) == expected


def test_layers_by_hand():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    layers = layers_of(net, {"late": ["2"], "early": ["0.weight", "1"]})
    assert list(layers) == ["late", "early"]
    assert layers["early"][0] == "0.weight"
    assert "0.bias" not in all_tensors(layers)
    with pytest.raises(ConfigurationError, match="'3' of layer 'x'"):
        layers_of(net, {"x": ["3"]})
    with pytest.raises(
        ConfigurationError, match=r"'0\.bias' is in 'x' and in"
    ):
        layers_of(net, {"x": ["0.bias"], "y": ["0"]})
    with pytest.raises(ConfigurationError, match="owns no tensors"):
        layers_of(nn.ReLU())


def test_orders():
    layers = {name: (f"{name}.w",) for name in "abcdef"}
    assert list(ordered(layers, "forward")) == list("abcdef")
    assert list(ordered(layers, "backward")) == list("fedcba")
    assert list(ordered(layers, ["c", "a"])) == ["c", "a"]
    assert ordered(layers, ["c"])["c"] == ("c.w",)
    shuffled = list(ordered(layers, "random", 1))
    assert sorted(shuffled) == list("abcdef")
    assert shuffled == list(ordered(layers, "random", 1))
    assert shuffled != list(ordered(layers, "random", 2))
    for wrong in ("sideways", ["z"], ["a", "a"], []):
        with pytest.raises(ConfigurationError, match="order"):
            ordered(layers, wrong)
