"""Finding the weights that make queries and keys, and what is not made by them."""

from __future__ import annotations

import torch
from helpers.attention import INPUTS, Attention, halves
from torch import nn

from lightning_rebasin.symmetry.continuous.projections import Projections
from lightning_rebasin.symmetry.run.examples import as_example
from lightning_rebasin.symmetry.trace.record import record
from lightning_rebasin.symmetry.trace.tape import Node


def projections_of(net: Attention) -> tuple[Projections, Node]:
    """The projections of a network, and its attention."""
    torch.manual_seed(0)
    rows = torch.randn(2, 3, INPUTS)
    tape = record(net.eval(), as_example((rows,)))
    (node,) = [n for n in tape.nodes if "scaled_dot_product" in n.op]
    return Projections(tape), node


def test_weights_and_biases_behind_queries():
    projections, node = projections_of(Attention())
    query = node.arguments["query"].value
    assert projections.are_all_behind(query)
    rows = {r.tensor: r.dim for r in projections.behind(query)}
    assert rows == {"q.weight": 0, "q.bias": 0}


def test_rows_of_a_weight_that_is_split_before_it_is_used():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight[2:5].T

    tape = record(Split(), as_example((torch.randn(3, 4),)))
    (node,) = [n for n in tape.nodes if n.op == "aten.mm"]
    rows = Projections(tape).rows_of(node)
    assert rows is not None
    assert (rows[0].tensor, rows[0].dim) == ("weight", 0)
    assert rows[0].places.tolist() == [2, 3, 4]


def test_mixed_values_are_not_made_by_projections_alone():
    projections, node = projections_of(Attention())
    assert not projections.are_all_behind(node.outputs[0])


def test_only_turned_queries_are_turned():
    for between, turned in ((halves, True), (nn.Identity(), False)):
        projections, node = projections_of(Attention(between))
        query = node.arguments["query"].value
        assert projections.is_turned(query) == turned
