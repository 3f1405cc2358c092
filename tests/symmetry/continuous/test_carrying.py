"""Where values carry groups, and which operations have to do with a group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.continuous import candidates
from lightning_rebasin.symmetry.continuous.carrying import Carrying, Seat


def carrying_of(net: nn.Module, *inputs: Tensor) -> Carrying:
    """What the second analysis works with."""
    kept = []

    class Kept(Carrying):
        def __init__(self, *args) -> None:  # type: ignore[no-untyped-def]
            super().__init__(*args)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "Carrying", Kept)
        infer_spec(net, *inputs, kinds="all")
    (carrying,) = kept
    return carrying


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))


def test_a_group_meets_its_own_operations_only():
    net = nn.Sequential(*chain(), nn.Tanh(), nn.Linear(3, 2))
    carrying = carrying_of(net, torch.randn(5, 2))
    ops = [met.node.op for met in carrying.touching("0")]
    # The first product, the activation, and the second product with its transposed weights.
    assert [op for op in ops if op != "aten.t"] == [
        "aten.addmm",
        "aten.relu",
        "aten.addmm",
    ]
    ops = {met.node.op for met in carrying.touching("2")}
    assert "aten.tanh" in ops
    assert "aten.relu" not in ops
    assert not carrying.touching("nobody")


def test_seats_say_along_which_dimension_units_stand():
    carrying = carrying_of(chain(), torch.randn(5, 2))
    (relu,) = [
        m.node for m in carrying.touching("0") if m.node.op == "aten.relu"
    ]
    assert carrying.of(relu.outputs[0])["0"] == Seat(frozenset({1}))


def test_an_empty_cache_is_no_operand():
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat([x.new_zeros(0), self.a(x)], -2))

    torch.manual_seed(0)
    x = torch.randn(2, 5, 2)
    carrying = carrying_of(Cached(), x)
    (cat,) = [m for m in carrying.touching("a") if m.node.op == "aten.cat"]
    assert len(cat.operands) == 1
    assert infer_spec(Cached(), x, kinds="all").groups["a"].kind == "linear"


def test_two_seats_of_one_value_are_two_axes():
    both = Seat(frozenset({0})).beside(Seat(frozenset({1}), whole=False))
    assert both == Seat(frozenset({0, 1}), axes=2, whole=False)
