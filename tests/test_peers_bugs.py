"""Bugs of other re-basin tools, kept as tests of this one; each test says whose bug it was."""

import inspect
import subprocess
import sys

import pytest
import torch
from helpers.models import (
    BatchNormCNN,
    LeNet,
    ModularAdditionTransformer,
    mlp,
    randomise,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_rebasin import (
    Permutation,
    PermutationSpec,
    average,
    check_equivalence,
    infer_spec,
    match_activations,
    match_weights,
    measure_barrier,
    merge_checkpoints,
    repair,
    reset_batch_norm,
)
from lightning_rebasin.errors import (
    EquivalenceError,
    RebasinError,
    StateDictError,
)

G = torch.Generator


def noisy(state, size, seed):
    g = G().manual_seed(seed)
    return {
        n: t + size * torch.randn(t.shape, generator=g)
        if t.is_floating_point()
        else t
        for n, t in state.items()
    }


def test_biases_tell_units_apart():
    """rebasin: biases and norms entered the cost matrix as one scalar, the same for every pair of units."""
    spec = PermutationSpec.from_table(
        {"w": ("h", None), "b": ("h",), "v": (None, "h")},
        {"w": (4, 2), "b": (4,), "v": (1, 4)},
    )
    state = {
        "w": torch.ones(4, 2),
        "b": torch.tensor([1.0, 5.0, 2.0, 9.0]),
        "v": torch.ones(1, 4),
    }
    hidden = Permutation(spec, {"h": torch.tensor([2, 3, 1, 0])})
    assert (
        match_weights(spec, state, hidden.apply(state)).permutation
        == hidden.inverse()
    )


def test_running_statistics_move_with_their_channels():
    """rebasin: BatchNorm's running statistics were never permuted."""
    net = randomise(BatchNormCNN(8))
    spec = infer_spec(net, torch.randn(2, 3, 8, 8))
    p = Permutation.random(spec, G().manual_seed(0))
    moved = p.apply(net.state_dict())
    assert not torch.equal(moved["bn1.running_var"], net.bn1.running_var)
    other = BatchNormCNN(8).eval()
    other.load_state_dict(moved)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-5)


def test_running_statistics_are_no_part_of_the_objective():
    """git-re-basin-pytorch, re-basin-merge: statistics, large numbers of another scale, decided the matching."""
    net = randomise(BatchNormCNN(8))
    spec = infer_spec(net, torch.randn(2, 3, 8, 8))
    a = net.state_dict()
    b = {n: t.clone() for n, t in a.items()}
    for name in (
        "bn1.running_mean",
        "bn1.running_var",
        "bn2.running_mean",
        "bn2.running_var",
    ):
        b[name] = (
            1e4 * torch.rand(t.shape, generator=G().manual_seed(1))
            if (t := b[name]) is not None
            else t
        )
    result = match_weights(spec, a, b)
    assert result.permutation.is_identity
    assert result.objective == match_weights(spec, a, a).objective


@pytest.mark.parametrize(
    ("net", "x", "head"),
    [
        (mlp(3, 8, 5), torch.randn(2, 3), "2"),
        (LeNet(), torch.randn(2, 1, 28, 28), "fc2"),
        (BatchNormCNN(8), torch.randn(2, 3, 8, 8), "fc"),
    ],
)
def test_classes_and_inputs_stay_in_place(net, x, head):
    """git-re-basin-pytorch: the VGG spec permuted the output classes."""
    spec = infer_spec(net, x)
    p = Permutation.random(spec, G().manual_seed(0))
    state = randomise(net).state_dict()
    moved = p.apply(state)
    assert torch.equal(moved[f"{head}.bias"], state[f"{head}.bias"])
    assert spec.maps.get(f"{head}.bias") is None
    first = next(iter(state))
    assert 1 not in spec.maps[first].dims_of(next(iter(spec.groups)))


def test_a_sweep_visits_every_group():
    """C²M³: the backward sweep left one permutation out."""
    net = randomise(mlp(4, 10, 10, 10, 10, 3))
    spec = infer_spec(net, torch.randn(2, 4))
    state = net.state_dict()
    for group in spec.groups:
        order = torch.randperm(10, generator=G().manual_seed(1))
        hidden = Permutation(spec, {group: order})
        result = match_weights(
            spec, state, hidden.apply(state), init="identity"
        )
        assert result.permutation == hidden.inverse(), group


def test_repair_mixes_standard_deviations():
    """C²M³: REPAIR mixed variances."""
    net, x = nn.Sequential(nn.Linear(1, 1, bias=False)), torch.randn(500, 1)
    result = repair(
        net,
        [
            {"0.weight": torch.tensor([[1.0]])},
            {"0.weight": torch.tensor([[3.0]])},
        ],
        [x],
    )
    assert result.module[0].weight.item() == pytest.approx(
        2, rel=1e-5
    )  # variances: √5
    result = repair(
        net,
        [
            {"0.weight": torch.tensor([[-1.0]])},
            {"0.weight": torch.tensor([[3.0]])},
        ],
        [x],
    )
    assert result.module[0].weight.item() == pytest.approx(2, rel=1e-5)


@settings(deadline=None, max_examples=15)
@given(points=st.integers(2, 12))
def test_the_grid_has_both_ends_and_the_midpoint(points):
    """rebasin, loss-landscapes: the λ grid missed the midpoint or λ = 0."""
    net = nn.Linear(1, 1, bias=False)
    ends = [{"weight": torch.tensor([[w]])} for w in (1.0, -1.0)]
    loss = lambda module, x: (module(x) ** 2 - 1).abs().mean()
    curve = measure_barrier(
        net, *ends, [torch.ones(2, 1)], points=points, loss=loss
    )
    assert {0.0, 0.5, 1.0} <= set(curve.lambdas)
    assert curve.height("loss") == pytest.approx(1)


def test_the_check_fails_when_it_should():
    """Several: ``allclose`` without ``assert``."""
    net = randomise(mlp(3, 6, 2))
    wrong = PermutationSpec.from_table(
        {"0.weight": ("h", None), "2.weight": (None, "h")}, net.state_dict()
    )
    p = Permutation(wrong, {"h": torch.arange(6).roll(1)})
    with pytest.raises(EquivalenceError):
        check_equivalence(net, p, torch.randn(4, 3))


def test_results_do_not_depend_on_the_hash_seed():
    """git-re-basin: the order of the data came from Python's randomised string hash."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import torch\n"
        "from helpers.models import mlp, randomise\n"
        "from lightning_rebasin import infer_spec, match_weights\n"
        "torch.manual_seed(0)\n"
        "spec = infer_spec(mlp(5, 20, 20, 3), torch.ones(2, 5))\n"
        "a, b = (randomise(mlp(5, 20, 20, 3), s).state_dict() for s in (1, 2))\n"
        "r = match_weights(spec, a, b, seed=3)\n"
        "print(list(spec.groups), [o.tolist() for o in r.permutation.orders.values()], repr(r.objective))\n"
    )
    root = inspect.getfile(sys.modules[__name__]).rsplit("/tests/", 1)[0]
    printed = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env={"PYTHONHASHSEED": seed, "PATH": "", "HOME": root},
            capture_output=True, text=True, check=True, cwd=root,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(printed) == 1


class Depthwise(nn.Module):
    """Depthwise convolution, then flatten to a linear layer."""

    def __init__(self):
        super().__init__()
        self.point = nn.Conv2d(2, 6, 1)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x):
        return self.head(F.relu(self.depth(F.relu(self.point(x)))).flatten(1))


class OneChannel(nn.Module):
    """An ordinary convolution with one input channel, as on MNIST: groups is 1 and so is the number of channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3)
        self.second = nn.Conv2d(1, 6, 3)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))


@pytest.mark.parametrize(
    ("build", "shape"), [(Depthwise, (2, 2, 4, 4)), (OneChannel, (2, 1, 6, 6))]
)
def test_depthwise_flatten_and_one_channel_convolutions(build, shape):
    """rebasin: depthwise and flatten silently wrong; Torch-Pruning: a 1-channel convolution taken for depthwise."""
    net, x = randomise(build()), torch.randn(*shape)
    spec = infer_spec(net, x)
    group = next(g for g in spec.groups.values() if g.size == 6)
    assert "head.weight" in spec.tensors_of(group.id)
    for seed in range(3):
        assert (
            check_equivalence(
                net, Permutation.random(spec, G().manual_seed(seed)), x
            )
            < 1e-8
        )


def test_statistics_come_from_all_batches_and_not_from_the_first_again():
    """rebasin: BatchNorm was re-estimated on the first batch again and again."""
    batches = [
        torch.full((4, 2), float(i)) + torch.randn(4, 2) for i in range(5)
    ]
    new = reset_batch_norm(nn.BatchNorm1d(2), iter(batches))
    torch.testing.assert_close(
        new.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0)
    )


def test_correlation_keeps_its_sign():
    """merging-text-transformers: matching on |correlation| pairs units that no permutation can make equal."""
    spec = infer_spec(net := mlp(1, 2, 1), torch.randn(2, 1))
    with torch.no_grad():
        for layer, values in (
            (net[0], [[1.0], [-1.0]]),
            (net[2], [[1.0, 1.0]]),
        ):
            layer.weight.copy_(torch.tensor(values))
            layer.bias.zero_()
    other = mlp(1, 2, 1)
    other.load_state_dict(
        {**net.state_dict(), "0.weight": torch.tensor([[-1.0], [1.0]])}
    )
    x = torch.randn(400, 1, generator=G().manual_seed(0))
    result = match_activations(spec, net, other, [x], statistic="correlation")
    assert next(iter(result.permutation.orders.values())).tolist() == [1, 0]


class Rotary(nn.Module):
    """Attention with rotary position embedding: the dimensions inside a head are pairs that turn with the position."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads, self.inner = heads, width // heads
        self.q, self.k, self.v, self.o = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.head = nn.Linear(width, 3)

    def rotate(self, x):
        angles = torch.arange(x.shape[2])[:, None] / 10 ** torch.arange(
            self.inner // 2
        )
        cos, sin = angles.cos().to(x), angles.sin().to(x)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack(
            [even * cos - odd * sin, even * sin + odd * cos], -1
        ).flatten(-2)

    def forward(self, x):
        split = lambda y: y.unflatten(-1, (self.heads, self.inner)).transpose(
            1, 2
        )
        q, k, v = (
            self.rotate(split(self.q(x))),
            self.rotate(split(self.k(x))),
            split(self.v(x)),
        )
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head(self.o(mixed.transpose(1, 2).flatten(-2)))


def test_no_permutation_inside_rotary_heads():
    """mergekit's removed scripts permuted dimensions within heads under RoPE."""
    net, x = randomise(Rotary()), torch.randn(2, 5, 8)
    spec = infer_spec(net, x)
    for seed in range(3):
        p = Permutation.random(spec, G().manual_seed(seed))
        assert check_equivalence(net, p, x) < 1e-8
        moved = p.apply(net.state_dict())
        heads = [moved["q.weight"].unflatten(0, (2, 4))[h] for h in range(2)]
        originals = [net.q.weight.unflatten(0, (2, 4))[h] for h in range(2)]
        assert all(
            any(torch.equal(h, o) for o in originals) for h in heads
        )  # whole heads may swap, nothing inside


def test_merging_twice_or_repeatedly_applies_the_weights_once(tmp_path):
    """sdnext#2608: α was applied again in every iteration."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "b.pt")
    for _ in range(3):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "o.pt",
            method="average",
            shares=[0.75, 0.25],
            force=True,
        )
        assert (
            torch.load(tmp_path / "o.pt", weights_only=True)["w"].item()
            == 0.25
        )


def test_unknown_keys_are_an_error_with_names():
    """sd-meh and others: KeyError on unknown keys, or keys silently left out."""
    with pytest.raises(StateDictError, match="'extra'"):
        average(
            [
                {"w": torch.ones(1)},
                {"w": torch.ones(1), "extra": torch.ones(1)},
            ]
        )
    spec = infer_spec(mlp(2, 3, 1), torch.ones(1, 2))
    with pytest.raises(StateDictError, match="'extra'"):
        match_weights(
            spec,
            mlp(2, 3, 1).state_dict(),
            {**mlp(2, 3, 1).state_dict(), "extra": torch.ones(1)},
        )


def test_the_initial_permutation_is_not_written_to():
    """Two implementations changed the caller's initial permutation in place."""
    net = randomise(mlp(3, 8, 2))
    spec = infer_spec(net, torch.ones(2, 3))
    start = Permutation.random(spec, G().manual_seed(0))
    before = {g: o.clone() for g, o in start.orders.items()}
    match_weights(
        spec, net.state_dict(), noisy(net.state_dict(), 1.0, 2), init=start
    )
    assert all(torch.equal(o, before[g]) for g, o in start.orders.items())


def test_the_objective_never_falls():
    """git-re-basin: in float32 the reported progress went down (−6.1e-05)."""
    a, b = (
        randomise(mlp(20, 64, 64, 5), seed).state_dict() for seed in (1, 2)
    )
    result = match_weights(
        infer_spec(mlp(20, 64, 64, 5), torch.ones(2, 20)), a, b
    )
    for descent in result.descents:
        steps = torch.tensor(descent.objectives, dtype=torch.float64).diff()
        assert bool((steps >= -1e-9 * abs(descent.objective)).all())
    assert result.objective >= result.identity_objective


def test_raw_parameters_and_tied_embeddings():
    """Torch-Pruning: parameters outside of modules were overlooked; tied embeddings came apart."""
    net = randomise(
        ModularAdditionTransformer(modulus=7, width=16, heads=2, hidden=12)
    )
    tokens = torch.tensor([[1, 2, 7], [3, 0, 7], [6, 6, 7]])
    spec = infer_spec(net, tokens)
    p = Permutation.random(spec, G().manual_seed(0))
    assert check_equivalence(net, p, tokens) < 1e-8
    moved = p.apply(net.state_dict())
    assert torch.equal(moved["x_embed"], moved["embed.W_E"])
    assert any(
        "mlp.W_in" in name for g in spec.groups for name in spec.tensors_of(g)
    )


def test_nan_weights_are_named_and_not_matched():
    """lap: NaN input silently gave some permutation."""
    net = mlp(2, 4, 1)
    spec = infer_spec(net, torch.ones(2, 2))
    bad = {**net.state_dict(), "0.bias": torch.full((4,), float("nan"))}
    with pytest.raises(RebasinError, match=r"0\.bias"):
        match_weights(spec, net.state_dict(), bad)
