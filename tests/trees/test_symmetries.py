"""Symmetries of soft trees: proved, counted, found again, for every kind and depth."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.algebra import same
from helpers.soft_trees import KINDS, ensemble, examples

from lightning_rebasin import (
    check_equivalence,
    infer_spec,
    match_activations,
    match_many,
    match_weights,
)
from lightning_rebasin.symmetry import PermutationSpec, Transform

SHAPES = [(kind, depth) for kind in KINDS for depth in (1, 2, 3)]
#: Elements inside one tree, by kind.
PER_TREE = {
    "non_oblivious": lambda depth: 2 ** (2**depth - 1),
    "oblivious": lambda depth: 2**depth * math.factorial(depth),
    "decision_list": lambda depth: 2,
    "modified_decision_list": lambda depth: 1,
}


def spec_of(kind: str, depth: int, trees: int = 5) -> PermutationSpec:
    return infer_spec(ensemble(kind, depth, trees), examples(), kinds="all")


def element(spec: PermutationSpec, seed: int) -> Transform:
    return Transform.random(spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "depth"), SHAPES)
def test_random_elements_leave_the_function_unchanged(kind, depth, seed):
    model, spec = ensemble(kind, depth), spec_of(kind, depth)
    transform = element(spec, seed)
    assert not transform.is_identity
    before = model(examples())
    model.load_state_dict(transform.apply(model.state_dict()))
    error = (model(examples()) - before).abs().max() / before.abs().max()
    assert error < 1e-12


@pytest.mark.parametrize(("kind", "depth"), SHAPES)
def test_symmetries_are_counted(kind, depth):
    spec = spec_of(kind, depth)
    expected = math.factorial(5) * PER_TREE[kind](depth) ** 5
    assert spec.log10_symmetries == pytest.approx(math.log10(expected))
    only_order = infer_spec(ensemble(kind, depth), examples())
    assert only_order.log10_symmetries == pytest.approx(math.log10(120))
    assert list(only_order.groups) == ["trees"]


@pytest.mark.parametrize(("kind", "depth"), SHAPES)
def test_planted_elements_are_found_by_weights(kind, depth):
    model, spec = ensemble(kind, depth, 12), spec_of(kind, depth, 12)
    planted = element(spec, depth)
    a = model.state_dict()
    found = match_weights(spec, a, planted.apply(a))
    assert found.transform == planted.inverse()
    assert same(found.transform.apply(planted.apply(a)), a)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_elements_are_found_by_activations(kind):
    model, spec = ensemble(kind, 3, 12), spec_of(kind, 3, 12)
    planted = element(spec, 4)
    other = ensemble(kind, 3, 12)
    other.load_state_dict(planted.apply(model.state_dict()))
    found = match_activations(spec, model, other, [examples(100)])
    assert found.transform == planted.inverse()


@pytest.mark.parametrize("kind", KINDS)
def test_several_ensembles_come_into_one_frame(kind):
    spec = spec_of(kind, 2, 12)
    base = ensemble(kind, 2, 12).state_dict()
    planted = [element(spec, seed) for seed in range(3)]
    found = match_many(spec, [p.apply(base) for p in planted])
    for a in range(3):
        for b in range(3):
            between = planted[a].compose(planted[b].inverse())
            assert found.pairwise(a, b) == between


def test_order_alone_does_not_find_what_was_flipped():
    """The paper's point: without flips matching ends below what is there."""
    model = ensemble("non_oblivious", 2, 12)
    planted = element(spec_of("non_oblivious", 2, 12), 0)
    a = model.state_dict()
    b = planted.apply(a)
    order = match_weights(infer_spec(model, examples()), a, b)
    assert order.cosine < 0.8
    assert check_equivalence(model, order.permutation, examples()) < 1e-12


def test_rules_count_as_often_as_there_are_leaves_below():
    spec = spec_of("non_oblivious", 2)
    assert spec.tensors["weight"].importance.weights == (4, 2, 2)
    assert spec.tensors["leaves"].importance is None
    model = ensemble("non_oblivious", 2)
    a = model.state_dict()
    found = match_weights(spec, a, a)
    below = torch.tensor([4.0, 2, 2], dtype=torch.float64)
    by_rule = a["weight"].square().sum((0, 2)) + a["bias"].square().sum(0)
    expected = (below * by_rule).sum() + a["leaves"].square().sum()
    assert found.objective == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_specs_and_elements(kind, tmp_path):
    spec = spec_of(kind, 3)
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec
    transform = element(spec, 1)
    transform.save(tmp_path / "t.pt")
    assert Transform.load(tmp_path / "t.pt", spec) == transform
