"""What a match result reports."""

import json

import pytest
import torch
from helpers.planted import chain

from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.objective import (
    group_similarity,
    inner_product,
    inner_products,
)
from lightning_rebasin.matching.parameters import Parameters
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@pytest.fixture
def pair():
    table, a, b = chain((10, 20, 15, 5), 0)
    return PermutationSpec.from_table(table, a), a, b


def test_numbers_are_consistent(pair):
    spec, a, b = pair
    result = match_weights(spec, a, b, restarts=4)
    assert result.gain == result.objective - result.identity_objective > 0
    assert [d.objective for d in result.descents] == [
        d.objectives[-1] for d in result.descents
    ]
    assert result.spread == max(d.objective for d in result.descents) - min(
        d.objective for d in result.descents
    )
    assert result.converged
    assert all(d.sweeps == len(d.objectives) - 1 >= 1 for d in result.descents)
    norm = sum(float(t.double().square().sum()) for t in a.values()) ** 0.5
    assert result.norms[0] == pytest.approx(norm)
    assert -1 <= result.cosine <= 1
    assert 0 <= result.moved_fraction <= 1
    moved = sum(
        int(
            (
                result.permutation[g]
                != torch.arange(len(result.permutation[g]))
            ).sum()
        )
        for g in spec.groups
    )
    assert result.moved_fraction == pytest.approx(moved / 35)


def test_similarity_is_the_cosine_of_a_groups_weights(pair):
    spec, a, b = pair
    result = match_weights(spec, a, b)
    moved = result.permutation.apply(b)
    for group in spec.groups:
        x, y = (
            torch.cat(
                [s[n].flatten() for n in spec.tensors_of(group)]
            ).double()
            for s in (a, moved)
        )
        assert result.similarity[group] == pytest.approx(
            float(torch.dot(x, y) / (x.norm() * y.norm()))
        )
    same = match_weights(spec, a, a)
    assert same.similarity == pytest.approx(dict.fromkeys(spec.groups, 1.0))


def test_report_and_dict_name_every_group(pair):
    spec, a, b = pair
    result = match_weights(spec, a, b)
    text, data = result.report(), json.loads(json.dumps(result.to_dict()))
    for group in spec.groups:
        assert group in text
        assert data["groups"][group]["size"] == spec.groups[group].size
    assert len(data["descents"]) == len(result.descents) == 3
    assert "objective" in repr(result)
    assert "sweeps" in repr(result.state)


def test_result_is_frozen(pair):
    result = match_weights(*pair)
    with pytest.raises(AttributeError):
        result.objective = 0.0


def test_progress_bar_shows_the_objective(pair, capsys):
    match_weights(*pair, progress=True)
    shown = capsys.readouterr().err
    assert "weight matching" in shown
    assert "best=" in shown


def test_inner_product_in_every_dtype():
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    y = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
    exact = float((x.double() * y.double()).sum())
    assert inner_product(x, y) == pytest.approx(exact, rel=1e-12)
    assert inner_product(x.half(), y.bfloat16()) == pytest.approx(
        float((x.half().double() * y.bfloat16().double()).sum()), rel=1e-12
    )
    z = torch.complex(x[:10], y[:10])
    assert inner_product(z, z) == pytest.approx(
        float((z.abs().double() ** 2).sum())
    )
    assert inner_product(torch.empty(0), torch.empty(0)) == 0.0


def test_products_and_norms_by_definition(pair):
    spec, a, b = pair
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    products, moved = (
        inner_products(spec, Parameters(a, a), Parameters(b, b), p),
        p.apply(b),
    )
    for name in a:
        assert products[name] == pytest.approx(
            float((a[name].double() * moved[name].double()).sum())
        )
    half = {name: tensor.half() for name, tensor in b.items()}
    products, moved = (
        inner_products(spec, Parameters(a, a), Parameters(half, half), p),
        p.apply(half),
    )
    for name in a:
        assert products[name] == pytest.approx(
            float((a[name].double() * moved[name].double()).sum())
        )
    extreme = {
        "x": torch.tensor([3e30, 4e30]),
        "y": torch.tensor([3e-30, 4e-30]),
        "z": torch.zeros(3),
    }
    extreme |= {
        f"{name} with two axes": tensor[None]
        for name, tensor in extreme.items()
    }
    expected = {
        name: {"x": 5e30, "y": 5e-30, "z": 0.0}[name[0]] for name in extreme
    }
    assert Parameters(extreme, extreme).norms == pytest.approx(
        expected, rel=1e-6, abs=0.0
    )
    norms = Parameters(a, a).norms, Parameters(b, b).norms
    assert norms[0] == pytest.approx(
        {name: float(a[name].double().norm()) for name in a}, rel=1e-6
    )
    assert group_similarity(spec, dict.fromkeys(a, 0.0), norms)["h0"] == 0.0


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16]
)
def test_products_of_large_tensors_are_taken_slice_by_slice(dtype):
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
    moved, products = (
        p.apply(b),
        inner_products(spec, Parameters(a, a), Parameters(b, b), p),
    )
    for name in shapes:
        assert products[name] == pytest.approx(
            float((a[name].double() * moved[name].double()).sum()), rel=1e-10
        ), name
