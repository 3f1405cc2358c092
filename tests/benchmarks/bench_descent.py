"""Whole descents against the textbook: same start, same order of visits, same final objective.

pytest -m benchmark tests/benchmarks/bench_descent.py -s
"""

import statistics

import pytest
import torch
from helpers import textbook
from helpers.architectures import (
    random_states,
    resnet20,
    resnet50,
    transformer_mlps,
    vgg16,
)
from helpers.models import LeNet, ResNet20, load_weights
from helpers.shared import shared_path
from helpers.timing import compare, cpu_seconds
from helpers.trained import mlp_table, trained_mlp

from lightning_rebasin import infer_spec
from lightning_rebasin.matching import WeightMatcher, match_weights
from lightning_rebasin.matching.search.policy import orders
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def descents(name, table, a, b, runs, must, stretch):
    spec = PermutationSpec.from_table(table, a)
    groups = list(spec.groups)

    def ours(seed):
        return match_weights(spec, a, b, init="identity", seed=seed)

    def theirs(seed):
        visits = list(
            orders(
                "random", len(groups), 100, torch.Generator().manual_seed(seed)
            )
        )
        return textbook.weight_matching(
            table, a, b, lambda sweep: [groups[i] for i in visits[sweep]]
        )

    def check(result, expected):
        assert result.objective == pytest.approx(
            textbook.objective(table, a, b, expected), rel=1e-6
        )

    within = []

    def timed(seed):
        result = ours(seed)
        within.append(result.descents[0].seconds)
        return result

    timing = compare(timed, theirs, runs, check)
    print("\n" + timing.row(name, must, stretch))
    inner = statistics.median(
        within[1:]
    )  # the first call is the one that compiles
    print(
        f"of which the descent with the objective of its end: {inner:.4g} s, {timing.theirs / inner:.1f}×"
    )


@pytest.fixture(scope="module")
def mlp_pair():
    shared_path("data/mnist")
    return trained_mlp(0), trained_mlp(1)


def test_mlp_trained(mlp_pair):
    descents("MLP 784-512³-10, trained", mlp_table(), *mlp_pair, 7, 5, 8)


def test_vgg16():
    table, shapes = vgg16()
    descents(
        "VGG16 (CIFAR), random, 9 seeds",
        table,
        *random_states(shapes),
        9,
        10,
        16,
    )


def test_resnet50():
    table, shapes = resnet50()
    descents("ResNet50, random", table, *random_states(shapes), 1, 10, 16)


def test_resnet20_wide():
    table, shapes = resnet20(16)
    descents(
        "ResNet20 ×16, random, 13 seeds",
        table,
        *random_states(shapes),
        13,
        4,
        5,
    )


def test_resnet20_narrow():
    table, shapes = resnet20(1)
    descents(
        "ResNet20 ×1, random, 31 seeds",
        table,
        *random_states(shapes),
        31,
        2,
        4,
    )


def test_transformer_mlps():
    table, shapes = transformer_mlps()
    descents(
        "12 transformer MLPs of 3072, random",
        table,
        *random_states(shapes),
        1,
        4,
        5,
    )


def test_projection_in_the_moving_regime(mlp_pair):
    """Every step of straight-through estimation: the reference has moved a little, the source has not."""
    a, b = mlp_pair
    table = mlp_table()
    spec = PermutationSpec.from_table(table, a)
    groups = list(spec.groups)
    matcher = WeightMatcher(spec, b)
    start = matcher.match(a, "identity").permutation
    generator = torch.Generator().manual_seed(0)
    references = []
    for _ in range(12):
        a = {
            n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator)
            for n, t in a.items()
        }
        references.append(a)
    last = {"ours": start, "theirs": dict(start.orders)}

    def ours(step):
        result = matcher.match(
            references[step], last["ours"], seed=step, order="random"
        )
        last["ours"] = result.permutation
        return result

    def theirs(step):
        visits = list(
            orders(
                "random", len(groups), 100, torch.Generator().manual_seed(step)
            )
        )
        last["theirs"] = textbook.weight_matching(
            table,
            references[step],
            b,
            lambda sweep: [groups[i] for i in visits[sweep]],
            last["theirs"],
        )
        return last["theirs"]

    def check(result, expected):
        found = Permutation(spec, expected)
        assert (
            sum((result.permutation[g] != found[g]).sum() for g in groups)
            <= 12
        )

    print(
        "\n"
        + compare(ours, theirs, 12, check).row(
            "STE projection, moving regime, MLP 3×512", 5, 8
        )
    )


def test_default_call_on_the_lenet_pair():
    """The default call (identity and annealed starts) against eight textbook descents."""
    a, b = (
        load_weights(shared_path(f"data/checkpoints/mnist-lenet/{name}.pt"))
        for name in "ab"
    )
    spec = infer_spec(LeNet(), torch.zeros(1, 1, 28, 28))
    # A classical table cannot express the flatten block: give the textbook the same weight with the block as an axis.
    table = {
        "conv1.weight": ("c1", None, None, None),
        "conv1.bias": ("c1",),
        "conv2.weight": ("c2", "c1", None, None),
        "conv2.bias": ("c2",),
        "fc1.weight": ("f", "c2", None),
        "fc1.bias": ("f",),
        "fc2.weight": (None, "f"),
    }
    split = [
        {**s, "fc1.weight": s["fc1.weight"].reshape(500, 50, 16)}
        for s in (a, b)
    ]

    def eight(_):
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            groups = ("c1", "c2", "f")
            textbook.weight_matching(
                table,
                *split,
                lambda _: [
                    groups[i] for i in torch.randperm(3, generator=generator)
                ],
            )

    timing = compare(
        lambda seed: match_weights(spec, a, b, seed=seed),
        eight,
        5,
        lambda *_: None,
    )
    print(
        "\n"
        + timing.row("LeNet pair: default call against 8 textbook runs", 1)
    )


def test_default_call_on_a_real_resnet20_pair():
    """Quality for time: the default call against the best of 24 textbook-like descents from random starts."""
    model = ResNet20()
    a, b = (
        {
            **model.state_dict(),
            **load_weights(
                shared_path(f"data/checkpoints/cifar10-resnet20/{name}.th")
            ),
        }
        for name in "ab"
    )
    spec = infer_spec(model, torch.zeros(1, 3, 32, 32))
    seconds, ours = cpu_seconds(lambda: match_weights(spec, a, b))
    many, best = cpu_seconds(
        lambda: match_weights(spec, a, b, init="random", restarts=24)
    )
    print(f"\nResNet20 a, b: default {ours.objective:.2f} in {seconds:.2f} s")
    print(
        f"24 descents from random starts: {best.objective:.2f} in {many:.2f} s"
    )
