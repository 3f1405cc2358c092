"""Several networks under other kinds of groups: planted elements, and what must be refused."""

from __future__ import annotations

import pytest
import torch
from helpers.soft_trees import ensemble, examples

from lightning_rebasin import infer_spec, match_many
from lightning_rebasin.errors import PermutationError, StateDictError
from lightning_rebasin.matching.many.general import match_transforms
from lightning_rebasin.symmetry import PermutationSpec, Transform

KINDS = ("permutation", "flips")


def planted(count: int) -> tuple[PermutationSpec, list[Transform], list[dict[str, torch.Tensor]]]:  # fmt: skip
    """One ensemble, changed by random elements, with a little noise of its own in each copy."""
    model = ensemble("non_oblivious", 2, trees=8)
    spec = infer_spec(model, examples(), kinds=KINDS)
    generator = torch.Generator().manual_seed(0)
    elements = [Transform.random(spec, generator) for _ in range(count)]
    states = []
    for element in elements:
        state = element.apply(model.state_dict())
        for name, tensor in state.items():
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = tensor + 0.01 * noise
        states.append(state)
    return spec, elements, states


def test_elements_come_home_and_agree_with_each_other():
    spec, elements, states = planted(4)
    found = match_many(spec, states)
    assert found.transforms[0].is_identity
    for a in range(4):
        for b in range(4):
            between = elements[a].compose(elements[b].inverse())
            assert found.pairwise(a, b) == between
    assert found.gain > 0
    assert len(found.starts) == 4
    with pytest.raises(PermutationError, match=r"match\.transforms"):
        _ = found.permutations


def test_every_sweep_gains_and_the_objective_is_that_of_the_result():
    spec, _, states = planted(3)
    # unlike networks, so that one sweep is not the end
    torch.manual_seed(1)
    states = [{n: torch.randn_like(t) for n, t in s.items()} for s in states]
    found = match_transforms(
        spec,
        states,
        (0.5, 0.3, 0.2),
        seed=0,
        max_sweeps=20,
        solver="auto",
        progress=False,
    )
    assert list(found.objectives) == sorted(found.objectives)
    moved = [t.apply(s) for t, s in zip(found.transforms, states, strict=True)]
    total = 0.0
    weights = (0.5, 0.3, 0.2)
    for i in range(3):
        for j in range(i):
            product = sum(
                float((moved[i][n] * moved[j][n]).sum()) for n in moved[i]
            )
            total += weights[i] * weights[j] * product
    assert found.objectives[-1] == pytest.approx(total)


def test_functions_that_load_are_called_late_and_faults_are_named():
    spec, _, states = planted(2)
    loaded = match_many(spec, [lambda: states[0], lambda: states[1]])
    assert loaded.pairwise(0, 1) == match_many(spec, states).pairwise(0, 1)
    broken = {name: t for name, t in states[1].items() if name != "bias"}
    with pytest.raises(StateDictError, match="network 1"):
        match_many(spec, [states[0], broken])
