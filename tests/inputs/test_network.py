"""A network held fixed: a private copy, with an embedding that can be replaced."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier
from helpers.input_spaces import TokenClassifier
from helpers.models import BatchNormCNN
from helpers.untouched import snapshot, untouched
from torch import nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs.network import InputNetwork, alone


def test_the_copy_shares_weights_and_asks_for_no_gradient():
    module = BatchNormCNN()
    network = InputNetwork(module)
    like = next(module.parameters())
    own = next(network._module.parameters())
    assert own.data_ptr() == like.data_ptr()
    assert not any(p.requires_grad for p in network._module.parameters())
    assert all(p.requires_grad for p in module.parameters())


def test_it_runs_in_eval_mode():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
    network, x = InputNetwork(module), torch.randn(5, 3)
    assert torch.allclose(network(x), x, atol=1e-4)
    assert module.training


def test_a_compiled_and_a_wrapped_network_are_unwrapped():
    inner = nn.Linear(3, 2)
    for module in (
        torch.compile(inner, backend="eager"),
        nn.DataParallel(inner),
    ):
        network = InputNetwork(module)
        assert network.name == "Linear"
        assert network(torch.zeros(1, 3)).shape == (1, 2)


def test_a_forward_that_logs_needs_no_trainer():
    class Logging(Classifier):
        def forward(self, x):
            out = super().forward(x)
            self.log("size", out.norm())
            return out

    module = Logging()
    with untouched(module):
        assert InputNetwork(module)(torch.zeros(2, 6)).shape == (2, 3)


def test_replaced_embeddings_give_the_output_of_their_tokens():
    module = TokenClassifier()
    network = InputNetwork(module, "words")
    tokens = torch.randint(11, (3, 5))
    points = network.embed(tokens)
    assert torch.equal(points, module.words.weight[tokens])
    assert torch.allclose(network(points, tokens), module(tokens))
    # Others carry them just as well: positions and lengths alone come from there.
    assert torch.allclose(network(points, tokens.flip(0)), module(tokens))
    assert not module.words._forward_hooks


def test_nothing_is_left_in_the_generators():
    module = nn.Linear(2, 2)
    before = snapshot(module)
    with alone():
        torch.rand(3)
    after = snapshot(module)
    assert torch.equal(before["torch"], after["torch"])
    assert before["numpy"] == after["numpy"]


def test_a_network_without_weights_is_one():
    network = InputNetwork(nn.Flatten())
    assert network.like.dtype == torch.float32


def test_what_fails_says_on_which_input():
    network = InputNetwork(nn.Linear(3, 2))
    with pytest.raises(DataError, match=r"Linear cannot .* shape \(1, 4\)"):
        network.try_out(torch.zeros(1, 4), None)
