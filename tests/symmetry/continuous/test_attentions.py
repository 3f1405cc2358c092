"""Finding attentions: kernels, products around a softmax, and what only looks like one."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import INPUTS, Attention
from torch import Tensor, nn

from lightning_rebasin.symmetry.continuous.attentions import (
    attentions_of,
    consumers_of,
    next_product,
)
from lightning_rebasin.symmetry.continuous.projections import Projections
from lightning_rebasin.symmetry.run.examples import as_example
from lightning_rebasin.symmetry.trace.record import record


def projections_of(net: nn.Module) -> Projections:
    rows = torch.randn(2, 3, INPUTS)
    return Projections(record(net.eval(), as_example((rows,))))


@pytest.mark.parametrize("fused", [True, False])
def test_keys_values_and_what_comes_out(fused):
    projections = projections_of(Attention(fused=fused))
    (attention,) = attentions_of(projections)
    assert attention.fused == fused
    for value, name in ((attention.key, "k"), (attention.value, "v")):
        tensors = {rows.tensor for rows in projections.behind(value)}
        assert tensors == {f"{name}.weight", f"{name}.bias"}
    found = next_product(consumers_of(projections), attention.output)
    assert found is not None
    rows = projections.rows_of(found[0])
    assert rows is not None
    assert rows[0].tensor == "o.weight"


class OverQueries(nn.Module):
    """The softmax runs over the queries of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(INPUTS, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        return scores.softmax(-2) @ self.v(x)


def test_a_softmax_over_queries_is_no_attention():
    assert not list(attentions_of(projections_of(OverQueries())))


class Classifier(nn.Module):
    """A softmax without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(INPUTS, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(-1))


def test_a_softmax_alone_is_no_attention():
    found = list(attentions_of(projections_of(Classifier())))
    # Its weights would be those of a product with a weight, and nothing makes keys.
    assert all(attention.key == -1 for attention in found)


def test_a_value_that_goes_two_ways_has_no_next_product():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                nn.Linear(INPUTS, INPUTS) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + self.c(y)

    projections = projections_of(Twice())
    first = next(n for n in projections.tape.nodes if n.op == "aten.addmm")
    consumers = consumers_of(projections)
    assert next_product(consumers, first.outputs[0]) is None
