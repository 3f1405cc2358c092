"""Refit of the leaves against a textbook least-squares solution, and where it must not move anything."""

from __future__ import annotations

import pytest
import torch
from helpers.soft_trees import KINDS, ensemble, examples
from torch.func import functional_call

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.trees import refit_leaves


@pytest.mark.parametrize("kind", KINDS)
def test_the_leaves_are_those_of_a_ridge_regression(kind):
    merged = ensemble(kind, 2, trees=3)
    ends = [ensemble(kind, 2, 3, seed).state_dict() for seed in (1, 2)]
    x = examples(60)
    found = refit_leaves(merged, ends, x.split(25), ridge=0.01)

    with torch.no_grad():
        outputs = [functional_call(merged, end, x) for end in ends]
        target = torch.stack(outputs).mean(0)
        columns = merged.leaf_shares(x).flatten(0, 1).T
    old = merged.leaves.detach().flatten(0, 1)
    # ‖columns · change − missing‖² + weight ‖change‖² as one system of equations
    weight = 0.01 * columns.square().sum(0).mean()
    rows = torch.cat((columns, weight.sqrt() * torch.eye(len(old)).double()))
    missing = target - columns @ old
    wanted = torch.cat((missing, torch.zeros_like(old)))
    change = torch.linalg.lstsq(rows, wanted).solution
    torch.testing.assert_close(found.flatten(0, 1), old + change)


def test_what_fits_already_stays():
    model = ensemble("oblivious", 2)
    found = refit_leaves(model, [model.state_dict()], [examples()])
    torch.testing.assert_close(found, model.leaves.detach())


def test_misuse_is_a_typed_error():
    model = ensemble("oblivious", 2)
    state = model.state_dict()
    with pytest.raises(ConfigurationError, match="no ensemble"):
        refit_leaves(model, [], [examples()])
    with pytest.raises(ConfigurationError, match="positive, not 0"):
        refit_leaves(model, [state], [examples()], ridge=0)
    with pytest.raises(DataError, match="no batches"):
        refit_leaves(model, [state], [])
