"""Matrix products: what is contracted is summed over, in any order."""

import numpy as np
import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, noise, parts_of
from helpers.models import randomise
from torch import nn

from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import Permutation, PermutationSpec, infer_spec
from lightning_rebasin.symmetry.permutations.labels import plain
from lightning_rebasin.symmetry.permutations.rules import RULES
from lightning_rebasin.symmetry.permutations.rules.base import LayoutNotCovered
from lightning_rebasin.symmetry.trace.tape import Node, Value


def test_the_contracted_units_are_equated_and_marked():
    bench = Bench()
    result = bench.run(
        "mm", (2, 4), self=bench.units(2, 3), mat2=bench.units(3, 4)
    )
    assert parts_of(result) == {(0,): [0, 1], (1,): [8, 9, 10, 11]}
    assert bench.tables() == [
        ("equal", [2, 3, 4], [5, 6, 7]),
        ("mark", [2, 3, 4], [0, 0, 0]),
    ]


def test_an_addend_broadcasts_to_the_result():
    bench = Bench()
    result = bench.run(
        "addmm",
        (5, 2),
        self=bench.units(2),
        mat1=plain((5, 3), [0]),
        mat2=bench.units(3, 2),
    )
    assert parts_of(result) == {(1,): [0, 1]} and result.pinned == {0}
    assert bench.tables("equal") == [("equal", [0, 1], [5, 6])]


def test_a_stack_of_products_wishes_for_separate_axes():
    bench = Bench()
    bench.run(
        "bmm",
        (2, 5, 4),
        self=plain((2, 5, 3), [0, 1, 2]),
        mat2=bench.units(2, 3, 4),
    )
    assert {wish.blocks for wish in bench.ctx.wishes.found.values()} == {2}


def test_distances_contract_the_features():
    bench = Bench()
    result = bench.run(
        "_cdist_forward", (2, 4), x1=bench.units(2, 3), x2=bench.units(4, 3)
    )
    assert parts_of(result) == {(0,): [0, 1], (1,): [5, 6, 7, 8]}
    assert (
        bench.tables("equal") == [("equal", [2, 3, 4], [9, 10, 11])]
        and len(bench.tables("mark")) == 1
    )


def test_distances_between_stacks_of_different_dimensions_are_not_covered():
    bench = Bench()
    with pytest.raises(LayoutNotCovered):
        bench.run(
            "_cdist_forward",
            (5, 2, 4),
            x1=bench.units(5, 2, 3),
            x2=bench.units(4, 3),
        )


@pytest.mark.parametrize(("summed", "shape"), [([0], (3,)), ([], (2, 3))])
def test_a_product_of_three_sums_what_it_is_told(summed, shape):
    bench = Bench()
    given = {
        "i1": bench.units(2, 3),
        "i2": bench.units(3),
        "i3": bench.units(2),
    }
    expanded = {"expand1": [], "expand2": [0], "expand3": [1]}
    result = bench.run("_trilinear", shape, **given, **expanded, sumdim=summed)
    assert parts_of(result)[(0,) if summed else (1,)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("number", "from_data", "seen"),
    [(4, True, [0]), (4, False, []), (-1, True, [])],
)
def test_operands_made_of_data_are_remembered_as_places_to_observe(
    number, from_data, seen
):
    bench = Bench()
    x, weight = (
        bench.tensor(bench.units(2, 3)),
        bench.tensor(bench.units(3, 4)),
    )
    out = bench.ctx.tape.new_value(Value((2, 4), "operation"))
    bench.ctx.from_data = np.array([from_data, False, from_data])
    RULES["aten.mm"](
        bench.ctx,
        Node(
            "aten.mm",
            {"self": x, "mat2": weight},
            [out],
            "",
            contraction=number,
        ),
    )
    assert [
        (c.ordinal, c.argument, c.contracted) for c in bench.ctx.contractions
    ] == [(4, 0, {1}) for _ in seen]


class Stacked(nn.Module):
    """Attention whose heads are the first dimension of its parameters."""

    def __init__(self, d=6, h=3, k=2):
        super().__init__()
        self.i, self.o = nn.Linear(4, d), nn.Linear(d, 2)
        self.q, self.k, self.v = (
            nn.Parameter(torch.zeros(h, d, k)) for _ in range(3)
        )
        self.w = nn.Parameter(torch.zeros(h, k, d))

    def forward(self, x):
        x = self.i(x)
        q, k, v = (
            torch.einsum("btd,hdk->bhtk", x, w)
            for w in (self.q, self.k, self.v)
        )
        a = torch.einsum("bhtk,bhsk->bhts", q, k).tril().softmax(-1)
        return self.o(x + torch.einsum("bhts,bhsk,hkd->btd", a, v, self.w))


def test_stacked_head_parameters():
    assert exact(Stacked(), noise(2, 4, 4)).log10_symmetries == pytest.approx(
        log10((6, 1), (3, 1), (2, 3), (2, 3))
    )


def test_routing_between_capsules():
    class Capsules(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.w, self.o = (
                nn.Linear(5, 12),
                nn.Parameter(torch.zeros(4, 3, 2, 3)),
                nn.Linear(6, 2),
            )

        def forward(self, x):
            h = torch.einsum(
                "bnd,nkjd->bnkj", self.i(x).view(-1, 4, 3), self.w
            )
            route = torch.zeros(h.shape[:3], dtype=h.dtype)
            for _ in range(2):
                v = torch.tanh((route.softmax(2)[..., None] * h).sum(1))
                route = route + (h * v[:, None]).sum(-1)
            return self.o(v.flatten(1))

    exact(Capsules(), noise(3, 5))


class Powers(nn.Module):
    """Products of the hidden units with one another, flattened, with the units themselves beside them."""

    def __init__(self, order=2, beside=False):
        super().__init__()
        self.order, self.beside = order, beside
        self.i, self.o = nn.Linear(4, 5), nn.Linear(5**order + 5 * beside, 3)

    def forward(self, x):
        h = z = torch.tanh(self.i(x))
        for _ in range(self.order - 1):
            z = (z[..., None] * h[:, None]).flatten(1)
        return self.o(torch.cat([z, h], 1) if self.beside else z)


@pytest.mark.parametrize("order", [2, 3])
def test_outer_product_with_itself(order):
    spec = exact(Powers(order), noise(6, 4))
    assert [g.size for g in spec.groups.values()] == [5]
    assert (
        len(spec.maps["o.weight"].sites[1]) == order
        and len(spec.maps["o.weight"].components) == order
    )
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec


def test_outer_product_with_itself_is_matched():
    net = randomise(Powers())
    spec = infer_spec(net, noise(6, 4).float())
    planted = Permutation.random(spec, torch.Generator().manual_seed(5))
    state = net.state_dict()
    assert (
        match_weights(spec, state, planted.apply(state)).permutation
        == planted.inverse()
    )


def test_gram_matrix_of_channels():
    class Texture(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.Conv2d(3, 6, 3), nn.Linear(36, 2)

        def forward(self, x):
            f = self.c(x).relu().flatten(2)
            return self.o((f @ f.mT).flatten(1))

    assert [
        g.size for g in exact(Texture(), noise(2, 3, 6, 6)).groups.values()
    ] == [6]


def test_products_beside_the_units_themselves_are_pinned_or_exact():
    """A known limit: one axis on which a group acts twice in a part and once in another."""
    exact(Powers(beside=True), noise(6, 4))
