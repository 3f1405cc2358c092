"""The ensemble against a loop over trees and leaves, published numbers of parameters, gradients, shapes."""

from __future__ import annotations

import pytest
import torch
from helpers.soft_trees import KINDS, by_loops, ensemble, examples

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.trees import SoftTreeEnsemble


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_all_trees_at_once_are_the_sum_of_single_trees(kind, depth):
    model, x = ensemble(kind, depth), examples()
    expected = by_loops(model, x)
    torch.testing.assert_close(model(x), expected)
    parts = model.tree_outputs(x)
    assert parts.shape == (5, 3, 20)
    torch.testing.assert_close(parts.sum(0).T, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind):
    model, x = ensemble(kind, 3), examples(6)
    for compute in (model, lambda x: by_loops(model, x)):
        compute(x).square().sum().backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        if compute is model:
            ours = found
    for own, expected in zip(ours, found, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("non_oblivious", (12544, 36608, 84736)),
        ("oblivious", (12544, 25088, 38656)),
        # one rule and one leaf more for each step
        ("decision_list", (12544, 24576, 36608)),
        ("modified_decision_list", (12032, 24064, 36096)),
    ],
)
def test_parameters_are_as_many_as_published(kind, counts):
    for depth, count in enumerate(counts, start=1):
        model = SoftTreeEnsemble(kind, depth, 256, 44, 2)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_dimensions(kind):
    model, x = ensemble(kind, 2), examples(24)
    expected = model(x)
    torch.testing.assert_close(model(x.reshape(2, 3, 4, 4)), expected.reshape(2, 3, 4, 3))  # fmt: skip
    torch.testing.assert_close(model(x[0]), expected[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_double(kind, dtype):
    model, x = ensemble(kind, 3, trees=64), examples()
    exact = model(x)
    half = ensemble(kind, 3, trees=64).to(dtype)
    found = half(x.to(dtype))
    assert found.dtype is dtype
    scale = exact.abs().max()
    assert (found.double() - exact).abs().max() < 0.05 * scale
    found.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters())


def test_autocast_trains():
    model, x = ensemble("oblivious", 3).float(), examples().float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_fresh_outputs_have_about_unit_variance():
    torch.manual_seed(0)
    outputs = SoftTreeEnsemble("oblivious", 1, 4096, 10, 200)(
        torch.randn(1, 10)
    )
    # two leaves, each with about half of the example: the variance is about a half
    assert 0.3 < outputs.var().item() < 1


@pytest.mark.parametrize("name", ["trees", "inputs", "outputs"])
def test_empty_ensembles_are_refused(name):
    numbers = {"trees": 2, "inputs": 3, "outputs": 1, name: 0}
    with pytest.raises(ConfigurationError, match=f"{name} must be at least 1"):
        SoftTreeEnsemble("oblivious", 2, **numbers)


def test_print_names_what_it_is():
    shown = repr(SoftTreeEnsemble("oblivious", 2, 8, 4, 3))
    assert shown == (
        "SoftTreeEnsemble('oblivious', depth=2, trees=8, inputs=4, outputs=3)"
    )
