"""Proposals that are wrong are taken back kind by kind, with the reason."""

from __future__ import annotations

from unittest import mock

import torch
from torch import nn

from lightning_rebasin import check_equivalence, infer_spec
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.symmetry.continuous import candidates
from lightning_rebasin.symmetry.proof import kinds as proof_kinds


def gelu_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)
    )


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def claim(group, kind, powers):  # type: ignore[no-untyped-def]
    return candidates.Candidate(group.id, kind, powers, inside=True)


def test_a_wrong_claim_falls_back_to_the_next_and_then_to_permutation() -> (
    None
):
    powers = {"0.weight": 1, "0.bias": 1, "2.weight": -1}
    real = candidates._numbers

    def lying(group, tapes, kinds):  # type: ignore[no-untyped-def]
        if group.id == "0":
            return [
                claim(group, "scale", powers),
                claim(group, "sign", powers),
            ]
        return real(group, tapes, kinds)

    net = gelu_network()
    with mock.patch.object(candidates, "_numbers", lying):
        spec = infer_spec(net, X, kinds="all")
    assert set(spec.groups) == {"0", "2", "2/sign"}
    assert "random elements of the kind 'sign'" in spec.limits["0"]
    transform = Transform.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(net, transform, X) < 1e-12


def test_a_wrong_larger_kind_gives_way_to_a_right_smaller_one() -> None:
    powers = {"2.weight": 1, "2.bias": 1, "4.weight": -1}
    real = candidates._numbers

    def lying(group, tapes, kinds):  # type: ignore[no-untyped-def]
        found = real(group, tapes, kinds)
        if group.id != "2":
            return found
        return [claim(group, "scale", powers), *found]

    with mock.patch.object(candidates, "_numbers", lying):
        spec = infer_spec(gelu_network(), X, kinds="all")
    assert spec.groups["2/sign"].kind == "sign"
    assert "'scale'" in spec.limits["2"]


def test_what_the_example_cannot_see_is_not_handed_out() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1e-13 * self.net(x).sum(-1, keepdim=True)

    spec = infer_spec(Deaf(), X, kinds="all")
    assert all(g.kind == "permutation" for g in spec.groups.values())
    assert any("does not see" in why for why in spec.limits.values())


def test_one_backward_pass_stands_for_a_run_per_group() -> None:
    net = gelu_network()
    ran = []
    real = proof_kinds.run_all

    def counted(*args):  # type: ignore[no-untyped-def]
        ran.append(1)
        return real(*args)

    with mock.patch.object(proof_kinds, "run_all", counted):
        spec = infer_spec(net, X, kinds="all")
    assert spec.groups["2/sign"].kind == "sign"
    # As it is, with random elements, and with elements that move every unit.
    assert len(ran) == 3


def test_where_autograd_sees_nothing_the_network_is_run() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = gelu_network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).detach()

    spec = infer_spec(Detached(), X, kinds="all")
    assert spec.groups["net.2/sign"].kind == "sign"


def test_the_first_order_never_claims_more_than_the_outputs_change() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 2).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    before = {"y": linear(x)}
    (gradient,) = torch.autograd.grad(
        proof_kinds._signed_mean(before), linear.weight
    )
    with torch.no_grad():
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            change = torch.randn(2, 3, generator=generator).double()
            claimed = (gradient * change).sum().abs()
            # The network is linear, so the first order is all.
            moved = (x @ change.T).abs().max() / before["y"].abs().max()
            assert 0 < claimed <= moved
