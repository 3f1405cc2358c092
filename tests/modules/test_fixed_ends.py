"""Ends that change nothing but the order of their units."""

import copy

import pytest
import torch
from helpers.models import mlp

from lightning_rebasin import Permutation, infer_spec
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.fixed_ends import FixedEnds, packed, unpacked


def made():
    net = mlp(3, 5, 2)
    ends = [copy.deepcopy(mlp(3, 5, 2).state_dict()) for _ in range(2)]
    spec = infer_spec(net, torch.zeros(1, 3))
    draw = torch.Generator().manual_seed(0)
    found = [Permutation.random(spec, draw) for _ in range(2)]
    return net, ends, FixedEnds(net, ends), found


def test_permutations_apply_to_the_weights_as_given():
    _, given, ends, (first, second) = made()
    ends.permute(1, first)
    ends.permute(1, second)
    expected = second.apply(given[1])
    for name, tensor in ends.states[1].items():
        assert torch.equal(tensor, expected[name])
        assert torch.equal(ends.original(1)[name], given[1][name])
        assert torch.equal(ends.states[0][name], given[0][name])


def test_they_are_copies():
    _, given, ends, _ = made()
    kept = given[0]["0.bias"].clone()
    given[0]["0.bias"].zero_()
    assert torch.equal(ends.states[0]["0.bias"], kept)


def test_the_network_shares_the_first_ones_memory_and_sets_the_dtype():
    net, _, ends, _ = made()
    ends.place(net.double())
    for name, parameter in net.named_parameters():
        assert parameter.dtype == torch.float64
        for state in ends.states:
            assert state[name].dtype == torch.float64
        assert parameter.data_ptr() == ends.states[0][name].data_ptr()


def test_permutations_are_kept_as_plain_values():
    net, given, ends, (first, _) = made()
    assert unpacked(packed(first)) == first
    ends.permute(1, first)
    again = FixedEnds(net, given)
    again.load_state(ends.to_state())
    assert again.permutations == [None, first]
    for name, tensor in ends.states[1].items():
        assert torch.equal(tensor, again.states[1][name])
    with pytest.raises(ConfigurationError, match="through 1 ends"):
        again.load_state([None])
