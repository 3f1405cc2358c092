"""predict_barrier: closed forms, the kernel identity on networks, finite differences, and what is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier, val_loader
from helpers.models import BatchNormCNN
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn
from torch.utils.data import DataLoader

from lightning_rebasin import (
    interpolate,
    layer_barriers,
    measure_barrier,
    predict_barrier,
)
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    StateDictError,
)

ONES = [torch.ones(1, 1, dtype=torch.float64)]


def product():
    """``L = ½(ab − 1)²``."""
    net = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    )

    def loss(module, x):
        return 0.5 * (module(x) - 1).square().mean()

    return net.double(), loss


def at(*values):
    return {
        f"{k}.weight": torch.tensor([[w]], dtype=torch.float64)
        for k, w in enumerate(values)
    }


def cross_entropy(module, batch):
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def double(loader):
    return [(x.double(), y) for x, y in loader]


def ends(make):
    """Two sets of weights of a float64 network."""
    torch.manual_seed(5)
    a, b = (make().double().state_dict() for _ in range(2))
    return make().double(), a, b


def smooth():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def rectified():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_the_product_of_two_numbers():
    """(1, 1) → (−1, −1): barrier ½, ΔᵀHΔ = 16 at the ends and −8 in the middle."""
    net, loss = product()
    found = predict_barrier(net, at(1, 1), at(-1, -1), ONES, loss=loss)
    assert found.curvatures[0] == pytest.approx(16)
    assert found.curvatures[-1] == pytest.approx(16)
    assert min(found.curvatures) == pytest.approx(-8)
    assert found.barriers() == pytest.approx(
        {
            "measured": 0.5,
            "by slopes": 0.5,
            "by curvatures": 0.5,
            "quintic": 0.5,
            "Taylor": 2.0,
            "bound": 1.0,
        },
        abs=1e-12,
    )
    assert found.distance == pytest.approx(8**0.5)
    assert found.mu == pytest.approx(1.0)
    # One factor from 1 to −1: L = ½(−2α)², a curvature of 4.
    for layer in found.layers:
        assert layer.curvatures == pytest.approx((4, 4))
        assert layer.slopes == pytest.approx((0, 0), abs=1e-15)
        assert layer.predicted == pytest.approx((0.5, 0.5))
        assert layer.measured == pytest.approx((0.5, 0.5))
        assert layer.distance == 2.0


def test_slopes_and_layers_away_from_a_minimum():
    """(2, 1) → (0, 3) by hand: ab − 1 = 1 and −1."""
    net, loss = product()
    found = predict_barrier(net, at(2, 1), at(0, 3), ONES, loss=loss)
    # g = (ab − 1)·(b, a): (1, 2) and (−3, 0); Δ = (−2, 2).
    assert found.slopes[0] == pytest.approx(1 * -2 + 2 * 2)
    assert found.slopes[-1] == pytest.approx(6)
    first, second = found.layers
    # Seen from the second end Δ is (2, −2).
    assert first.slopes == pytest.approx((-2, -6))
    assert second.slopes == pytest.approx((4, 0))
    # H_aa = b², H_bb = a².
    assert first.curvatures == pytest.approx((4 * 1, 4 * 9))
    assert second.curvatures == pytest.approx((4 * 4, 0))
    # Half way from the first end: (1, 1) and (2, 2) instead of a loss of ½.
    assert first.measured == pytest.approx((0 - 0.5, 2 - 0.5))
    assert second.measured == pytest.approx((4.5 - 0.5, 0.5 - 0.5))
    # The loss is a square in each number, so the expansion is exact.
    assert first.taylor == pytest.approx(first.measured)
    assert second.taylor == pytest.approx(second.measured)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_the_kernel_identity_on_a_smooth_network(alpha):
    net, a, b = ends(smooth)
    found = predict_barrier(
        net, a, b, double(val_loader()), nodes=8, loss=cross_entropy
    )
    row = dict(
        zip(found.measured.lambdas, found.measured.values["loss"], strict=True)
    )
    height = row[alpha] - (1 - alpha) * row[0.0] - alpha * row[1.0]
    assert abs(height) > 1e-3
    assert found.by_curvatures(alpha) == pytest.approx(height, abs=1e-6)
    assert found.by_slopes(alpha) == pytest.approx(height, abs=1e-6)
    assert found.barrier <= found.bound


def test_curvature_by_finite_differences():
    net, a, b = ends(smooth)
    batches = double(val_loader())
    found = predict_barrier(net, a, b, batches, loss=cross_entropy)
    step = 1e-3

    def loss(t):
        state = interpolate(a, b, t)
        curve = measure_barrier(
            net, state, state, batches, points=2, loss=cross_entropy
        )
        return curve.values["loss"][0]

    for place in (0, 4, -1):
        s = found.grid.at[place]
        low, here, high = loss(s - step), loss(s), loss(s + step)
        curvature = (low - 2 * here + high) / step**2
        assert found.curvatures[place] == pytest.approx(curvature, rel=1e-4)
        assert found.slopes[place] == pytest.approx(
            (high - low) / (2 * step), rel=1e-4
        )
        assert found.losses[place] == pytest.approx(here)


def test_rectifiers_hide_curvature_in_their_kinks():
    net, a, b = ends(rectified)
    found = predict_barrier(
        net, a, b, double(val_loader(400, 400)), pieces=32, loss=cross_entropy
    )
    assert found.by_slopes() == pytest.approx(found.barrier, abs=1e-4)
    assert abs(found.by_curvatures() - found.barrier) > 1e-2


def test_batch_norm_statistics_belong_to_the_direction():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    a = {k: v.clone() for k, v in net.state_dict().items()}
    b = dict(a)
    b["1.running_mean"] = a["1.running_mean"] + 1.5
    b["1.running_var"] = a["1.running_var"] * 3
    b["1.num_batches_tracked"] = a["1.num_batches_tracked"] + 7
    batches = double(val_loader())
    found = predict_barrier(net, a, b, batches, nodes=8, loss=cross_entropy)
    assert abs(found.barrier) > 1e-3
    assert found.by_curvatures() == pytest.approx(found.barrier, abs=1e-7)
    # The norm belongs to the layer before it.
    assert found.layers[0].distance == pytest.approx(found.distance)
    assert found.layers[1].curvatures == (0.0, 0.0)


def test_convolutions_with_batch_norms():
    torch.manual_seed(3)
    net = BatchNormCNN().double()
    a, b = (BatchNormCNN().double().state_dict() for _ in range(2))
    images = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(2)]

    def loss(module, x):
        return module(x).square().mean()

    found = predict_barrier(
        net, a, b, images, pieces=16, loss=loss, by_layer=False
    )
    curve = measure_barrier(net, a, b, images, points=17, loss=loss)
    assert found.measured.values == curve.values
    assert found.by_slopes() == pytest.approx(found.barrier, rel=1e-2)
    assert found.layers == ()


def test_a_lightning_module_predicts_what_it_logs():
    module, a, b = two_classifiers(batch_norm=True)
    found = predict_barrier(module, a, b, val_loader(), pieces=8)
    curve = measure_barrier(module, a, b, val_loader(), points=3)
    assert found.metric == "val_loss"
    assert found.samples == 50
    assert found.barrier == pytest.approx(
        curve.midpoint("val_loss") - sum(curve.values["val_loss"][::2]) / 2
    )
    assert found.by_slopes() == pytest.approx(found.barrier, abs=0.02)
    layers = layer_barriers(module, a, b, val_loader(), points=3)
    assert tuple(layer.layer for layer in found.layers) == layers.layers
    row = layers.values["val_loss"]["b"][0]
    change = row[1] - layers.ends["val_loss"][1]
    assert found.layers[0].measured[1] == pytest.approx(change)


def test_batches_of_unequal_size_and_permutations():
    net, a, b = ends(smooth)
    x, y = next(iter(double(DataLoader(val_loader().dataset, 50))))
    whole = predict_barrier(net, a, b, [(x, y)], loss=cross_entropy)
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    split = predict_barrier(net, a, b, parts, loss=cross_entropy)
    assert split.curvatures == pytest.approx(whole.curvatures, rel=1e-9)
    assert split.slopes == pytest.approx(whole.slopes, rel=1e-9)
    for one, other in zip(split.layers, whole.layers, strict=True):
        assert one.curvatures == pytest.approx(other.curvatures, rel=1e-9)

    class Back:
        def apply(self, state):
            return a

    same = predict_barrier(
        net, a, b, parts, loss=cross_entropy, permutation=Back()
    )
    assert set(same.barriers().values()) == {0.0}
    first = predict_barrier(
        net, a, b, parts, loss=cross_entropy, limit_batches=1
    )
    assert first.samples == 7


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)))


def test_tied_weights_move_once():
    net, a, b = ends(Tied)
    batches = double(val_loader())
    found = predict_barrier(net, a, b, batches, nodes=8, loss=cross_entropy)
    assert found.by_curvatures() == pytest.approx(found.barrier, abs=1e-6)
    length = (a["embed.weight"] - b["embed.weight"]).norm()
    assert found.distance == pytest.approx(float(length))
    assert len(found.layers) == 1
    assert found.layers[0].curvatures[0] == pytest.approx(found.curvatures[0])


def test_attention_has_a_second_derivative():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    states = []
    for _ in range(2):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        states.append(layer.state_dict())
    x = [torch.randn(3, 5, 8)]
    found = predict_barrier(
        net, *states, x, loss=lambda m, x: (m(x) - x).square().mean()
    )
    assert all(abs(c) > 0 for c in found.curvatures)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_module_and_the_callers_mode_are_left_alone(mode):
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True)
    before = {k: v.clone() for k, v in b.items()}
    with untouched(module), mode():
        found = predict_barrier(module, a, b, val_loader(), by_layer=False)
    assert found.by_slopes() != 0
    assert all(torch.equal(before[k], b[k]) for k in b)
    assert not any(v.requires_grad for v in [*a.values(), *b.values()])


def test_what_is_refused():
    net, a, b = ends(smooth)
    batches = double(val_loader())
    options = {"loss": cross_entropy}
    with pytest.raises(ConfigurationError, match="validation_step"):
        predict_barrier(net, a, b, batches)
    with pytest.raises(StateDictError, match="set of weights 2"):
        predict_barrier(
            net, a, rectified()[0].state_dict(), batches, **options
        )
    with pytest.raises(DataError, match="no batch"):
        predict_barrier(net, a, b, [], **options)
    with pytest.raises(ConfigurationError, match="pieces=3"):
        predict_barrier(net, a, b, batches, pieces=3, **options)
    with pytest.raises(ConfigurationError, match="one loader"):
        predict_barrier(net, a, b, [val_loader(), val_loader()], **options)
    with pytest.raises(DataError, match="'f1'"):
        predict_barrier(net, a, b, batches, metric="f1", **options)


def test_losses_that_cannot_be_differentiated_are_refused():
    net, a, b = ends(smooth)
    batches = double(val_loader())

    def silent(module, batch):
        with torch.no_grad():
            return cross_entropy(module, batch)

    with pytest.raises(ConfigurationError, match="no gradient"):
        predict_barrier(net, a, b, batches, loss=silent)
    with pytest.raises(ConfigurationError, match="not one number"):
        predict_barrier(net, a, b, batches, loss=lambda m, x: m(x[0]))


def test_a_random_loss_is_refused():
    module, a, b = two_classifiers(noise=True)
    with pytest.raises(ConfigurationError, match="'val_loss' is random"):
        predict_barrier(module, a, b, val_loader())


class Summed(Classifier):
    def validation_step(self, batch, batch_idx):
        loss = cross_entropy(self, batch)
        self.log("val_loss", loss, reduce_fx="sum")


def test_a_loss_that_is_not_averaged_is_refused():
    module = Summed()
    a, b = Summed().state_dict(), Summed().state_dict()
    with pytest.raises(ConfigurationError, match="reduce_fx"):
        predict_barrier(module, a, b, val_loader())
