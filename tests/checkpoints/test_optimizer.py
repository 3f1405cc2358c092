import copy

import pytest
import torch
from helpers.kinds import networks
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn

from lightning_rebasin.checkpoints.optimizer import move_optimizer_states
from lightning_rebasin.errors import CheckpointError, OptimizerStateWarning
from lightning_rebasin.symmetry import Permutation, Transform, infer_spec

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
        move_optimizer_states([optimizer.state_dict()], p)[0]
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
    moved = move_optimizer_states([optimizer.state_dict()], p)[0]["state"]
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
        move_optimizer_states([state], Permutation.identity(spec))
    short = {"state": {}, "param_groups": [{"params": [0]}]}
    with pytest.raises(CheckpointError, match="1 parameters, the network 4"):
        move_optimizer_states([short], Permutation.identity(spec))


def gradients(net, batches, optimizer_class, **options):
    """What an optimizer keeps that sees gradients and never moves a weight."""
    optimizer = optimizer_class(net.parameters(), lr=0.0, **options)
    for inputs, targets in batches:
        optimizer.zero_grad()
        outputs = net(inputs)
        (outputs - targets).square().mean().backward()
        optimizer.step()
    return optimizer.state_dict()


def case(name, *, canonical=True):
    """A network, in canonical gauge or with gains, shifts and biases, a random element, the moved network, batches."""
    net, batch = networks(name)
    spec = infer_spec(net, batch, kinds="all")
    if canonical:
        net.load_state_dict(spec.canonicalise(net.state_dict()))
    else:
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.5 * torch.rand_like(parameter))
    element = Transform.random(spec, torch.Generator().manual_seed(1))
    moved = copy.deepcopy(net)
    moved.load_state_dict(element.apply(net.state_dict()))
    shape = net(batch).shape
    generator = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(3):
        targets = torch.randn(shape, generator=generator, dtype=torch.float64)
        batches.append((batch, targets))
    return net, moved, element, batches


RULES = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True}),
}


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name", ["relu", "tanh", "low rank", "layer norm", "rotary"]
)
@pytest.mark.filterwarnings("ignore:the optimizer's state of")
def test_what_moves_is_what_the_moved_network_would_have_collected(
    name, rule, canonical
):
    """The optimizer of the moved network, which saw the same batches, is the judge for every kind."""
    net, moved, element, batches = case(name, canonical=canonical)
    make, options = RULES[rule]
    before = gradients(net, batches, make, **options)
    wanted = gradients(moved, batches, make, **options)
    (found,) = move_optimizer_states(
        [before], element, weights=net.state_dict()
    )
    names = [n for n, _ in net.named_parameters()]
    assert found["state"], "nothing was moved, so nothing was compared"
    for index, slots in found["state"].items():
        for key, value in slots.items():
            torch.testing.assert_close(
                value,
                wanted["state"][index][key],
                rtol=1e-7,
                atol=1e-12,
                msg=lambda text, i=index, k=key: f"{names[i]} {k}: {text}",
            )
    kept = {names[index] for index in found["state"]}
    spec = element.spec
    (group,) = before["param_groups"]
    if rule == "adamw" and "decoupled_weight_decay" not in group:
        # Before torch 2.7 a file does not say whether it was AdamW: the states of Adam would be others.
        return
    gains = {one.gain for one in spec.folds}
    assert not kept & gains
    if rule == "sgd" and canonical:
        assert kept == set(names) - gains
    if name in ("relu", "tanh"):
        assert kept == set(names)


def test_what_has_no_rule_is_named_once_for_each_reason():
    net, _, element, batches = case("low rank")
    state = gradients(net, batches, torch.optim.Adam)
    message = r"2 parameters \(a.weight, b.weight\).*'exp_avg_sq' under the kind linear"
    with pytest.warns(OptimizerStateWarning, match=message):
        (found,) = move_optimizer_states([state], element)
    optimizer = torch.optim.Adam(net.parameters())
    # What is left loads; the others start afresh.
    optimizer.load_state_dict(found)
    assert len(optimizer.state_dict()["state"]) == 2


def test_weight_decay_inside_the_gradients_goes_with_rotations_only():
    options = {"momentum": 0.9, "weight_decay": 0.1}
    net, _, element, batches = case("relu")
    state = gradients(net, batches, torch.optim.SGD, **options)
    with pytest.warns(OptimizerStateWarning, match="hold a weight decay"):
        (found,) = move_optimizer_states([state], element)
    # Only the bias of the last layer is outside of every group.
    assert list(found["state"]) == [3]
    net, moved, element, batches = case("tanh")
    state, wanted = (
        gradients(one, batches, torch.optim.SGD, **options)
        for one in (net, moved)
    )
    (found,) = move_optimizer_states([state], element)
    for index, slots in wanted["state"].items():
        torch.testing.assert_close(
            found["state"][index]["momentum_buffer"], slots["momentum_buffer"]
        )


def test_folded_gains_leave_their_readers_without_a_rule():
    net, batch = networks("layer norm")
    with torch.no_grad():
        net.norm.weight.mul_(2)
    spec = infer_spec(net, batch, kinds="all")
    element = Transform.identity(spec)
    batches = [(batch, torch.zeros_like(net(batch)))]
    state = gradients(net, batches, torch.optim.SGD, momentum=0.9)
    with pytest.warns(OptimizerStateWarning) as caught:
        (found,) = move_optimizer_states(
            [state], element, weights=net.state_dict()
        )
    text = " ".join(str(one.message) for one in caught)
    assert "head.weight" in text
    assert "folded into its readers" in text
    names = [n for n, _ in net.named_parameters()]
    assert "embed.weight" in {names[index] for index in found["state"]}
