"""From cells to groups, maps, pins and addresses."""

import torch
from helpers.stages import stages, worked_example
from torch import nn

from lightning_rebasin.symmetry.infer import infer_spec_many
from lightning_rebasin.symmetry.spec.values import Group


def test_the_worked_example_ends_in_one_group():
    assembly = worked_example().assembly
    assert assembly.groups == {"0": Group("0", 2)}
    assert list(assembly.maps) == ["0.weight", "0.bias", "2.weight"]
    pins = [(p.tensor, p.dim, p.pinned, p.size) for p in assembly.pins]
    assert pins == [
        ("0.weight", 1, 3, 3),
        ("2.weight", 0, 2, 2),
        ("2.bias", 0, 2, 2),
    ]
    assert not assembly.inexpressible


def test_the_units_of_the_worked_example_are_seen_before_the_second_layer():
    (address,) = worked_example().assembly.activations["0"]
    assert (address.op, address.argument) == ("aten.addmm", 0)
    assert address.sites == ((-1,), (2,))
    assert address.component.sites == (1,)
    assert address.component.index.tolist() == [[0], [1]]


class Flattened(nn.Module):
    """Channels and their positions share the dimension that the last layer contracts."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 1), nn.Linear(36, 2)

    def forward(self, x):
        return self.last(self.conv(x).relu().flatten(1))


def test_sites_without_units_have_any_size():
    """(batch 5, channels 4 · 9 positions) has the sites ((any,), (4, any))."""
    found = stages(Flattened(), torch.zeros(5, 1, 3, 3)).assembly
    (address,) = found.activations["conv"]
    assert address.sites == ((-1,), (4, -1))
    assert address.component.sites == (1,)


def test_a_batch_of_one_may_be_larger_later():
    found = stages(Flattened(), torch.zeros(1, 1, 3, 3)).assembly
    (address,) = found.activations["conv"]
    assert address.sites == ((-1,), (4, -1))


def test_parents_come_before_the_groups_inside_them():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.qkv, self.o = (
                nn.Linear(3, 6),
                nn.Linear(6, 18),
                nn.Linear(6, 2),
            )

        def forward(self, x):
            q, k, v = self.qkv(self.i(x)).chunk(3, -1)
            q, k, v = (
                y.view(*y.shape[:2], 2, 3).transpose(1, 2) for y in (q, k, v)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2))

    groups = list(
        stages(Heads(), torch.zeros(2, 4, 3)).assembly.groups.values()
    )
    inner = [g for g in groups if g.parent is not None]
    assert len(inner) == 2
    for group in inner:
        assert groups.index(group.parent) < groups.index(group)


def test_units_are_observed_on_the_first_example():
    """A second example traces the same operations; they are not observed twice."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    once = infer_spec_many(net, [torch.zeros(2, 3)])
    twice = infer_spec_many(net, [torch.zeros(2, 3), torch.zeros(5, 3)])
    assert len(once.activations["0"]) == len(twice.activations["0"]) == 1


def test_an_operand_with_other_permuted_dimensions_is_not_observed():
    """Both dimensions of x xᵀ move with the units: samples of two models would not correspond."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)
            self.b = nn.Linear(3, 5)
            self.c = nn.Parameter(torch.ones(5, 2))
            self.d = nn.Parameter(torch.ones(4))

        def forward(self, x):
            x = x[0]
            both = self.a(x)[:, None] * self.b(x)[None]
            return self.d @ (both.relu() @ self.c)

    found = stages(Outer(), torch.zeros(1, 3)).assembly
    assert {g.size for g in found.groups.values()} == {4, 5}
    # The five units are contracted beside the four, the four beside the outputs of c, which stay.
    assert set(found.activations) == {"d"}


def test_only_contracted_units_are_observed():
    """In hᵀ C the units are the rows: they are not contracted there, but by what follows."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)
            self.c = nn.Parameter(torch.ones(5, 2))
            self.d = nn.Parameter(torch.ones(1, 4))

        def forward(self, x):
            return self.d @ (self.a(x).relu().T @ self.c)

    found = stages(Turned(), torch.zeros(5, 3)).assembly
    (address,) = found.activations["d"]
    assert (address.ordinal, address.argument) == (1, 1)
