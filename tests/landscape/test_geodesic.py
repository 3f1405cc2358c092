"""geodesic_path against the geometry of Gaussians, which is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.classifier import FEATURES, Classifier, val_loader
from helpers.models import BatchNormCNN, mlp
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import (
    Permutation,
    geodesic_length,
    geodesic_path,
    infer_spec,
)
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.landscape.geodesic import Geodesic
from lightning_rebasin.landscape.paths import Line, Polygon


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny networks on two threads take 40 times as long beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Gaussian(nn.Module):
    """Logits ``−(y − μ)²/2σ²`` on a fine grid of y: a normal distribution, with parameters μ and log σ."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_std = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.grid = torch.linspace(-6, 6, 121, dtype=torch.float64)

    def forward(self, x):
        z = (self.grid - self.mean) / self.log_std.exp()
        return (-0.5 * z.square()).expand(len(x), -1)


def gaussian(mean, std):
    return {
        "mean": torch.tensor(mean, dtype=torch.float64),
        "log_std": torch.tensor(math.log(std), dtype=torch.float64),
    }


BATCH = [torch.zeros(1, 1)]


def test_between_the_means_of_two_gaussians_it_walks_at_even_speed():
    """With the width frozen the length is ``|Δμ|/σ``; the start is uneven, the geodesic is not."""
    net = Gaussian()
    net.log_std.requires_grad_(requires_grad=False)
    a, b = gaussian(-1.0, 0.5), gaussian(1.0, 0.5)

    class Uneven:
        def at(self, t):
            return Line(a, b).at(t**2)

    found = geodesic_path(
        net, a, b, BATCH, pieces=4, steps=300, lr=0.02, start=Uneven()
    )
    means = [float(s["mean"]) for s in found.path.anchors]
    assert means == pytest.approx([-1.0, -0.5, 0.0, 0.5, 1.0], abs=1e-3)
    assert found.energies[-1] < 0.9 * found.energies[0]
    assert all(
        torch.equal(s["log_std"], a["log_std"]) for s in found.path.anchors
    )
    fine = geodesic_length(net, found.path, BATCH, 101)
    assert fine.length == pytest.approx(2.0 / 0.5, rel=1e-3)


def test_between_gaussians_of_any_width_it_is_the_arc_of_the_half_plane():
    """``ds² = (dμ² + 2dσ²)/σ²``: from N(−1, ½²) to N(1, ½²) the semicircle ``μ²/2 + σ² = ½ + ¼``.

    Its length is ``√2·arccosh(1 + 2/(2·¼))``, that of the straight line is ``2/½``.
    """
    net = Gaussian()
    a, b = gaussian(-1.0, 0.5), gaussian(1.0, 0.5)
    middles = []
    for pieces in (6, 12):
        found = geodesic_path(
            net, a, b, BATCH, pieces=pieces, steps=300, lr=0.03
        )
        middle = found.path.anchors[pieces // 2]
        assert float(middle["mean"]) == pytest.approx(0.0, abs=1e-3)
        middles.append(float(middle["log_std"].exp()) ** 2)
    # A chain of K pieces is off by a multiple of 1/K²: by 8 % and by 2 % here.
    assert middles[1] == pytest.approx(0.75, rel=0.03)
    assert (4 * middles[1] - middles[0]) / 3 == pytest.approx(0.75, rel=0.005)
    for state in found.path.anchors:
        mean, std = float(state["mean"]), float(state["log_std"].exp())
        assert mean**2 / 2 + std**2 == pytest.approx(0.75, rel=0.03)
    length = math.sqrt(2) * math.acosh(1 + 2 / (2 * 0.25))
    fine = geodesic_length(net, found.path, BATCH, 201)
    assert fine.length == pytest.approx(length, rel=0.003)
    straight = geodesic_length(net, Line(a, b), BATCH, 201)
    assert straight.length == pytest.approx(4.0, rel=1e-3)


def classifiers(seed=0):
    torch.manual_seed(seed)
    net = mlp(FEATURES, 8, 3)
    return net, [mlp(FEATURES, 8, 3).state_dict() for _ in range(2)]


def test_the_ends_are_kept_and_the_energy_falls_on_unlabelled_batches():
    net, (a, b) = classifiers()
    inputs = [x for x, _ in val_loader()]
    found = geodesic_path(net, a, b, inputs, pieces=5, steps=60, lr=0.01)
    first, *_, last = found.path.anchors
    assert all(torch.equal(first[k], a[k]) for k in a)
    assert all(torch.equal(last[k], b[k]) for k in b)
    assert len(found.path.anchors) == 6
    before = geodesic_length(
        net, Line(a, b), inputs, [k / 5 for k in range(6)]
    )
    after = geodesic_length(net, found.path, inputs, [k / 5 for k in range(6)])
    assert after.energy < 0.8 * before.energy
    labelled = geodesic_path(net, a, b, val_loader(), pieces=5, steps=3)
    plain = geodesic_path(net, a, b, inputs, pieces=5, steps=3)
    assert labelled.energies == plain.energies
    assert "6 networks" in repr(found)


def test_the_energy_is_that_of_the_chain():
    net, (a, b) = classifiers()
    (x, _) = next(iter(val_loader()))
    found = geodesic_path(net, a, b, [x], pieces=4, steps=1)
    steps = geodesic_length(net, Line(a, b), [x], [0.25, 0.75])
    assert found.energies[0] == pytest.approx(steps.energy, rel=1e-5)


def test_a_matched_start_leads_to_the_matched_end():
    net, (a, _) = classifiers()
    spec = infer_spec(net, torch.zeros(1, FEATURES))
    shuffle = Permutation.random(spec, torch.Generator().manual_seed(1))
    b = shuffle.apply(a)
    naive = geodesic_path(net, a, b, val_loader(), pieces=3, steps=2)
    matched = geodesic_path(
        net,
        a,
        b,
        val_loader(),
        pieces=3,
        steps=2,
        permutation=shuffle.inverse(),
    )
    assert naive.energies[0] > 1e-4
    assert matched.energies[0] < 1e-9
    last = matched.path.anchors[-1]
    assert all(torch.equal(last[k], a[k]) for k in a)


def test_it_is_seeded():
    module, a, b = two_classifiers()

    def run(seed):
        loader = torch.utils.data.DataLoader(
            val_loader().dataset, batch_size=8, shuffle=True
        )
        return geodesic_path(
            module, a, b, loader, pieces=2, steps=4, seed=seed
        )

    one, same, other = run(0), run(0), run(1)
    assert one.energies == same.energies
    assert one.energies != other.energies


def test_batch_norms_run_on_the_batch_and_their_statistics_stay_on_the_start():
    torch.manual_seed(0)
    net = BatchNormCNN()
    a, b = (BatchNormCNN().state_dict() for _ in range(2))
    b = {k: v + 3 if "running" in k else v for k, v in b.items()}
    images = [torch.randn(6, 3, 8, 8)]
    found = geodesic_path(net, a, b, images, pieces=2, steps=3)
    first, middle, last = found.path.anchors
    start = Line(a, b).at(0.5).state()
    for name in a:
        assert torch.equal(first[name], a[name])
        assert torch.equal(last[name], b[name])
        statistic = "running" in name or "tracked" in name
        assert torch.equal(middle[name], start[name]) == statistic
    # Running statistics do not matter.
    far = {k: v + 50 if "running" in k else v for k, v in b.items()}
    again = geodesic_path(net, a, far, images, pieces=2, steps=3)
    assert again.energies == found.energies


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    torch.manual_seed(0)
    ends = []
    for _ in range(2):
        weight = torch.randn(3, 3)
        ends.append(
            {
                "0.weight": weight,
                "0.bias": torch.randn(3),
                "2.weight": weight,
                "2.bias": torch.randn(3),
            }
        )
    found = geodesic_path(net, *ends, [torch.randn(4, 3)], pieces=2, steps=5)
    middle = found.path.anchors[1]
    assert torch.equal(middle["0.weight"], middle["2.weight"])
    start = Line(*ends).at(0.5).state()
    assert not torch.equal(middle["0.weight"], start["0.weight"])


def test_it_works_in_inference_mode():
    net, (a, b) = classifiers()
    with torch.inference_mode():
        found = geodesic_path(
            net, a, b, [torch.ones(2, FEATURES)], pieces=2, steps=1
        )
    assert not found.path.anchors[1]["0.weight"].is_inference()


def test_the_module_and_the_ends_are_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True)
    kept = [{k: v.clone() for k, v in s.items()} for s in (a, b)]
    with untouched(module):
        geodesic_path(module, a, b, val_loader(), pieces=3, steps=3)
    for state, before in zip((a, b), kept, strict=True):
        assert all(torch.equal(state[k], before[k]) for k in before)


def test_wrong_input_is_named():
    net, (a, b) = classifiers()
    batches = [torch.ones(2, FEATURES)]
    with pytest.raises(ConfigurationError, match="pieces=1"):
        geodesic_path(net, a, b, batches, pieces=1)
    with pytest.raises(DataError, match="no batch"):
        geodesic_path(net, a, b, [])
    with pytest.raises(DataError, match="twice"):
        geodesic_path(net, a, b, iter(batches), pieces=2, steps=2)
    with pytest.raises(StateDictError, match="set of weights 2"):
        geodesic_path(net, a, {}, batches)
    with pytest.raises(NonFiniteError, match="step 0"):
        geodesic_path(net, a, b, [batches[0] / 0], pieces=2)
    with pytest.raises(ConfigurationError, match="output="):
        geodesic_path(
            net, a, b, batches, output=lambda m, x: m(x)[0], pieces=2
        )
    with pytest.raises(ConfigurationError, match="frozen"):
        geodesic_path(net.requires_grad_(requires_grad=False), a, b, batches)


def test_a_lightning_module_needs_no_trainer():
    module = Classifier()
    state = module.state_dict()
    found = geodesic_path(
        module, state, state, val_loader(), pieces=2, steps=1
    )
    assert isinstance(found, Geodesic)
    assert isinstance(found.path, Polygon)
