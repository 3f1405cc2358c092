"""The table of contractions: a new operation renumbers nothing, and what old files count never changes."""

import pytest
import torch
from torch import nn

from lightning_rebasin.symmetry import infer_spec, observe
from lightning_rebasin.symmetry.observe import record_activations
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.trace import mode
from lightning_rebasin.symmetry.trace.contractions import (
    CONTRACTIONS,
    COUNTED_TOGETHER,
)

#: What version 1 of the format counted, written out once more.
FROZEN = """
mm bmm mv dot addmm addmv baddbmm convolution _scaled_dot_product_flash_attention_for_cpu
_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
"""


def test_what_old_files_count_never_changes():
    assert {f"aten.{name}" for name in FROZEN.split()} == COUNTED_TOGETHER
    assert set(CONTRACTIONS) >= COUNTED_TOGETHER


@pytest.mark.parametrize("op", CONTRACTIONS)
def test_operands_are_arguments_of_the_operation(op):
    packet = getattr(torch.ops.aten, op.removeprefix("aten."))
    schema = getattr(packet, packet.overloads()[0])._schema
    names = [argument.name for argument in schema.arguments]
    assert set(CONTRACTIONS[op]) <= set(names)


class Net(nn.Module):
    """Between its linear layers it multiplies by itself, which a later version might call a contraction."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Linear(3, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        x = self.a(x)
        x = self.b(x * x)
        return self.c(x * x)


def seen(spec, net, x):
    found = []
    with (
        torch.no_grad(),
        record_activations(
            spec, lambda place, t: found.append((place, place.units(t)))
        ),
    ):
        net(x)
    return found


def places(spec):
    return [
        (a.component.group, a.op, a.ordinal, a.argument)
        for addresses in spec.activations.values()
        for a in addresses
    ]


@pytest.fixture
def with_a_new_operation(monkeypatch):
    """Call to add ``aten.mul`` to the table, as a later version might."""

    def add():
        table = {"aten.mul": ("self", "other"), **CONTRACTIONS}
        for module in (mode, observe):
            monkeypatch.setattr(module, "CONTRACTIONS", table)

    return add


def test_a_new_operation_renumbers_nothing(with_a_new_operation):
    net, x = Net(), torch.randn(4, 3)
    spec = infer_spec(net, x)
    before = seen(spec, net, x)
    assert len(before) == 2
    with_a_new_operation()
    # A spec from before the new operation sees what it saw, and one from after it has the same addresses.
    after = seen(spec, net, x)
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert torch.equal(old, new)
    assert set(places(infer_spec(net, x))) >= set(places(spec))


def test_a_new_operation_does_not_move_old_addresses(with_a_new_operation):
    """Files of version 1 count the operations of then together, whatever the table holds now."""
    net, x = Net(), torch.randn(4, 3)
    data = infer_spec(net, x).to_dict()
    data["version"] = 1
    for addresses in data["activations"].values():
        for address in addresses:
            # all contractions of this network are addmm, so both ways of counting agree
            del address["numbering"]
    spec = PermutationSpec.from_dict(data)
    before = seen(spec, net, x)
    assert {place.numbering for place, _ in before} == {"together"}
    with_a_new_operation()
    after = seen(spec, net, x)
    assert len(after) == 2
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert torch.equal(old, new)
