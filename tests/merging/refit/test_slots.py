"""Which elements of which tensor an operand is: read, written back, and counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record
from lightning_rebasin.symmetry.trace.tape import Node


def flow_of(module: nn.Module, x: Tensor) -> Flow:
    return Flow(record(module.eval(), Example((x,))), len(x))


def nodes(flow: Flow, op: str) -> list[Node]:
    return [node for node in flow.live.values() if node.op == op]


class Pieces(nn.Module):
    """Uses the rows of one weight apart: a third, a transposed half, and the last row twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(18.0).reshape(6, 3))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        first = x @ self.weight[:2].t()
        second = x @ self.weight[2:5]
        third = x @ self.weight[5:].t()
        fourth = x @ self.weight[5:].t()
        return torch.cat([first, second, third, fourth], 1)


def test_operands_are_traced_to_elements_of_the_parameter() -> None:
    module = Pieces()
    flow = flow_of(module, torch.zeros(4, 3))
    found = [
        flow.uses.slots(n.arguments["mat2"]) for n in nodes(flow, "aten.mm")
    ]
    flat = module.weight.detach().reshape(-1)
    expected = [
        module.weight[:2].t(),
        module.weight[2:5],
        module.weight[5:].t(),
        module.weight[5:].t(),
    ]
    for slots, piece in zip(found, expected, strict=True):
        assert slots is not None
        assert slots.name == "weight"
        assert torch.equal(flat[slots.index], piece.detach())
    uses = [flow.uses.uses(slots) for slots in found if slots is not None]
    assert uses == [1, 1, 2, 2]
    once = [flow.uses.exclusive(s) for s in found if s is not None]
    assert once == [True, True, False, False]
    assert flow.uses.operations("weight") == {"aten.mm"}
    assert flow.uses.operations("unused") == set()


def test_data_are_no_part_of_the_state() -> None:
    flow = flow_of(Pieces(), torch.zeros(4, 3))
    for node in nodes(flow, "aten.mm"):
        assert flow.uses.slots(node.arguments["self"]) is None
    assert flow.uses.slots(3.0) is None


def test_an_element_that_stands_twice_is_not_exclusive() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.ones(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.row.expand(3, 2)

    flow = flow_of(Repeated(), torch.zeros(4, 3))
    (node,) = nodes(flow, "aten.mm")
    slots = flow.uses.slots(node.arguments["mat2"])
    assert slots is not None
    assert not flow.uses.exclusive(slots)
    # although one operation uses it
    assert flow.uses.uses(slots) == 1


def test_what_is_written_is_read_again_and_the_rest_is_kept() -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3)}
    slots = Slots("w", torch.tensor([[5], [0]]))
    slots.write(state, torch.tensor([[7.0], [8.0]], dtype=torch.float64))
    assert state["w"].tolist() == [[8, 1, 2], [3, 4, 7]]
    assert slots.read(state).tolist() == [[7], [8]]
    assert slots.read(state).dtype == torch.float64


def test_channels_last_tensors_and_narrow_types_are_written_in_place() -> None:
    weight = torch.zeros(2, 3, 2, 2, dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    slots = Slots("w", torch.arange(24).reshape(2, 3, 2, 2))
    values = torch.arange(24.0).reshape(2, 3, 2, 2).double()
    slots.write({"w": weight}, values)
    assert torch.equal(weight.double(), values)
    assert weight.is_contiguous(memory_format=torch.channels_last)
