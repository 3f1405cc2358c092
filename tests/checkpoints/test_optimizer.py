import copy

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn

from lightning_rebasin.checkpoints.optimizer import permute_optimizer_states
from lightning_rebasin.errors import CheckpointError
from lightning_rebasin.symmetry import Permutation, infer_spec

OPTIMIZERS = {
    "sgd momentum": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=1e-3
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def train(net, optimizer, steps, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 3, 8, 8, generator=g, dtype=torch.float64)
        y = torch.randint(5, (16,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_ten_steps_are_the_same_after_permuting(kind):
    net = randomise(BatchNormCNN(4)).double().train()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, 5, seed=0)
    spec = infer_spec(net, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    p = Permutation.random(spec, torch.Generator().manual_seed(2))

    other = copy.deepcopy(net)
    other.load_state_dict(p.apply(net.state_dict()))
    moved = OPTIMIZERS[kind](other.parameters())
    moved.load_state_dict(
        permute_optimizer_states([optimizer.state_dict()], p)[0]
    )
    unmoved_net = copy.deepcopy(other)
    unmoved = OPTIMIZERS[kind](unmoved_net.parameters())
    unmoved.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for network, opt in (
        (net, optimizer),
        (other, moved),
        (unmoved_net, unmoved),
    ):
        train(network, opt, 10, seed=1)
    expected = p.apply(net.state_dict())
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-9, atol=1e-11
        )
    gap = (unmoved_net.conv2.weight - expected["conv2.weight"]).abs().max()
    assert (
        gap > 1e-4
    )  # without moving the optimizer's state the training goes another way


def test_names_that_the_optimizer_kept_win():
    net = mlp(3, 4, 2)
    backwards = list(net.named_parameters())[::-1]
    optimizer = torch.optim.Adam(backwards)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    spec = infer_spec(net, torch.randn(2, 3))
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    moved = permute_optimizer_states([optimizer.state_dict()], p)[0]["state"]
    flat = p.flat(next(iter(spec.groups)))
    before = optimizer.state_dict()["state"]
    assert torch.equal(
        moved[3]["exp_avg"], before[3]["exp_avg"][flat]
    )  # 0.weight comes last
    assert torch.equal(moved[1]["exp_avg"], before[1]["exp_avg"][:, flat])
    assert torch.equal(moved[0]["step"], before[0]["step"])


def test_states_of_other_shapes_are_refused():
    net = mlp(3, 4, 2)
    spec = infer_spec(net, torch.randn(2, 3))
    state = {
        "state": {0: {"row": torch.zeros(4)}},
        "param_groups": [{"params": [0, 1, 2, 3]}],
    }
    with pytest.raises(
        CheckpointError, match=r"'row' of shape \(4,\) does not fit '0.weight'"
    ):
        permute_optimizer_states([state], Permutation.identity(spec))
    short = {"state": {}, "param_groups": [{"params": [0]}]}
    with pytest.raises(CheckpointError, match="1 parameters, the network 4"):
        permute_optimizer_states([short], Permutation.identity(spec))
