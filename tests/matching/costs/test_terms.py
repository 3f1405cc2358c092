"""What one axis of one block adds to the cost of its group, against dense products in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from helpers.costs import CPU, F64, flats_of, layouts, random_pair, random_soft
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import blocks_of
from lightning_rebasin.matching.costs.layouts import Scratch
from lightning_rebasin.matching.costs.terms import (
    Term,
    TermKind,
    add_bilinear,
    add_bilinear_change,
    add_general,
    add_soft,
    add_static,
    terms_of,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Axes = tuple[str | None, ...]
Shape = tuple[int, ...]
Array = NDArray[np.float64]


def all_terms(spec: PermutationSpec) -> tuple[Term, ...]:
    return terms_of(spec, blocks_of(spec))


def terms_of_table(
    table: Mapping[str, Axes], shapes: Mapping[str, Shape]
) -> tuple[Term, ...]:
    return all_terms(PermutationSpec.from_table(table, shapes))


def kinds(spec: PermutationSpec) -> set[tuple[str, str, TermKind]]:
    return {(t.block.tensor, t.group, t.kind) for t in all_terms(spec)}


def from_table(table: Mapping[str, Axes]) -> PermutationSpec:
    """Every axis has two members."""
    shapes = {name: (2,) * len(axes) for name, axes in table.items()}
    return PermutationSpec.from_table(table, shapes)


def test_kinds_of_terms() -> None:
    table: dict[str, Axes] = {
        "alone": ("h", None),
        "pair": ("k", "h"),
        "triple": ("h", "k", "m"),
        "tied": ("m", "m"),
    }
    assert kinds(from_table(table)) == {
        ("alone", "h", "static"),
        ("pair", "h", "bilinear"),
        ("pair", "k", "bilinear"),
        ("triple", "h", "general"),
        ("triple", "k", "general"),
        ("triple", "m", "general"),
        ("tied", "m", "general"),
    }


def test_kinds_of_nested_and_joint_axes() -> None:
    assert kinds(nested_spec()) == {
        ("value.weight", "value", "bilinear"),
        ("value.weight", "model", "bilinear"),
        ("out.weight", "value", "bilinear"),
        ("out.weight", "model", "bilinear"),
        ("scale", "heads", "static"),
    }
    assert kinds(grouped_spec()) == {
        ("before.weight", "in", "static"),
        ("conv.weight", "in", "general"),
        ("conv.weight", "out", "general"),
        ("conv.bias", "out", "static"),
    }


def test_shape_of_a_term() -> None:
    outer, inner = terms_of_table({"w": ("k", "h", None)}, {"w": (4, 5, 3)})
    assert (outer.group, inner.group) == ("k", "h")
    assert (outer.partner, inner.partner) == ("h", "k")
    # Sums run over everything but the own axis, which comes last; the partner comes first.
    assert (outer.rank, inner.rank) == (15, 12)
    assert (outer.order, inner.order) == ((1, 2, 0), (0, 2, 1))
    assert not outer.joint


def test_blocks_that_no_group_moves_have_no_terms() -> None:
    spec = blocks_spec()
    free = [block for block in blocks_of(spec) if not block.groups]
    assert [block.tensor for block in free] == ["part.weight"]
    assert terms_of(spec, free) == ()


@pytest.mark.parametrize("members", [1, 5])
def test_static_terms_are_products_of_rows(members: int) -> None:
    """A bias, a small weight and one of so many columns that it is multiplied by itself."""
    table: dict[str, Axes] = {
        "bias": ("h",),
        "last": (None, "h"),
        "first": ("h", None, None),
    }
    shapes: dict[str, Shape] = {
        "bias": (members,),
        "last": (3, members),
        "first": (members, 10, 9),
    }
    a, b = random_pair(shapes)
    cost = torch.ones(members, members, dtype=F64)
    add_static(cost, terms_of_table(table, shapes), *layouts(a, b))
    x, y = ({n: t.numpy() for n, t in s.items()} for s in (a, b))
    expected = (
        1.0
        + np.einsum("i,j->ij", x["bias"], y["bias"])
        + np.einsum("mi,mj->ij", x["last"], y["last"])
        + np.einsum("imn,jmn->ij", x["first"], y["first"])
    )
    np.testing.assert_allclose(cost.numpy(), expected, rtol=1e-12)


#: Small ones, then such as do not fit the cache: dense, one by one, three by three.
SHAPES: list[Shape] = [
    (1, 1),
    (4, 5),
    (4, 5, 2),
    (300, 230),
    (300, 230, 1),
    (90, 85, 3, 3),
]


def products(x: Array, y: Array, axis: int) -> Array:
    """``⟨x_i, y_j⟩`` of the units on one axis, over everything else."""
    rows = [np.moveaxis(z, axis, 0).reshape(z.shape[axis], -1) for z in (x, y)]
    return rows[0] @ rows[1].T


def bilinear(
    shape: Shape, axis: int
) -> tuple[Term, dict[str, Tensor], dict[str, Tensor]]:
    """The term of the group on ``axis`` of a weight, the partner on the other axis, and two models."""
    axes: Axes = ("first", "second", *[None] * (len(shape) - 2))
    term = terms_of_table({"w": axes}, {"w": shape})[axis]
    assert (term.kind, term.axis) == ("bilinear", axis)
    return term, *random_pair({"w": shape})


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_terms_built_and_changed(
    shape: Shape, axis: int, keep: bool
) -> None:
    term, a, b = bilinear(shape, axis)
    models = layouts(a, b, keep=keep)
    scratch = Scratch(F64, CPU, keep=keep)
    generator = torch.Generator().manual_seed(0)
    partner = 1 - axis
    x, y = a["w"].numpy(), b["w"].numpy()

    def expected(order: Tensor) -> Tensor:
        moved = np.take(y, order.numpy(), partner)
        return torch.from_numpy(1.0 + products(x, moved, axis))

    still = torch.arange(shape[partner])
    before, after = (
        torch.randperm(shape[partner], generator=generator) for _ in range(2)
    )
    cost = torch.ones(shape[axis], shape[axis], dtype=F64)
    add_bilinear(cost, term, *models, None, scratch)
    torch.testing.assert_close(cost, expected(still))
    cost.fill_(1.0)
    add_bilinear(cost, term, *models, before, scratch)
    torch.testing.assert_close(cost, expected(before))
    where = (before != after).nonzero().reshape(-1)
    add_bilinear_change(cost, term, *models, before, after, where, scratch)
    torch.testing.assert_close(cost, expected(after))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_terms_mix_the_partner(
    shape: Shape, axis: int, keep: bool
) -> None:
    term, a, b = bilinear(shape, axis)
    models = layouts(a, b, keep=keep)
    scratch = Scratch(F64, CPU, keep=keep)
    generator = torch.Generator().manual_seed(0)
    mix = random_soft(shape[1 - axis], generator)
    cost = torch.ones(shape[axis], shape[axis], dtype=F64)
    add_soft(cost, term, *models, {term.partner: mix}, scratch)
    mixed = np.tensordot(mix.numpy(), b["w"].numpy(), (1, 1 - axis))
    mixed = np.moveaxis(mixed, 0, 1 - axis)
    expected = 1.0 + products(a["w"].numpy(), mixed, axis)
    torch.testing.assert_close(cost, torch.from_numpy(expected))


def test_soft_terms_mix_every_partner() -> None:
    terms = terms_of_table({"w": ("g", "h", "k")}, {"w": (4, 3, 2)})
    a, b = random_pair({"w": (4, 3, 2)})
    generator = torch.Generator().manual_seed(0)
    soft = {
        g: random_soft(n, generator) for g, n in (("g", 4), ("h", 3), ("k", 2))
    }
    cost = torch.zeros(3, 3, dtype=F64)
    scratch = Scratch(F64, CPU, keep=True)
    add_soft(cost, terms[1], *layouts(a, b), soft, scratch)
    expected = np.einsum(
        "min,mp,nq,pjq->ij",
        *(t.numpy() for t in (a["w"], soft["g"], soft["k"], b["w"])),
    )
    np.testing.assert_allclose(cost.numpy(), expected, rtol=1e-12)


def general_cost(
    terms: tuple[Term, ...],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    flats: Mapping[str, Tensor],
) -> Array:
    """The sum of general terms of one group, added to ones."""
    members = len(flats[terms[0].group])
    cost = torch.ones(members, members, dtype=F64)
    for term in terms:
        assert term.kind == "general"
        add_general(cost, term, *layouts(a, b), flats)
    return cost.numpy()


@pytest.mark.parametrize(
    ("axis", "product"),
    [(0, "imn,jmn->ij"), (1, "min,mjn->ij"), (2, "mni,mnj->ij")],
)
def test_three_permuted_axes(axis: int, product: str) -> None:
    shape = (4, 3, 2)
    terms = terms_of_table({"w": ("g", "h", "k")}, {"w": shape})
    a, b = random_pair({"w": shape})
    flats = {
        "g": torch.tensor([1, 2, 3, 0]),
        "h": torch.tensor([1, 2, 0]),
        "k": torch.tensor([1, 0]),
    }
    moved = b["w"].numpy()
    for other, order in enumerate(flats.values()):
        if other != axis:
            moved = np.take(moved, order.numpy(), other)
    found = general_cost((terms[axis],), a, b, flats)
    expected = 1.0 + np.einsum(product, a["w"].numpy(), moved)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_two_tied_axes() -> None:
    """Each axis sees the other where it stands: the step is a linearisation."""
    terms = terms_of_table({"w": ("h", "h")}, {"w": (4, 4)})
    a, b = random_pair({"w": (4, 4)})
    order = torch.tensor([2, 3, 1, 0])
    x, y, p = a["w"].numpy(), b["w"].numpy(), order.numpy()
    expected = 1.0 + x @ y[:, p].T + x.T @ y[p]
    found = general_cost(terms, a, b, {"h": order})
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("group", ["in", "out"])
def test_a_joint_axis_of_a_grouped_convolution(group: str) -> None:
    """A unit of one group finds its partners where they are now, inside the place its group of groups has."""
    groups, inputs, outputs = 2, 3, 2
    spec = grouped_spec(groups, inputs, outputs)
    a, b = random_state(spec, 0), random_state(spec, 1)
    inside = {
        "in": torch.tensor([[1, 2, 0], [0, 2, 1]]),
        "out": torch.tensor([[1, 0], [0, 1]]),
    }
    p = Permutation(spec, {"g": torch.tensor([1, 0]), **inside})
    x, y = (
        s["conv.weight"].reshape(groups, outputs, inputs, 3) for s in (a, b)
    )
    # The partner's order in the place that each old group of groups now has.
    partner = "in" if group == "out" else "out"
    there = p["g"].argsort()
    orders = [p[partner][there[old]] for old in range(groups)]
    if group == "out":
        moved = torch.stack([y[o][:, orders[o]] for o in range(groups)])
        product = torch.einsum("goix,hpix->gohp", x, moved)
    else:
        moved = torch.stack([y[o][orders[o]] for o in range(groups)])
        product = torch.einsum("goix,hojx->gihj", x, moved)
    members = spec.groups[group].members
    terms = tuple(
        t for t in all_terms(spec) if t.group == group and t.kind == "general"
    )
    found = general_cost(terms, a, b, flats_of(p))
    expected = 1.0 + product.reshape(members, members)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)
