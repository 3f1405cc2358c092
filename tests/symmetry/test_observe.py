"""Activation sites: what is observed moves exactly as the groups say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import randomised
from torch import nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.observe import record_activations
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.qkv, self.p, self.o = (
            nn.Linear(4, 6),
            nn.Linear(6, 18),
            nn.Linear(6, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        x = self.i(x)
        q, k, v = (
            y.unflatten(-1, (3, 2)).transpose(1, 2)
            for y in self.qkv(x).chunk(3, -1)
        )
        return self.o(
            x
            + self.p(
                F.scaled_dot_product_attention(q, k, v)
                .transpose(1, 2)
                .flatten(2)
            )
        )


NETWORKS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)),
        (4,),
    ),
    "cnn": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.Flatten(),
            nn.Linear(16, 2),
        ),
        (1, 6, 6),
    ),
    "attention": lambda: (Attention(), (5, 4)),
}


def observe(spec, net, x):
    seen = []
    with (
        torch.no_grad(),
        record_activations(
            spec, lambda site, t: seen.append((site, site.units(t).clone()))
        ),
    ):
        net(x)
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_units_move_with_their_group(name):
    net, shape = NETWORKS[name]()
    net = randomised(net)
    spec = infer_spec(net, torch.zeros(2, *shape, dtype=torch.float64))
    x = torch.randn(
        3, *shape, dtype=torch.float64
    )  # another batch size than the traced one
    permutation = Permutation.random(spec, torch.Generator().manual_seed(0))
    before = observe(spec, net, x)
    net.load_state_dict(permutation.apply(net.state_dict()))
    after = observe(spec, net, x)
    assert {site.component.group for site, _ in before} == set(
        spec.activations
    )
    for (site, old), (_, new) in zip(before, after, strict=True):
        torch.testing.assert_close(
            new,
            old[permutation.flat(site.component.group)],
            rtol=1e-9,
            atol=1e-12,
        )
        assert old.shape[0] == spec.groups[site.component.group].members


def test_units_are_the_inputs_of_the_next_layer():
    net, _ = NETWORKS["mlp"]()
    x = torch.randn(5, 4)
    ((site, units),) = observe(infer_spec(net, torch.zeros(1, 4)), net, x)
    assert (site.ordinal, site.op, site.argument) == (1, "aten.addmm", 0)
    torch.testing.assert_close(units[:, 0], F.relu(net[0](x)).T)


def test_sites_survive_json():
    net, shape = NETWORKS["attention"]()
    spec = infer_spec(net, torch.zeros(2, *shape))
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec
    x = torch.randn(2, *shape)
    for (_, a), (_, b) in zip(
        observe(spec, net, x), observe(again, net, x), strict=True
    ):
        assert torch.equal(a, b)


def test_another_path_is_refused():
    net, _ = NETWORKS["mlp"]()
    spec = infer_spec(net, torch.zeros(1, 4))
    with (
        pytest.raises(TraceError, match="contractions"),
        record_activations(spec, lambda *_: None),
    ):
        net[0](torch.zeros(1, 4))
    with (
        pytest.raises(TraceError, match="another path"),
        record_activations(spec, lambda *_: None),
    ):
        nn.Sequential(
            nn.Linear(4, 7), nn.Unflatten(1, (7, 1)), nn.Conv1d(7, 2, 1)
        )(torch.zeros(1, 4))
