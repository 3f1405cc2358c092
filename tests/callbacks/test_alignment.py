"""The spec and the last permutation that a callback keeps."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.trainers import trainer_in

from lightning_rebasin import Permutation
from lightning_rebasin.callbacks import alignment
from lightning_rebasin.callbacks.alignment import Aligner, share_moved
from lightning_rebasin.errors import (
    BarrierWarning,
    RebasinError,
    StateDictError,
)
from lightning_rebasin.landscape.weights import weights_of


def module_and_permuted(seed=0):
    torch.manual_seed(seed)
    module = Classifier()
    module.example_input_array = torch.randn(4, FEATURES)
    spec = module.spec()
    permutation = Permutation.random(spec, torch.Generator().manual_seed(7))
    live = {k: v.clone() for k, v in weights_of(module).items()}
    return module, live, permutation


@pytest.mark.parametrize("given", [True, False])
def test_a_permuted_copy_is_brought_back(tmp_path, given):
    module, live, permutation = module_and_permuted()
    aligner = Aligner(module.spec() if given else None, 0)
    before = torch.random.get_rng_state()
    aligner.check(module)
    assert torch.equal(torch.random.get_rng_state(), before)
    reference = permutation.apply(live)
    found = aligner.align(trainer_in(tmp_path), live, reference)
    back = found.apply(reference)
    assert all(torch.equal(back[name], live[name]) for name in live)


def test_the_next_matching_starts_from_the_last_one_also_after_a_resume(
    tmp_path, monkeypatch
):
    module, live, permutation = module_and_permuted()
    reference = permutation.apply(live)
    starts = []
    original = alignment.match_weights

    def watched(*args, init, **kwargs):
        starts.append(init)
        return original(*args, init=init, **kwargs)

    monkeypatch.setattr(alignment, "match_weights", watched)
    first = Aligner(module.spec(), 0)
    first.check(module)
    found = first.align(trainer_in(tmp_path), live, reference)
    resumed = Aligner(module.spec(), 0)
    resumed.check(module)
    resumed.load_state_dict(first.state_dict())
    for aligner in (first, resumed):
        aligner.align(trainer_in(tmp_path), live, reference)
    assert starts[0] is None
    for start in starts[1:]:
        for group, order in found.orders.items():
            assert torch.equal(start.orders[group], order)


def test_without_an_example_the_first_batch_shows_the_symmetries():
    module, _, _ = module_and_permuted()
    module.example_input_array = None
    aligner = Aligner(None, 0)
    aligner.check(module)
    assert aligner._spec is None
    aligner.look(module, (torch.randn(20, FEATURES), torch.arange(20) % 3))
    assert aligner._spec is not None
    assert set(aligner._spec.groups)


def test_another_architecture_and_a_blind_proof_are_said():
    module, _, _ = module_and_permuted()
    with pytest.raises(StateDictError, match="the module"):
        Aligner(Classifier(hidden=9).spec(), 0).check(module)
    with torch.no_grad():
        module.net.fc2.weight.zero_()
        module.net.fc2.weight[0, 0] = 1e-30
    with pytest.warns(BarrierWarning, match="could not prove"):
        Aligner(module.spec(), 0).check(module)


def test_a_failure_of_process_zero_reaches_everybody(tmp_path, monkeypatch):
    module, live, _ = module_and_permuted()
    aligner = Aligner(module.spec(), 0)
    aligner.check(module)

    def fail(*_args, **_kwargs):
        raise RebasinError("told to all")

    monkeypatch.setattr(alignment, "match_weights", fail)
    with pytest.raises(RebasinError, match="told to all"):
        aligner.align(trainer_in(tmp_path), live, live)


def test_the_share_counts_units_and_not_groups():
    spec = Classifier(hidden=8).spec()
    (group,) = spec.groups
    swapped = torch.tensor([1, 0, *range(2, 8)])
    assert share_moved(Permutation(spec, {group: swapped})) == 0.25
