"""Refit and matching against ZipIt on LeNets: one task trained twice, and two halves of the classes.

Run apart: ``pytest -m benchmark tests/benchmarks/bench_zipit.py -s``.  The pair of one task is the shared one; of the
halves, one LeNet has seen the digits 0 to 4 and the other 5 to 9 (5000 images each, three epochs, seeds 0 and 1), and
both have ten outputs.  Everybody gets the same 1000 training images without labels; 2000 test images judge.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.data import mnist, normalise
from helpers.models import LeNet, accuracy, load_weights
from helpers.shared import shared_path
from helpers.timing import cpu_seconds
from helpers.zipit import zip_networks
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_rebasin import (
    infer_spec,
    interpolate,
    match_activations,
    match_weights,
    refit,
)

SEEN, TEST = 1000, 2000


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(split: str) -> tuple[Tensor, Tensor]:
    x, y = mnist(split)
    return normalise(x, "mnist-lenet").reshape(-1, 1, 28, 28), y


def half(digits: range, seed: int) -> dict[str, Tensor]:
    """A LeNet that has seen some digits only."""
    x, y = images("train")
    chosen = ((y >= digits.start) & (y < digits.stop)).nonzero()[:5000, 0]
    torch.manual_seed(seed)
    net = LeNet()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in chosen[torch.randperm(len(chosen))].split(100):
            loss = cross_entropy(net(x[batch]), y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.state_dict()


def ends(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if case == "halves":
        return half(range(5), 0), half(range(5, 10), 1)
    folder = shared_path("data/checkpoints/mnist-lenet")
    return load_weights(folder / "a.pt"), load_weights(folder / "b.pt")


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["one task", "halves"])
def test_refit_is_more_accurate_than_zipping(case: str) -> None:
    a, b = ends(case)
    x = images("train")[0][:SEEN]
    test, labels = (t[:TEST] for t in images("test"))
    net, other = LeNet(), LeNet()

    def score(state: dict[str, Tensor]) -> float:
        net.load_state_dict(state)
        return 100 * accuracy(net, test, labels)

    def by_weights() -> dict[str, Tensor]:
        p = match_weights(spec, a, b).permutation
        return interpolate(a, p.apply(b), 0.5)

    def by_activations() -> dict[str, Tensor]:
        net.load_state_dict(a)
        other.load_state_dict(b)
        found = match_activations(spec, net, other, x.split(250))
        return interpolate(a, found.permutation.apply(b), 0.5)

    def refitted() -> dict[str, Tensor]:
        p = match_weights(spec, a, b).permutation
        net.load_state_dict(a)
        fit = refit(net, [a, p.apply(b)], x.split(250))
        return dict(fit.module.state_dict())

    spec = infer_spec(net, x[:2])
    ways = {
        "naive": lambda: interpolate(a, b, 0.5),
        "weights": by_weights,
        "activations": by_activations,
        "ZipIt": lambda: zip_networks(net, (a, b), x),
        "refit": refitted,
    }
    scores = {"a": score(a), "b": score(b)}
    with torch.no_grad():
        net.load_state_dict(a)
        other.load_state_dict(b)
        mean = (net(test).softmax(1) + other(test).softmax(1)).argmax(1)
    scores["ensemble"] = 100 * float((mean == labels).float().mean())
    for name, merge in ways.items():
        seconds, state = cpu_seconds(merge)
        scores[name] = score(dict(state))
        print(f"{case}: {name} {scores[name]:.2f} % in {seconds:.2f} CPU s")
    print({name: round(value, 2) for name, value in scores.items()})
    assert scores["refit"] >= scores["ZipIt"]
