"""The matching objective, exactly: inner products in float64, whatever the weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.costs import SPECS
from helpers.specs import random_state
from torch import Tensor

from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.objective import (
    group_similarity,
    inner_product,
    inner_products,
    objective,
)
from lightning_rebasin.matching.parameters import Parameters
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = dict[str, Tensor]
Pair = tuple[PermutationSpec, State, State]


def exact(a: Tensor, b: Tensor) -> float:
    """``⟨a, b⟩`` by NumPy in float64."""
    return float(np.vdot(a.double().numpy(), b.double().numpy()))


def test_inner_product_in_every_dtype() -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    y = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
    assert inner_product(x, y) == pytest.approx(exact(x, y), rel=1e-12)
    assert inner_product(x.half(), y.bfloat16()) == pytest.approx(
        exact(x.half(), y.bfloat16()), rel=1e-12
    )
    z = torch.complex(x[:10], y[:10])
    assert inner_product(z, z) == pytest.approx(
        float((z.abs().double() ** 2).sum())
    )
    assert inner_product(torch.empty(0), torch.empty(0)) == 0.0


def test_complex_products_are_real_parts() -> None:
    a, b = torch.tensor([1 + 2j]), torch.tensor([3 - 4j])
    # conj(1 + 2i) (3 − 4i) = −5 − 10i, and (1 + 2i) (3 − 4i) = 11 + 2i
    assert inner_product(a, b) == -5.0
    assert inner_product(a.conj(), b) == 11.0


@pytest.mark.parametrize("size", [10, 1000, 20_000, 300_000])
def test_sums_are_taken_in_double_precision(size: int) -> None:
    """In float32 a sum of 1, many small numbers and −1 would lose the small ones."""
    x = torch.full((size,), 1e-9)
    x[0], x[-1] = 1.0, -1.0
    small = (size - 2) * float(torch.tensor(1e-9).double())
    found = inner_product(x, torch.ones(size))
    assert found == pytest.approx(small, rel=1e-6)


def test_products_by_definition(pair: Pair) -> None:
    spec, a, b = pair
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    for source in (b, {name: tensor.half() for name, tensor in b.items()}):
        moved = p.apply(source)
        products = inner_products(
            spec, Parameters(a, a), Parameters(source, source), p
        )
        assert products == pytest.approx(
            {name: exact(a[name], moved[name]) for name in a}
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SPECS))
def test_every_kind_of_axis_is_permuted(name: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]()
    a, b = (
        {n: t.to(dtype) for n, t in random_state(spec, seed).items()}
        for seed in range(2)
    )
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    moved = p.apply(b)
    products = inner_products(spec, Parameters(a, a), Parameters(b, b), p)
    assert products == pytest.approx({n: exact(a[n], moved[n]) for n in a})


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16]
)
def test_products_of_large_tensors_are_taken_slice_by_slice(
    dtype: torch.dtype,
) -> None:
    shapes = {
        "convolution": (120, 260, 3, 3),
        "dense": (700, 500),
        "thin": (1, 300_000),
    }
    table = {
        "convolution": ("o", "i", None, None),
        "dense": ("p", "q"),
        "thin": (None, "r"),
    }
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {
            n: torch.randn(s, generator=generator).to(dtype)
            for n, s in shapes.items()
        }
        for _ in range(2)
    )
    spec = PermutationSpec.from_table(table, a)
    p = Permutation.random(spec, generator)
    moved = p.apply(b)
    products = inner_products(spec, Parameters(a, a), Parameters(b, b), p)
    for name in shapes:
        assert products[name] == pytest.approx(
            exact(a[name], moved[name]), rel=1e-10
        ), name


def test_only_the_named_tensors() -> None:
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (2,), "b": (1,)})
    a = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    b = {"w": torch.tensor([5.0, 7.0]), "b": torch.tensor([11.0])}
    turn = Permutation(spec, {"h": torch.tensor([1, 0])})
    models = Parameters(a, a), Parameters(b, b)
    assert inner_products(spec, *models) == {"w": 19.0, "b": 33.0}
    assert inner_products(spec, *models, turn, ["w"]) == {"w": 17.0}
    assert objective(spec, a, b, turn) == 50.0
    assert objective(spec, a, b, turn, ["b"]) == 33.0
    assert objective(spec, a, b, names=[]) == 0.0


def test_statistics_and_tied_tensors_do_not_count() -> None:
    w = torch.tensor([1.0, 2.0])
    state = {"w": w, "tied": w, "bn.running_mean": 1e6 * w}
    spec = PermutationSpec.from_table({"w": ("h",)}, state)
    assert objective(spec, state, state) == 5.0


def test_similarity_is_the_cosine_of_a_groups_weights(pair: Pair) -> None:
    spec, a, b = pair
    result = match_weights(spec, a, b)
    moved = result.permutation.apply(b)
    for group in spec.groups:
        x, y = (
            torch.cat([s[n].flatten() for n in spec.tensors_of(group)])
            for s in (a, moved)
        )
        norms = (exact(x, x) * exact(y, y)) ** 0.5
        assert result.similarity[group] == pytest.approx(exact(x, y) / norms)
    same = match_weights(spec, a, a)
    assert same.similarity == pytest.approx(dict.fromkeys(spec.groups, 1.0))


def test_similarity_by_hand() -> None:
    table = {"w": ("h", "k"), "v": ("h",), "zero": ("z",)}
    shapes = {"w": (2, 2), "v": (2,), "zero": (2,)}
    spec = PermutationSpec.from_table(table, shapes)
    a = {"w": 3.0, "v": 4.0, "zero": 0.0}
    b = {"w": 6.0, "v": 8.0, "zero": 1.0}
    found = group_similarity(spec, {"w": 9.0, "v": 16.0, "zero": 0.0}, (a, b))
    # h: 25 / (5 · 10), k: 9 / (3 · 6); a group without any weight has 0
    assert found == {"h": 0.5, "k": 0.5, "z": 0.0}
    # A tensor that no group moves counts for none.
    rest = {"w": 1.0, "free": 100.0}
    norms = {"w": 1.0, "free": 100.0}
    plain = PermutationSpec.from_table(
        {"w": ("h",)}, {"w": (2,), "free": (1,)}
    )
    assert group_similarity(plain, rest, (norms, norms)) == {"h": 1.0}


def test_no_products_no_similarity(pair: Pair) -> None:
    spec, a, b = pair
    norms = Parameters(a, a).norms, Parameters(b, b).norms
    assert group_similarity(spec, dict.fromkeys(a, 0.0), norms)["h0"] == 0.0
