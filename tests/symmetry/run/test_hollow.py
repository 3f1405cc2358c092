"""Networks without the memory of their weights have the same symmetries."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_rebasin import check_equivalence, infer_spec
from lightning_rebasin.errors import TraceError
from lightning_rebasin.merging.statistics import copied
from lightning_rebasin.symmetry import Permutation
from lightning_rebasin.symmetry.run.copy import private_copy
from lightning_rebasin.symmetry.run.hollow import (
    build_hollow,
    fill,
    hollowed,
    is_hollow,
    release,
)

TEXT = torch.arange(6)[None]


class Tied(nn.Module):
    """A tied head, a table that is a buffer, and a parameter of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("table", torch.randn(6, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x) * self.gain + self.table
        result: torch.Tensor = self.head(self.layer(h))
        return result


def stored(network: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in network.parameters())


def test_a_hollow_network_has_the_symmetries_of_a_real_one() -> None:
    hollow, real = build_hollow(Tied), Tied()
    assert stored(hollow) < 200
    assert hollow.head.weight is hollow.embedding.weight
    found, expected = infer_spec(hollow, TEXT), infer_spec(real, TEXT)
    # Where units can be seen depends on the kernels that run, and those on how weights lie in memory.
    assert expected.activations and not found.activations
    assert found == replace(expected, activations={})
    # Buffers are what the constructor made of them.
    assert hollow.table.std() > 0.5


def test_building_leaves_torch_as_it_was() -> None:
    before = nn.Module.register_parameter
    build_hollow(lambda: nn.Linear(2, 2))
    with pytest.raises(ZeroDivisionError):
        build_hollow(lambda: nn.Linear(2, 1 // 0))
    assert nn.Module.register_parameter is before
    assert not nn.Linear(2, 2).weight.is_meta


def test_copies_stay_hollow() -> None:
    """``deepcopy`` alone gives every parameter memory."""
    hollow = build_hollow(Tied)
    for copy_of in (copied(hollow), private_copy(hollow)):
        assert stored(copy_of) < 200
        assert copy_of.head.weight is copy_of.embedding.weight
        assert copy_of.head.weight is not hollow.head.weight
    assert stored(copy.deepcopy(hollow)) > 2000


def test_filled_and_released() -> None:
    network, real = build_hollow(Tied, torch.bfloat16), Tied().bfloat16()
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())
    fill(network)
    assert not any(is_hollow(p) for p in network.parameters())
    network.load_state_dict(real.state_dict())
    assert torch.equal(network.layer.linear1.weight, real.layer.linear1.weight)
    release(network)
    assert stored(network) < 200


def test_nothing_is_proved_without_weights() -> None:
    hollow = build_hollow(Tied)
    spec = infer_spec(hollow, TEXT)
    moved = Permutation.random(spec, torch.Generator().manual_seed(0))
    with pytest.raises(TraceError, match="without values"):
        check_equivalence(hollow, moved, TEXT)
    assert check_equivalence(Tied(), moved, TEXT) < 1e-12


def test_what_is_hollow() -> None:
    assert is_hollow(hollowed(torch.ones(3, 2)))
    assert not is_hollow(torch.ones(()))
    # One row repeated is not nothing.
    assert not is_hollow(torch.ones(2).expand(3, 2))
    meta = torch.empty(3, device="meta", dtype=torch.float64)
    assert hollowed(meta).dtype == torch.float64
    assert not hollowed(meta).is_meta
