"""Which activations let numbers through: expectations from reading the networks."""

from __future__ import annotations

import pytest
import torch
from helpers.proofs import largest_error
from torch import Tensor, nn

from lightning_rebasin import infer_spec


def between(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 2)).double()


ROWS = torch.randn(
    5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


def kinds(net: nn.Module, rows: Tensor = ROWS) -> dict[str, str]:
    """Kind of every group beyond permutations; the function is proved to stay."""
    spec = infer_spec(net.eval(), rows, kinds="all")
    assert largest_error(net, spec, rows) < 1e-9
    # What was found before is found now.
    permutations = infer_spec(net, rows)
    assert set(permutations.groups) <= set(spec.groups)
    return {
        g.id: g.kind for g in spec.groups.values() if g.kind != "permutation"
    }


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # c·relu(x) = relu(c·x) for c > 0
        (nn.ReLU(), {"0/scale": "scale"}),
        (nn.LeakyReLU(), {"0/scale": "scale"}),
        # odd
        (nn.Tanh(), {"0/sign": "sign"}),
        (nn.Softsign(), {"0/sign": "sign"}),
        # neither
        (nn.GELU(), {}),
        (nn.Sigmoid(), {}),
        (nn.SiLU(), {}),
        (nn.Softplus(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_activations(activation, expected):
    assert kinds(between(activation)) == expected


def test_batch_norm_keeps_the_scale_of_its_input_but_not_of_its_output():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)
    ).double()
    found = kinds(net)
    assert list(found.values()) == ["scale"]
    (name,) = found
    spec = infer_spec(net.eval(), ROWS, kinds="all")
    # ε stands beside the variance: the linear layer in front must not change.
    moved = {"1.weight", "1.bias", "3.weight"}
    assert set(spec.tensors_of(name)) == moved


def test_a_bias_added_to_hidden_units_elsewhere_goes_along():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 6, bias=False)
            self.shift = nn.Parameter(torch.randn(6))
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x) + self.shift))

    torch.manual_seed(0)
    net = Shifted().double()
    spec = infer_spec(net, ROWS, kinds="all")
    (scale,) = [g.id for g in spec.groups.values() if g.kind == "scale"]
    assert set(spec.tensors_of(scale)) == {
        "first.weight",
        "shift",
        "last.weight",
    }


def test_a_constant_added_to_hidden_units_ends_it():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x) + 1.0))

    torch.manual_seed(0)
    assert kinds(Added().double()) == {}


def test_gated_units_scale_against_each_other():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 6)
            self.up = nn.Linear(3, 6)
            self.down = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.nn.functional.silu(self.gate(x))
            return self.down(gate * self.up(x))

    torch.manual_seed(0)
    net = Gated().double()
    spec = infer_spec(net, ROWS, kinds="all")
    numbers = [g for g in spec.groups.values() if g.kind != "permutation"]
    assert len(numbers) == 1
    # The gate itself is neither odd nor homogeneous; what it multiplies is linear.
    assert set(spec.tensors_of(numbers[0].id)) == {
        "up.weight",
        "up.bias",
        "down.weight",
    }
    assert largest_error(net, spec, ROWS) < 1e-9
