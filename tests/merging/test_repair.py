import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    StateDictError,
)
from lightning_rebasin.merging import average, repair, reset_batch_norm
from lightning_rebasin.merging.layers import Layer, Moments, find_layers


def pair(build):
    return [
        {
            n: t.double() if t.is_floating_point() else t
            for n, t in randomise(build(), s).state_dict().items()
        }
        for s in (1, 2)
    ]


def data(*shape, seed=0):
    return torch.randn(
        *shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def statistics(module, name, x):
    """Mean and std per channel of one layer's output, measured by hand."""
    seen = []
    handle = module.get_submodule(name).register_forward_hook(
        lambda m, i, o: seen.append(o)
    )
    with torch.no_grad():
        module.eval()(x)
    handle.remove()
    dims = [d for d in range(seen[0].ndim) if d != 1]
    return seen[0].mean(dims), seen[0].std(dims, correction=0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_every_layer_gets_the_mixed_mean_and_standard_deviation(shares):
    net, x = mlp(5, 16, 16, 3).double(), data(400, 5)
    states = pair(lambda: mlp(5, 16, 16, 3))
    result = repair(net, states, [x], weights=shares)
    for name in ("0", "2", "4"):
        ends = []
        for state in states:
            net.load_state_dict(state)
            ends.append(statistics(net, name, x))
        mean, std = statistics(result.module, name, x)
        torch.testing.assert_close(
            mean, shares[0] * ends[0][0] + shares[1] * ends[1][0]
        )
        torch.testing.assert_close(
            std, shares[0] * ends[0][1] + shares[1] * ends[1][1]
        )
    assert result.variance_ratio[0] < 0.9
    assert result.variance_ratio[1] == pytest.approx(1)
    assert [v.layer for v in result.variances] == ["0", "2", "4"]


def test_standard_deviations_are_mixed_and_not_variances():
    net, x = nn.Sequential(nn.Linear(1, 1, bias=False)).double(), data(100, 1)
    states = [
        {"0.weight": torch.tensor([[1.0]]).double()},
        {"0.weight": torch.tensor([[-3.0]]).double()},
    ]
    weight = repair(net, states, [x]).module[0].weight.item()
    assert weight == pytest.approx(-2)  # variances would give −√5


def test_equal_ends_stay_as_they_are():
    net, x = BatchNormCNN(4).double(), data(200, 3, 8, 8)
    state = reset_batch_norm(randomise(net), [x]).state_dict()
    result = repair(net, [state, state], [x])
    for name, tensor in result.module.state_dict().items():
        # the running variance is the unbiased one, batches are normalised with the biased one
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)


def test_batch_norms_get_the_mix_of_what_the_ends_really_return():
    net, x = BatchNormCNN(4).double(), data(300, 3, 8, 8)
    # Running statistics of other data, as augmentation leaves them: the ends do not return mean β, deviation |γ|.
    other = 1.5 * data(300, 3, 8, 8, seed=1) + 0.3
    states = [
        reset_batch_norm(_loaded(net, s), [other]).state_dict()
        for s in pair(lambda: BatchNormCNN(4))
    ]
    states[1]["bn1.weight"][0] *= -1
    ends = [statistics(_loaded(net, state), "bn1", x) for state in states]
    result = repair(net, states, x.split(100))
    wanted = (ends[0][1] + ends[1][1]) / 2
    assert (
        average(states)["bn1.weight"][0].abs() < wanted[0] / 2
    )  # signs cancel in the plain average
    closed_form = (
        states[0]["bn1.weight"].abs() + states[1]["bn1.weight"].abs()
    ) / 2
    assert (closed_form / wanted - 1).abs().max() > 0.2
    mean, std = statistics(result.module, "bn1", x)
    # running statistics are averages over batches of the unbiased variance, with an epsilon
    torch.testing.assert_close(std, wanted, rtol=5e-3, atol=0)
    torch.testing.assert_close(mean, (ends[0][0] + ends[1][0]) / 2)
    assert [v.after for v in result.variances] == pytest.approx(
        [1] * len(result.variances), rel=2e-2
    )


def _loaded(net, state):
    net.load_state_dict(state)
    return net


LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (8, 4, 5, 5), 1),
    "conv without bias": (
        lambda: nn.Conv1d(2, 3, 2, bias=False),
        (8, 2, 5),
        1,
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        (8, 4, 5, 5),
        1,
    ),
    "linear": (lambda: nn.Linear(4, 3), (8, 7, 4), -1),
    "layer norm": (lambda: nn.LayerNorm(4), (8, 7, 4), -1),
    "group norm": (lambda: nn.GroupNorm(2, 4), (8, 4, 5), 1),
    "batch norm": (lambda: nn.BatchNorm2d(4), (8, 4, 3, 3), 1),
    "rms norm": (lambda: nn.RMSNorm(4), (8, 4), -1),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), (8, 4, 9), 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_folding_scales_and_shifts_the_output(kind):
    build, shape, dim = LAYERS[kind]
    module, x = randomise(build()).double(), data(*shape)
    layer = Layer("x", module)
    before = module(x).detach()
    g = torch.Generator().manual_seed(3)
    scale, shift = (
        torch.rand(layer.size, generator=g).double() + 0.5,
        torch.randn(layer.size, generator=g).double(),
    )
    shift = shift if layer.can_shift else 0 * shift
    layer.fold(scale, shift)
    with torch.no_grad():
        after = module(x)
    torch.testing.assert_close(
        after.movedim(dim, -1), before.movedim(dim, -1) * scale + shift
    )
    torch.testing.assert_close(
        after, before * layer.along(scale, before) + layer.along(shift, before)
    )
    torch.testing.assert_close(
        layer.channels(before), before.movedim(dim, -1).reshape(-1, layer.size)
    )


def test_moments_are_those_of_everything_together():
    values = data(50, 3) * 1e-3 + 1e3
    moments = Moments()
    for part in values.split([1, 20, 29]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(
        moments.variance, values.var(0, correction=0), rtol=1e-6, atol=0
    )


class Awkward(nn.Module):
    """A layer run twice, two that share weights, one before a batch norm, one that never runs."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.absorbed, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(
            self.norm(
                self.absorbed(self.tied(self.first(self.twice(self.twice(x)))))
            )
        )


def test_layers_that_cannot_be_corrected_alone_are_left_out():
    assert [s.name for s in find_layers(Awkward(), [torch.zeros(3, 4)])] == [
        "norm",
        "head",
    ]


def test_dead_channels_are_only_shifted():
    states = pair(lambda: mlp(3, 6, 2))
    for state in states:
        state["0.weight"][0] = 0
    result = repair(mlp(3, 6, 2).double(), states, [data(100, 3)])
    assert all(
        torch.isfinite(t).all() for t in result.module.state_dict().values()
    )
    assert result.variance_ratio[1] == pytest.approx(1)


def test_errors():
    states = pair(lambda: mlp(3, 4, 2))
    net = mlp(3, 4, 2).double()
    with pytest.raises(DataError, match="no batches"):
        repair(net, states, [])
    with pytest.raises(ConfigurationError, match="weights"):
        repair(net, states, [data(4, 3)], weights=[1])
    with pytest.raises(StateDictError):
        repair(
            net,
            [states[0], {**states[1], "0.bias": torch.zeros(9)}],
            [data(4, 3)],
        )


def test_the_old_name_of_a_layers_variance_still_works():
    import lightning_rebasin.merging as merging

    with pytest.warns(DeprecationWarning, match="LayerVariance now"):
        assert merging.SiteVariance is merging.LayerVariance
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        merging.nothing  # noqa: B018
