"""Equal lengths of writers and readers: closed forms, idempotence, and the same function."""

from __future__ import annotations

import torch
from torch import nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.actions.arithmetic import matrix_balance
from lightning_rebasin.symmetry.actions.balance import balancing


def test_the_geometric_mean_balances_two_gram_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    writers, readers = (
        torch.randn(1, 4, 9, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    a = matrix_balance(writers @ writers.mT, readers @ readers.mT)
    written = a @ writers
    read = torch.linalg.inv(a).mT @ readers
    torch.testing.assert_close(
        written @ written.mT, read @ read.mT, rtol=1e-5, atol=1e-6
    )
    # For balanced pairs nothing is left to do.
    again = matrix_balance(written @ written.mT, read @ read.mT)
    torch.testing.assert_close(
        again, torch.eye(4).double()[None], rtol=1e-5, atol=1e-6
    )


def test_relu_units_get_equal_lengths_on_both_sides() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    x = torch.randn(7, 3).double()
    spec = infer_spec(net, x, kinds="all")
    before = net(x)
    canonical = spec.canonicalise(net.state_dict())
    written = (
        canonical["0.weight"].square().sum(1) + canonical["0.bias"].square()
    )
    read = canonical["2.weight"].square().sum(0)
    torch.testing.assert_close(written, read, rtol=1e-6, atol=0)
    net.load_state_dict(canonical)
    torch.testing.assert_close(net(x), before)
    twice = spec.canonicalise(canonical)
    for name, tensor in canonical.items():
        torch.testing.assert_close(twice[name], tensor)


def test_dead_units_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    spec = infer_spec(net, torch.randn(4, 2), kinds="all")
    state = {n: t.clone() for n, t in net.state_dict().items()}
    state["0.weight"][0] = state["0.bias"][0] = 0
    found = balancing(spec, state)
    assert bool(torch.isfinite(found["0/scale"]).all())
    assert bool((found["0/scale"] > 0).all())
