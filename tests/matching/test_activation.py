"""Activation matching against explicit statistics, brute force and planted permutations."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.data import mnist, normalise
from helpers.models import LeNet, load_weights, mlp
from helpers.shared import shared_path
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)
from lightning_rebasin.matching import match_activations, match_weights
from lightning_rebasin.matching.activation import (
    STATISTICS,
    CrossMoments,
    best_permutation,
    match_by_statistics,
    model_inputs,
)
from lightning_rebasin.merging import interpolate
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    TensorInfo,
)


def data(count: int = 4, size: int = 32, features: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, features, generator=generator) for _ in range(count)
    ]


def pair() -> tuple[nn.Module, nn.Module, PermutationSpec]:
    torch.manual_seed(0)
    a, b = mlp(5, 7, 6, 2), mlp(5, 7, 6, 2)
    return a, b, infer_spec(a, torch.randn(3, 5))


def hidden(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Post-ReLU activations of both hidden layers, written out."""
    first = torch.relu(net[0](x))
    return [first, torch.relu(net[2](first))]


@pytest.mark.parametrize("statistic", ["inner_product", "correlation"])
def test_equals_explicit_statistics_over_all_samples_at_once(
    statistic: str,
) -> None:
    a, b, spec = pair()
    result = match_activations(spec, a, b, data(), statistic=statistic)
    x = torch.cat(data())
    with torch.no_grad():
        layers = list(zip(hidden(a, x), hidden(b, x), strict=True))
    objective = 0.0
    for (mine, theirs), order in zip(
        layers, result.permutation.orders.values(), strict=True
    ):
        u, v = mine.double().numpy(), theirs.double().numpy()
        if statistic == "inner_product":
            score = u.T @ v / len(x)
        else:
            with np.errstate(invalid="ignore"):
                score = np.nan_to_num(
                    np.corrcoef(u.T, v.T)[: u.shape[1], u.shape[1] :]
                )
        rows, columns = linear_sum_assignment(score, maximize=True)
        assert order.tolist() == columns.tolist()
        objective += score[rows, columns].sum()
    assert result.objective == pytest.approx(objective, rel=1e-6)
    assert result.method == f"activations, {statistic.replace('_', ' ')}"


def test_several_statistics_share_one_run() -> None:
    a, b, spec = pair()
    batches = iter(data())  # can be read only once
    found = match_by_statistics(spec, a, b, batches, list(STATISTICS.values()))
    assert list(found) == ["inner_product", "correlation"]
    for statistic, result in found.items():
        alone = match_activations(spec, a, b, data(), statistic=statistic)
        assert result.permutation == alone.permutation
        assert result.objective == alone.objective
        assert result.similarity == alone.similarity


@pytest.mark.parametrize("statistic", ["inner_product", "correlation"])
def test_finds_a_planted_permutation(statistic: str) -> None:
    a, _, spec = pair()
    planted = Permutation.random(spec, torch.Generator().manual_seed(1))
    b = copy.deepcopy(a)
    b.load_state_dict(planted.inverse().apply(a.state_dict()))
    found = match_activations(spec, a, b, data(), statistic=statistic)
    with torch.no_grad():
        assert all(
            (layer.std(0) > 0).all() for layer in hidden(a, torch.cat(data()))
        )
    assert found.permutation == planted


def test_streaming_does_not_depend_on_how_the_samples_are_cut() -> None:
    a, b, spec = pair()
    a, b = (
        a.double(),
        b.double(),
    )  # rounding in the network's own products must not decide
    x = torch.cat(data())
    whole = match_activations(spec, a, b, [x], statistic="correlation")
    for size in (1, 7, 50):
        cut = match_activations(
            spec, a, b, iter(x.split(size)), statistic="correlation"
        )
        assert cut.permutation == whole.permutation
        assert cut.objective == pytest.approx(whole.objective, rel=1e-9)


def test_correlation_survives_a_large_mean_and_dead_units() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    b = 0.5 * a.flip(0) + torch.randn(
        4, 1000, generator=generator, dtype=torch.float64
    )
    a[1], b[2] = 0.0, 3.7  # dead: silent, and stuck at a constant
    a, b = a + 1e4, b - 1e4
    moments = CrossMoments()
    for u, v in zip(a.split(100, 1), b.split(100, 1), strict=True):
        moments.update(u, v)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(a.numpy(), b.numpy())[:4, 4:])
    np.testing.assert_allclose(
        moments.correlation().numpy(), expected, atol=1e-6
    )
    assert not moments.correlation()[1].any()
    assert not moments.correlation()[:, 2].any()


def test_dead_units_stay_where_they_are() -> None:
    torch.manual_seed(0)
    a, b = mlp(5, 6, 2), mlp(5, 6, 2)
    for net in (a, b):
        with torch.no_grad():
            net[0].bias[:] = -1e3
    spec = infer_spec(a, torch.randn(3, 5))
    for statistic in ("inner_product", "correlation"):
        assert match_activations(
            spec, a, b, data(), statistic=statistic
        ).permutation.is_identity


def test_sums_over_processes_equal_one_process() -> None:
    """Two ranks with half of the data each; the stand-in for an all-reduce adds the other's sums in order."""
    a, b, spec = pair()
    batches = data()
    sums: list[list[Tensor]] = []
    for part in (batches[:2], batches[2:]):
        own: list[Tensor] = []
        match_activations(
            spec, a, b, part, total=lambda t, own=own: (own.append(t), t)[1]
        )
        sums.append(own)
    other = iter(sums[1])
    reduced = match_activations(
        spec, a, b, batches[:2], total=lambda t: t + next(other)
    )
    whole = match_activations(spec, a, b, batches)
    assert reduced.permutation == whole.permutation
    assert reduced.objective == pytest.approx(whole.objective, rel=1e-12)


def nested_spec(heads: int, size: int) -> PermutationSpec:
    outer = Group("heads", heads)
    inner = Group("heads/dims", size, outer)
    index = torch.arange(heads * size)[:, None]
    maps = {
        "w": AxisMap(
            "w", ((heads * size,),), (Component("heads/dims", (0,), index),)
        )
    }
    return PermutationSpec(
        {"heads": outer, "heads/dims": inner},
        {"w": TensorInfo((heads * size,))},
        maps,
    )


@pytest.mark.parametrize("seed", range(5))
def test_nested_assignment_is_the_best_of_all(seed: int) -> None:
    """3 heads of 3 dimensions: 3!·(3!)³ = 1296 symmetries, all tried."""
    spec = nested_spec(3, 3)
    generator = torch.Generator().manual_seed(seed)
    scores = {
        "heads": torch.randn(3, 3, generator=generator, dtype=torch.float64),
        "heads/dims": torch.randn(
            9, 9, generator=generator, dtype=torch.float64
        ),
    }

    def total(p: Permutation) -> float:
        return sum(
            float(s[torch.arange(len(s)), p.flat(g)].sum())
            for g, s in scores.items()
        )

    rows = list(itertools.permutations(range(3)))
    everything = (
        Permutation(
            spec,
            {"heads": torch.tensor(outer), "heads/dims": torch.tensor(inner)},
        )
        for outer in rows
        for inner in itertools.product(rows, repeat=3)
    )
    best = max(map(total, everything))
    assert total(best_permutation(spec, scores)) == pytest.approx(
        best, abs=1e-12
    )


class Attention(nn.Module):
    """Self-attention with separate projections, and a reader."""

    def __init__(self, heads: int = 3, size: int = 4, width: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (
            nn.Linear(width, heads * size) for _ in range(3)
        )
        self.out = nn.Linear(heads * size, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attended = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(attended.transpose(1, 2).flatten(2))


def test_finds_planted_heads_and_dimensions_within_them() -> None:
    torch.manual_seed(0)
    a = Attention()
    x = torch.randn(8, 6, 5)
    spec = infer_spec(a, x)
    assert any(group.parent is not None for group in spec.groups.values())
    planted = Permutation.random(spec, torch.Generator().manual_seed(2))
    b = copy.deepcopy(a)
    b.load_state_dict(planted.inverse().apply(a.state_dict()))
    found = match_activations(
        spec, a, b, [x, torch.randn(8, 6, 5)], statistic="correlation"
    )
    assert found.permutation == planted


def test_modules_are_left_as_they_were_and_run_in_eval_mode() -> None:
    torch.manual_seed(0)
    a = nn.Sequential(
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(6, 2),
    )
    b = copy.deepcopy(a)
    a[3].eval()
    spec = infer_spec(a, torch.randn(3, 5))
    before = copy.deepcopy(a.state_dict())
    modes = [m.training for m in a.modules()]
    first, second = (
        match_activations(spec, a, b, data()).objective for _ in range(2)
    )
    assert first == second, "dropout would make them differ"
    assert modes == [m.training for m in a.modules()]
    assert all(torch.equal(t, before[n]) for n, t in a.state_dict().items())


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: {"input": x, "label": 0},
    ],
    ids=str,
)
def test_batches_as_loaders_give_them(
    form: Callable[[Tensor], object],
) -> None:
    a, b, spec = pair()
    expected = match_activations(spec, a, b, data())
    assert (
        match_activations(spec, a, b, map(form, data())).permutation
        == expected.permutation
    )


def test_bad_input_is_named() -> None:
    a, b, spec = pair()
    with pytest.raises(ConfigurationError, match="statistic='cosine'"):
        match_activations(spec, a, b, data(), statistic="cosine")
    with pytest.raises(DataError, match="no batches"):
        match_activations(spec, a, b, [])
    with pytest.raises(DataError, match="Sequential"):
        model_inputs(a, "text")
    table = {
        "0.weight": ("h", None),
        "0.bias": ("h",),
        "2.weight": (None, "h"),
    }
    with pytest.raises(ConfigurationError, match="infer_spec"):
        match_activations(
            PermutationSpec.from_table(table, a.state_dict()), a, b, data()
        )
    broken = [torch.full((4, 5), torch.nan)]
    with pytest.raises(NonFiniteError, match="group"):
        match_activations(spec, a, b, broken)


def test_lenets_of_strangers() -> None:
    """Published-quality check on real checkpoints: 45.3 % naive, about 98.1 % by inner products of activations.

    Units that are silent on all images fit each other equally well, so rounding decides which of them are paired, and
    the descent that follows sees their weights: of the batch sizes, which only change the rounding, the middle counts.
    """
    folder = shared_path("data/checkpoints/mnist-lenet")
    a, b = LeNet(), LeNet()
    a.load_state_dict(load_weights(folder / "a.pt"))
    b.load_state_dict(load_weights(folder / "b.pt"))
    images, labels = mnist("test")
    images = normalise(images, "mnist-lenet")
    train = normalise(mnist("train")[0][:20000], "mnist-lenet")
    spec = infer_spec(a, train[:2])

    def accuracy(p: Permutation) -> float:
        middle = copy.deepcopy(a)
        middle.load_state_dict(
            interpolate(a.state_dict(), p.apply(b.state_dict()), 0.5)
        )
        with torch.no_grad():
            return float((middle(images).argmax(1) == labels).float().mean())

    assert accuracy(Permutation.identity(spec)) < 0.6
    ends = []
    for batch in (250, 500, 1000):
        start = match_activations(spec, a, b, train.split(batch)).permutation
        assert accuracy(start) >= 0.981
        descended = match_weights(
            spec, a.state_dict(), b.state_dict(), init=start
        )
        assert descended.objective > 34.9, (
            "better than every descent from the identity with textbook orders"
        )
        ends.append(accuracy(descended.permutation))
    assert sorted(ends)[1] >= 0.981
    assert min(ends) >= 0.97
