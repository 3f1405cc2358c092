"""What a plan knows of a pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.a(x)
        second = torch.relu(first)
        torch.tanh(x)
        return self.b(second) + second, first


def flow() -> Flow:
    module = Net().eval()
    return Flow(record(module, Example((torch.randn(2, 3),))), 2)


def position(found: Flow, op: str, run: int = 0) -> int:
    places = {place: p for p, place in found.places.items() if p in found.live}
    return [p for place, p in places.items() if place.op == op][run]


def test_dead_operations_are_no_part() -> None:
    ops = [node.op for node in flow().live.values()]
    assert "aten.tanh" not in ops
    assert ops.count("aten.addmm") == 2


def test_the_only_user_is_an_operation_that_sees_a_value_alone() -> None:
    found = flow()
    product = found.live[position(found, "aten.addmm", 1)].outputs[0]
    assert found.only_user(product) == position(found, "aten.add")
    relu = found.live[position(found, "aten.relu")].outputs[0]
    # the second layer and the sum
    assert found.only_user(relu) is None
    first = found.live[position(found, "aten.addmm")].outputs[0]
    # relu, but the caller sees it as well
    assert found.only_user(first) is None


def test_a_value_is_known_when_its_layers_have_run() -> None:
    found = flow()
    first, second = (position(found, "aten.addmm", run) for run in (0, 1))
    relu = found.live[position(found, "aten.relu")].outputs[0]
    assert found.known_before(relu, second)
    assert found.known_before(relu, first)
    product = found.live[second].outputs[0]
    assert not found.known_before(product, first)
    assert found.known_before(product, second)


def test_shapes_are_those_of_the_values() -> None:
    found = flow()
    value = found.live[position(found, "aten.addmm")].outputs[0]
    assert tuple(found.shape(value)) == (2, 3)
    assert found.samples == 2
