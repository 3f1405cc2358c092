"""Origins of coordinates, against what the operations really do to numbers."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import (
    INPUTS,
    Attention,
    complex_numbers,
    first_units,
    halves,
    neighbours,
    rotate_half,
)
from torch import Tensor

from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.projections import Projections
from lightning_rebasin.symmetry.continuous.turns import Follower
from lightning_rebasin.symmetry.run.examples import as_example
from lightning_rebasin.symmetry.trace.record import record


def query_of(net: Attention) -> tuple[Follower, int]:
    """A follower and the number of the query value of the attention."""
    rows = torch.randn(2, 3, INPUTS)
    tape = record(net.eval(), as_example((rows,)))
    (node,) = [n for n in tape.nodes if "scaled_dot_product" in n.op]
    return Follower(Projections(tape)), node.arguments["query"].value


def really(change, size: int) -> list[set[int]]:  # type: ignore[no-untyped-def]
    """On which units each coordinate depends, by differentiating."""

    def last(units: Tensor) -> Tensor:
        found: Tensor = change(units.expand(3, size))[-1]
        return found

    jacobian = torch.autograd.functional.jacobian(
        last, torch.randn(size, dtype=torch.float64)
    )
    return [set(row.nonzero().reshape(-1).tolist()) for row in jacobian]


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize(
    "change", [halves, rotate_half, neighbours, complex_numbers, first_units]
)
def test_origins_are_what_differentiating_says(change, size):
    torch.manual_seed(0)
    follower, query = query_of(Attention(change, size=size, heads=1))
    found = follower.of(query)
    assert found is not None
    low, high = (t.reshape(-1).tolist() for t in (found.low, found.high))
    pairs = [{a, b} for a, b in zip(low, high, strict=True)]
    assert pairs == really(change, size)
    assert [rows.tensor for rows in found.rows] == ["q.weight", "q.bias"]


def test_every_head_has_columns_of_its_own():
    follower, query = query_of(Attention(packed="heads"))
    found = follower.of(query)
    assert found is not None
    assert found.is_plain
    # Rows are heads × (queries, keys, values) × 4 units.
    assert found.low.squeeze().tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


@pytest.mark.parametrize("function", [torch.tanh, torch.square])
def test_what_is_not_linear_is_named(function):
    follower, query = query_of(Attention(function))
    with pytest.raises(Limit, match="aten"):
        follower.of(query)
