"""Biases that an attention passes on: the arithmetic against attention itself, files, and nonsense in files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.attention import ROWS, Attention, proved_spec
from torch.func import functional_call

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry import PermutationSpec
from lightning_rebasin.symmetry.spec.passed_biases import (
    PassedBias,
    biases_from_list,
    biases_to_list,
    without_bias,
)

PASSED = PassedBias("v.bias", tuple(range(8)), "o.weight", 1, "o.bias")
CANCELLED = PassedBias("k.bias", tuple(range(8)))


@pytest.mark.parametrize("bias", [PASSED, CANCELLED])
def test_attention_without_a_bias_is_the_same_function(bias):
    torch.manual_seed(0)
    net = Attention().double()
    state = net.state_dict()
    changed = without_bias(bias, state)
    assert not changed[bias.bias].any()
    found = functional_call(net, {**state, **changed}, (ROWS,))
    torch.testing.assert_close(found, net(ROWS), rtol=1e-12, atol=1e-12)
    # The bias matters: without the other half the function is another one.
    state[bias.bias] = torch.zeros(8).double()
    if bias.weight:
        assert not torch.allclose(
            functional_call(net, state, (ROWS,)), net(ROWS)
        )


def test_some_entries_of_a_packed_bias():
    some = PassedBias("b", (1, 1), "w", 0, "o")
    state = {
        "b": torch.tensor([1.0, 2.0, 3.0]),
        "w": torch.tensor([[1.0, 10.0], [1.0, 10.0]]),
        "o": torch.zeros(2),
    }
    changed = without_bias(some, state)
    assert changed["b"].tolist() == [1, 0, 3]
    # Both inputs of the weight come from entry 1; inputs are its rows.
    assert changed["o"].tolist() == [4, 40]


def test_biases_survive_a_file():
    torch.manual_seed(0)
    spec = proved_spec(Attention(packed="parts"))
    assert len(spec.biases) == 2
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.biases == spec.biases
    assert biases_from_list(biases_to_list(spec.biases)) == spec.biases


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (replace(PASSED, bias="nothing"), "'nothing'"),
        (replace(PASSED, entries=(99,) * 8), "entries"),
        (replace(PASSED, entries=(0,)), "do not fit"),
        (replace(PASSED, into="k.bias"), "do not fit"),
        (replace(PASSED, weight="o.bias"), "no matrix"),
        (replace(PASSED, dim=2), "no matrix"),
        (replace(CANCELLED, bias="k.weight"), "entries"),
    ],
)
def test_nonsense_is_refused_by_name(wrong, word):
    torch.manual_seed(0)
    spec = proved_spec(Attention())
    with pytest.raises(SpecError, match=word):
        replace(spec, biases=(wrong,))
