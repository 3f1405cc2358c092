"""One operation as a walk sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.continuous import mixing, operations
from lightning_rebasin.symmetry.continuous.operations import Step


def steps_of(net: nn.Module, group: str, *inputs: Tensor) -> list[Step]:
    """All steps that the walk of one group takes."""
    seen: list[Step] = []
    real = operations.steps_of

    def watched(tapes, name, size):  # type: ignore[no-untyped-def]
        found = list(real(tapes, name, size))
        seen.extend(found if name == group else [])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "steps_of", watched)
        infer_spec(net, *inputs, kinds="all")
    return seen


class Whole(nn.Module):
    """A sum over all units, over some of them, and over something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        whole = h.square().sum(-1, keepdim=True)
        other = h.sum(0)
        return self.b(h / (1 + whole)) + self.b(other)


def test_reductions_over_whole_instances_are_told_from_others():
    torch.manual_seed(0)
    steps = steps_of(Whole(), "a", torch.randn(5, 2))
    sums = [step for step in steps if step.op == "aten.sum"]
    over = [s.reduces_whole_instances(s.carriers[0]) for s in sums]
    assert over == [True, False]
    assert [bool(step.results) for step in sums] == [False, True]


def test_what_carries_and_what_does_not():
    torch.manual_seed(0)
    steps = steps_of(Whole(), "a", torch.randn(5, 2))
    divided = next(step for step in steps if step.op == "aten.div")
    assert len(divided.carriers) == 1
    assert len(divided.others) == 1
    assert divided.carried("self") == divided.carriers[0]
    assert divided.carried("other") is None
    assert divided.ref("other") == divided.others[0]
    assert divided.ref("") is None


def test_names_are_those_of_aten():
    assert operations.names("a b", "c") == {"aten.a", "aten.b", "aten.c"}
