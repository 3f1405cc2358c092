"""The rival in the benchmarks does what its paper says: a copy in another order is zipped to the network itself."""

from __future__ import annotations

import torch
from helpers.models import LeNet, randomise
from helpers.zipit import zip_networks

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import Permutation


def test_a_permuted_copy_is_zipped_to_the_network_itself() -> None:
    torch.manual_seed(0)
    net = randomise(LeNet())
    # Enough images that no two units are active on the same one only.
    x = torch.randn(600, 1, 28, 28)
    state = {name: t.clone() for name, t in net.state_dict().items()}
    wanted = net(x).detach()
    spec = infer_spec(net, x[:2])
    generator = torch.Generator().manual_seed(1)
    copied = Permutation.random(spec, generator).apply(state)
    merged = zip_networks(LeNet(), (state, copied), x)
    net.load_state_dict(merged)
    assert float((net(x).detach() - wanted).norm() / wanted.norm()) < 1e-3


def test_features_of_one_network_may_meet() -> None:
    """Twins within each network, and nothing in common between the two: every merged feature is one pair of twins."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        half = torch.zeros(2, 8)
        half[:, 4 * (seed - 1) : 4 * seed] = torch.randn(2, 4)
        states.append(
            {
                "0.weight": torch.cat([half, half]),
                "0.bias": torch.zeros(4),
                "1.weight": torch.randn(2, 4),
                "1.bias": torch.randn(2),
            }
        )
    x = torch.randn(200, 8)
    merged = zip_networks(net, (states[0], states[1]), x)

    def out(state: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = (x @ state["0.weight"].T + state["0.bias"]).relu()
        return hidden @ state["1.weight"].T + state["1.bias"]

    wanted = (out(states[0]) + out(states[1])) / 2
    torch.testing.assert_close(out(merged), wanted, rtol=1e-4, atol=1e-4)
