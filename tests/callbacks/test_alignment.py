"""The spec and the last permutation that a callback keeps."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.kinds import LENGTH, VOCABULARY, Transformer
from helpers.trainers import trainer_in
from lightning.pytorch import LightningModule

from lightning_rebasin import Permutation, Transform, infer_spec
from lightning_rebasin.callbacks import alignment
from lightning_rebasin.callbacks.alignment import Aligner, share_moved
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
    RebasinError,
    SpecError,
    StateDictError,
    TraceError,
)
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.pair import METHODS
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
    found = aligner.align(trainer_in(tmp_path), module, reference)
    assert (found.method, found.scores) == ("weight", {})
    back = found.transform.apply(reference)
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
    found = first.align(trainer_in(tmp_path), module, reference).transform
    resumed = Aligner(module.spec(), 0)
    resumed.check(module)
    resumed.load_state_dict(first.state_dict())
    for aligner in (first, resumed):
        aligner.align(trainer_in(tmp_path), module, reference)
    assert starts[0] is None
    for start in starts[1:]:
        for group, order in found.elements.items():
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
        aligner.align(trainer_in(tmp_path), module, live)


def test_the_share_counts_units_and_not_groups():
    spec = Classifier(hidden=8).spec()
    (group,) = spec.groups
    swapped = torch.tensor([1, 0, *range(2, 8)])
    assert share_moved(Permutation(spec, {group: swapped})) == 0.25


AUTO = METHODS


def batches(count=3, samples=16):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(samples, FEATURES, generator=generator),
            torch.arange(samples) % 3,
        )
        for _ in range(count)
    ]


class Stepwise(Classifier):
    """What forward takes is in no batch; the example is, and other matrix products come before it in the step."""

    def forward(self, x, scale):
        return self.net(x) * scale

    def validation_step(self, batch, batch_idx):
        x, y = batch
        bias = torch.zeros(2)
        torch.nn.functional.linear(torch.eye(2), torch.eye(2), bias)
        logits = self(x.relu(), 2.0)
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, y))
        return logits


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("methods", [("activation",), ("correlation",), AUTO])
@pytest.mark.parametrize("kind", [Classifier, Stepwise])
def test_a_planted_permutation_is_found(tmp_path, methods, kind, batch_norm):
    torch.manual_seed(0)
    module = kind(batch_norm=batch_norm)
    example = torch.randn(4, FEATURES)
    module.example_input_array = (
        example if kind is Classifier else (example, torch.tensor(2.0))
    )
    order = Permutation.random(module.spec(), torch.Generator().manual_seed(7))
    live = {k: v.clone() for k, v in weights_of(module).items()}
    reference = order.apply(live)
    aligner = Aligner(None, 0, methods)
    aligner.check(module)
    module.train()
    before = torch.random.get_rng_state()
    with torch.no_grad(), isolated_rng():
        found = aligner.align(
            trainer_in(tmp_path), module, reference, batches()
        )
    back = found.transform.apply(reference)
    assert all(torch.equal(back[name], live[name]) for name in live)
    assert not found.transform.is_identity
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(v, live[k]) for k, v in weights_of(module).items())
    if methods == AUTO:
        # All agree, so all score alike, and the first one wins.
        assert found.method == "weight"
        assert set(found.scores) == set(AUTO)
        assert len(set(found.scores.values())) == 1


def weights_mislead(module, order):
    """The reference is the module in another order, with large weights that only a constant zero input sees."""
    live = {k: v.clone() for k, v in weights_of(module).items()}
    reference = order.apply(live)
    generator = torch.Generator().manual_seed(5)
    weight = reference["net.fc1.weight"]
    noise = torch.randn(weight[:, 0].shape, generator=generator)
    weight[:, 0] = 30 * noise
    with torch.no_grad():
        module.net.fc1.weight[:, 0] = 30 * noise
    return reference


def blind(batch):
    """Nothing of the first feature."""
    x = batch[0].clone()
    x[:, 0] = 0
    return x, batch[1]


def test_auto_keeps_the_one_that_works_where_weights_fail(tmp_path):
    module, _, order = module_and_permuted()
    reference = weights_mislead(module, order)
    seen = [blind(batch) for batch in batches()]
    alignments = {}
    for methods in (("weight",), ("activation",), ("correlation",), AUTO):
        aligner = Aligner(infer_spec(module), 0, methods)
        aligner.check(module)
        alignments[methods] = aligner.align(
            trainer_in(tmp_path), module, reference, seen
        )
    best = alignments[AUTO]
    assert best.method != "weight"
    right = alignments["correlation",].transform
    wrong = alignments["weight",].transform
    (group,) = right.orders
    assert torch.equal(best.transform.elements[group], right.orders[group])
    assert not torch.equal(wrong.orders[group], right.orders[group])
    assert best.scores["weight"] > 0.01
    assert best.scores[best.method] < 1e-9


def test_the_winner_survives_a_resume(tmp_path):
    module, _, order = module_and_permuted()
    reference = weights_mislead(module, order)
    seen = [blind(batch) for batch in batches()]
    first = Aligner(infer_spec(module), 0, AUTO)
    first.check(module)
    found = first.align(trainer_in(tmp_path), module, reference, seen)
    resumed = Aligner(infer_spec(module), 0, AUTO)
    resumed.check(module)
    resumed.load_state_dict(first.state_dict())
    again = resumed.align(trainer_in(tmp_path), module, reference, seen)
    (group,) = found.transform.elements
    assert torch.equal(
        again.transform.elements[group], found.transform.elements[group]
    )


def test_a_spec_that_shows_no_units_is_refused_before_training():
    module, _, _ = module_and_permuted()
    for methods in (("activation",), AUTO):
        with pytest.raises(ConfigurationError, match="units can be seen"):
            Aligner(module.spec(), 0, methods).check(module)
    Aligner(module.spec(), 0).check(module)


def test_without_batches_or_with_foreign_ones_the_error_is_typed(tmp_path):
    module, live, _ = module_and_permuted()
    aligner = Aligner(None, 0, ("activation",))
    aligner.check(module)
    with pytest.raises(DataError, match="no training batches"):
        aligner.align(trainer_in(tmp_path), module, live)
    foreign = [{"pixels": torch.randn(4, FEATURES)}]
    with pytest.raises((DataError, TraceError)):
        aligner.align(trainer_in(tmp_path), module, live, foreign)


class Language(LightningModule):
    """A tiny transformer with rotations, maps inside heads and permutations."""

    def __init__(self, rotary=False):
        super().__init__()
        self.net = Transformer(rotary)
        tokens = torch.arange(4 * LENGTH).remainder(VOCABULARY)
        self.example_input_array = tokens.reshape(4, LENGTH)

    def forward(self, tokens):
        return self.net(tokens)


def turned_copy(rotary=False):
    """A module, a random element of all its groups, and what that makes of its canonical weights."""
    torch.manual_seed(0)
    module = Language(rotary)
    spec = infer_spec(module, module.example_input_array, kinds="all")
    element = Transform.random(spec, torch.Generator().manual_seed(1))
    return module, element.apply(spec.canonicalise(weights_of(module)))


@pytest.mark.parametrize("rotary", [False, True])
def test_an_element_of_all_kinds_is_found(tmp_path, rotary):
    module, reference = turned_copy(rotary)
    before = {k: v.clone() for k, v in weights_of(module).items()}
    aligner = Aligner(None, 0, kinds="all")
    aligner.check(module)
    found = aligner.align(trainer_in(tmp_path), module, reference)
    kinds = {group.kind for group in found.transform.spec.groups.values()}
    assert kinds & {"orthogonal", "orthogonal_mean"}
    back = found.transform.apply(reference)
    for name, tensor in found.model.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-4)
    # The frame of the comparison is a copy that computes the same function.
    with torch.no_grad():
        tokens = module.example_input_array
        same = torch.func.functional_call(module, found.model, (tokens,))
        torch.testing.assert_close(same, module(tokens), rtol=0, atol=1e-5)
    for name, tensor in weights_of(module).items():
        assert torch.equal(tensor, before[name])


def test_the_best_way_over_all_kinds_survives_a_resume(tmp_path):
    module, reference = turned_copy()
    generator = torch.Generator().manual_seed(2)
    tokens = [
        torch.randint(VOCABULARY, (8, LENGTH), generator=generator)
        for _ in range(3)
    ]
    first = Aligner(None, 0, METHODS, kinds="all")
    first.check(module)
    found = first.align(trainer_in(tmp_path), module, reference, tokens)
    assert set(found.scores) == set(METHODS)
    assert found.scores[found.method] < 1e-8
    resumed = Aligner(None, 0, kinds="all")
    resumed.check(module)
    resumed.load_state_dict(first.state_dict())
    again = resumed.align(trainer_in(tmp_path), module, reference)
    for group, element in found.transform.elements.items():
        torch.testing.assert_close(
            again.transform.elements[group], element, rtol=0, atol=1e-4
        )


def test_an_unknown_kind_is_refused():
    with pytest.raises(SpecError, match="'turns' is not a kind"):
        Aligner(None, 0, kinds="turns")
