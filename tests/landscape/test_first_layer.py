"""The shortcut of the first layer gives what the layer gives, and is not taken where it would be wrong."""

from __future__ import annotations

import pytest
import torch
from helpers.models import mlp
from torch import nn

from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.path_curve import measure_path
from lightning_rebasin.landscape.paths import Bezier


def ends(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            k: torch.randn(v.shape, generator=generator, dtype=v.dtype)
            for k, v in module.state_dict().items()
        }
        for _ in range(2)
    ]


def direct(module, a, b, lam, x):
    mixed = {k: (1 - lam) * a[k] + lam * b[k] for k in a}
    return float(
        torch.func.functional_call(module, mixed, x).square().mean().detach()
    )


def calls_of(monkeypatch):
    """Counts the matrix products of linear layers."""
    counts = []
    original = torch.nn.functional.linear

    def counting(x, weight, bias=None):
        counts.append(tuple(weight.shape))
        return original(x, weight, bias)

    monkeypatch.setattr("torch.nn.functional.linear", counting)
    return counts


class Shifted(nn.Module):
    """Something trainable stands before the first linear layer."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        self.net = mlp(3, 5, 2)

    def forward(self, x):
        return self.net(x + self.shift)


class InPlace(nn.Module):
    """Works in place on the output, and on the input, of its first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        y = self.first(x)
        x.zero_()
        return self.second(y.relu_())


class Twice(nn.Module):
    """Runs the same layer twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Normed(nn.Module):
    """The weight is computed from two others before each call, and is no affine function of them."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.weight_norm(
            nn.Linear(3, 3)
        )

    def forward(self, x):
        return self.layer(x)


class Clipping(nn.Module):
    """Changes its weights in place before it uses them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            self.layer.weight.clamp_(-0.5, 0.5)
        return self.layer(x)


class Functional(nn.Module):
    """Runs its layer with other weights than the layer's own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return torch.func.functional_call(
            self.layer, {"weight": self.layer.weight.square()}, x
        )


@pytest.mark.parametrize("make", [Normed, Clipping, Functional])
def test_weights_that_are_not_those_of_the_point_are_used_as_they_are(make):
    module = make().double()
    a, b = ends(module)
    x = torch.randn(4, 3, dtype=torch.double)
    lambdas = (0, 0.3, 0.5, 1)
    expected = []
    for lam in lambdas:
        plain = make().double()
        plain.load_state_dict({k: (1 - lam) * a[k] + lam * b[k] for k in a})
        expected.append(float(plain(x.clone()).square().mean().detach()))
    curve = measure_barrier(
        module, a, b, [x], points=[0.3], loss=lambda m, x: m(x).square().mean()
    )
    assert curve.values["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "saves"),
    [
        (lambda: mlp(3, 5, 2), True),
        (Shifted, False),
        (InPlace, True),
        (Twice, True),
    ],
)
def test_values_are_those_of_the_plain_network(make, saves, monkeypatch):
    module = make().double()
    a, b = ends(module)
    batches = [torch.randn(4, 3, dtype=torch.double) for _ in range(3)]
    expected = [
        sum(direct(module, a, b, lam, x.clone()) for x in batches) / 3
        for lam in (0, 0.2, 0.5, 0.8, 1)
    ]
    counts = calls_of(monkeypatch)
    points = [0.2, 0.8]
    curve = measure_barrier(
        module,
        a,
        b,
        batches,
        points=points,
        loss=lambda m, x: m(x).square().mean(),
    )
    assert curve.values["loss"] == pytest.approx(expected, rel=1e-12)
    assert len(counts) == 3 * (5 * 2 - (3 if saves else 0))


def test_a_bend_that_is_no_point_is_asked_for_its_first_layer_alone(
    monkeypatch,
):
    """Of two layers at five points and in two batches: both at the ends, the second between, the first at the bend."""
    module = mlp(3, 5, 2).double()
    a, b = ends(module)
    bend, _ = ends(module, seed=1)
    batches = [torch.randn(4, 3, dtype=torch.double) for _ in range(2)]
    grid = (0.0, 0.2, 0.5, 0.8, 1.0)
    expected = []
    for t in grid:
        mixed = {
            k: (1 - t) ** 2 * a[k] + 2 * t * (1 - t) * bend[k] + t**2 * b[k]
            for k in a
        }
        outputs = [
            torch.func.functional_call(module, mixed, x) for x in batches
        ]
        expected.append(float(torch.stack(outputs).square().mean().detach()))
    counts = calls_of(monkeypatch)
    curve = measure_path(
        module,
        Bezier((a, bend, b)),
        batches,
        grid,
        loss=lambda m, x: m(x).square().mean(),
    )
    assert curve.values["loss"] == pytest.approx(expected, rel=1e-12)
    assert counts.count((5, 3)) == 2 * (2 + 1)
    assert counts.count((2, 5)) == 2 * 5


def test_autocast_is_computed_as_usual(monkeypatch):
    module = mlp(3, 5, 2)
    a, b = ends(module)
    counts = calls_of(monkeypatch)

    def loss(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m(x).float().square().mean()

    measure_barrier(module, a, b, [torch.randn(4, 3)], points=5, loss=loss)
    assert len(counts) == 10
