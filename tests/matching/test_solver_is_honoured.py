"""``solver=`` is asked wherever an assignment is solved, and never changes the answer."""

import pytest
import torch
from helpers.models import mlp
from helpers.specs import nested_spec, random_state

from lightning_rebasin import (
    infer_spec,
    match_activations,
    match_many,
    match_weights,
)
from lightning_rebasin.assignment import solve as module
from lightning_rebasin.errors import ConfigurationError

SOLVERS = ("scipy", "lap", "numba")


@pytest.fixture
def asked(monkeypatch):
    """The solvers by which batches of small problems were solved."""
    found = set()
    real = module.solve_many

    def watched(values, solver="auto"):
        found.add(solver)
        return real(values, solver)

    monkeypatch.setattr(module, "solve_many", watched)
    return found


@pytest.mark.parametrize("solver", SOLVERS)
def test_nested_groups_and_annealed_starts_use_it(asked, solver):
    spec = nested_spec()
    a, b = random_state(spec, 0), random_state(spec, 1)
    found = match_weights(spec, a, b, solver=solver)
    used = set(asked)
    expected = match_weights(spec, a, b)
    assert found.objective == pytest.approx(expected.objective)
    assert used == (set() if solver == "numba" else {solver})


@pytest.mark.parametrize("solver", SOLVERS)
def test_several_networks_use_it(asked, solver):
    spec = nested_spec()
    states = [random_state(spec, seed) for seed in range(3)]
    match_many(spec, states, method="cycle_consistent", solver=solver)
    assert asked == (set() if solver == "numba" else {solver})


@pytest.mark.parametrize("solver", SOLVERS)
def test_activation_matching_uses_it(asked, solver):
    nets = [mlp(3, 6, 2).eval(), mlp(3, 6, 2).eval()]
    spec = infer_spec(nets[0], torch.zeros(1, 3))
    match_activations(spec, *nets, [torch.randn(20, 3)], solver=solver)
    assert asked == (set() if solver == "numba" else {solver})


def test_an_unknown_solver_is_refused_everywhere():
    spec = nested_spec()
    states = [random_state(spec, seed) for seed in range(3)]
    nets = [mlp(3, 6, 2).eval(), mlp(3, 6, 2).eval()]
    own = infer_spec(nets[0], torch.zeros(1, 3))
    with pytest.raises(ConfigurationError, match="solver must be one of"):
        match_weights(spec, *states[:2], solver="best")
    with pytest.raises(ConfigurationError, match="solver must be one of"):
        match_many(spec, states, solver="best")
    with pytest.raises(ConfigurationError, match="solver must be one of"):
        match_activations(own, *nets, [torch.randn(4, 3)], solver="best")
