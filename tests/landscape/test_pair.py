"""Two ends on batches: what they are matched by, what their midpoint is judged by, and what other processes add."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from torch import nn

from lightning_rebasin import Permutation, infer_spec, reset_batch_norm
from lightning_rebasin.errors import DataError, RebasinError, TraceError
from lightning_rebasin.landscape.pair import (
    METHODS,
    BatchNetwork,
    Pair,
    Processes,
    closest,
)
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.interpolate import interpolate
from lightning_rebasin.symmetry import pin_group


def batches(count=4, samples=16, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(samples, FEATURES, generator=generator),
            torch.arange(samples) % 3,
        )
        for _ in range(count)
    ]


def two(hidden=8, **kwargs):
    """A module, its own weights and those of another one."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = Classifier(hidden=hidden, **kwargs)
        module.example_input_array = torch.randn(4, FEATURES)
        if kwargs.get("batch_norm"):
            module.net.norm.running_mean.normal_()
        found.append(module)
    a, b = ({k: v.clone() for k, v in weights_of(m).items()} for m in found)
    return found[0], a, b


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_distance_is_that_of_the_midpoint_with_its_batch_norms_reset(
    batch_norm,
):
    module, a, b = two(batch_norm=batch_norm)
    still = Permutation.identity(infer_spec(module))
    data = batches()
    found = Pair(module, a, b).distances({"weight": still}, data)
    middle = Classifier(batch_norm=batch_norm)
    middle.load_state_dict(
        {**module.state_dict(), **interpolate(a, b, lam=0.5)}
    )
    middle = reset_batch_norm(middle, [x for x, _ in data])
    module.eval()
    everything = torch.cat([x for x, _ in data])
    with torch.no_grad():
        got = middle(everything).double()
        ends = []
        for state in (a, b):
            module.load_state_dict({**module.state_dict(), **state})
            ends.append(module(everything).double())
    wanted = sum(ends) / 2
    spread = wanted.var(0, unbiased=False).sum()
    expected = (got - wanted).square().mean(0).sum() / spread
    assert found == {"weight": pytest.approx(float(expected), rel=1e-5)}
    assert found["weight"] > 1e-3


def test_equal_matchings_are_judged_once_and_score_alike(monkeypatch):
    module, a, b = two()
    spec = infer_spec(module)
    pair = Pair(module, a, b)
    judged = []
    original = Pair._distance

    def counting(self, permutation, data):
        judged.append(permutation)
        return original(self, permutation, data)

    monkeypatch.setattr(Pair, "_distance", counting)
    random = Permutation.random(spec, torch.Generator().manual_seed(1))
    rivals = {
        "weight": Permutation.identity(spec),
        "activation": random,
        "correlation": Permutation.identity(spec),
    }
    found = pair.distances(rivals, batches())
    assert len(judged) == 2
    assert found["weight"] == found["correlation"] != found["activation"]


class Recording(Processes):
    """The first process: notes what it would add."""

    def __init__(self):
        self.sums, self.said = [], []

    def total(self, tensor):
        self.sums.append(tensor.clone())
        return tensor

    def agree(self, error):
        self.said.append(error)
        super().agree(error)


class Adding(Processes):
    """The second process: adds what the first one noted."""

    def __init__(self, sums):
        self.sums = iter(sums)

    def total(self, tensor):
        return tensor + next(self.sums)


@pytest.mark.parametrize("method", METHODS[1:])
def test_statistics_are_summed_over_processes(method):
    module, a, b = two(hidden=32)
    spec, data = infer_spec(module), batches()
    (group,) = spec.groups
    whole = Pair(module, a, b).match(spec, data, [method])[method][group]
    halves = [
        Pair(module, a, b).match(spec, data[i::2], [method])[method][group]
        for i in (0, 1)
    ]
    assert not torch.equal(halves[1], whole)
    first = Recording()
    Pair(module, a, b, processes=first).match(spec, data[::2], [method])
    second = Pair(module, a, b, processes=Adding(first.sums))
    assert torch.equal(
        second.match(spec, data[1::2], [method])[method][group], whole
    )
    assert first.said == [None]


def test_a_failure_is_told_once_and_that_of_another_process_ends_this_one():
    module, a, b = two()
    spec = infer_spec(module)
    told = Recording()
    wrong = [(torch.randn(4, FEATURES + 1), torch.zeros(4))]
    with pytest.raises(
        TraceError, match=r"forward does not run .* by weights"
    ):
        Pair(module, a, b, processes=told).match(spec, wrong, ["activation"])
    assert [type(error) for error in told.said] == [TraceError]

    class Failing(Processes):
        def agree(self, error):
            raise RebasinError("the other one failed")

    pair = Pair(module, a, b, processes=Failing())
    with pytest.raises(RebasinError, match="the other one"):
        pair.match(spec, batches(), ["activation"])
    with pytest.raises(RebasinError, match="the other one"):
        pair.distances({"weight": Permutation.identity(spec)}, batches())


def test_without_groups_nothing_runs():
    module, a, b = two()
    spec = infer_spec(module)
    for group in list(spec.groups):
        spec = pin_group(spec, group)
    assert (
        Pair(module, a, b)
        .match(spec, [object()], ["activation"])["activation"]
        .is_identity
    )


def test_outputs_that_change_their_shape_cannot_be_averaged():
    net = nn.Linear(2, 1)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    spec = infer_spec(net, torch.ones(1, 2))
    rivals = {"weight": Permutation.identity(spec)}
    pair = Pair(net, state, state)
    data = [torch.randn(3, length, 2) for length in (4, 5)]
    with pytest.raises(DataError, match="another shape in another batch"):
        pair.distances(rivals, data)
    assert pair.distances(rivals, data[:1])["weight"] == pytest.approx(0.0)


def test_both_ends_see_the_same_random_numbers_and_give_them_back():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(x + torch.randn_like(x))

    net = Noisy()
    first, second = BatchNetwork(net), BatchNetwork(net)
    before = torch.random.get_rng_state()
    x = torch.ones(4, 2)
    assert torch.equal(first(x), second([x, "label"]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_step_runs_on_the_whole_batch_and_does_not_change_it():
    class Scaling(Classifier):
        def validation_step(self, batch, batch_idx):
            batch[0].mul_(0.5)
            self.log("val_loss", self(batch[0]).sum())

    module, _, _ = two()
    module.__class__ = Scaling
    network = BatchNetwork(module, "validation_step")
    (batch,) = batches(1)
    kept = batch[0].clone()
    with torch.no_grad():
        expected = module(kept * 0.5).sum()
    assert torch.allclose(network(batch)["val_loss"], expected)
    assert torch.equal(batch[0], kept)
    assert list(network.state_dict()) == list(weights_of(module))


def test_the_lowest_finite_score_wins_and_the_first_of_equals():
    nan = float("nan")
    assert closest({"weight": nan, "activation": 2.0}) == "activation"
    assert closest({"weight": 2.0, "activation": 1.0}) == "activation"
    assert closest({"weight": 1.0, "activation": 1.0}) == "weight"
    assert closest({"weight": nan, "activation": nan}) == "weight"
