"""Soft trees: matching of two ensembles, and a training step against one tree at a time.

    pytest -m benchmark tests/benchmarks/bench_trees.py -s

The other side of the training step is a loop over trees, each computed by itself from products of sigmoids; and, if
``CATFISHML`` names the file ``catfishml/_soft_tree.py`` of the package catfishml 0.4 (unpacked, not installed: its
import installs packages), 256 of its trees with linear rules, which compute the same kind of function.  CPU seconds on
one thread, runs alternate, medians.
"""

import importlib.util
import os
import statistics

import pytest
import torch
from helpers.timing import cpu_seconds
from torch import nn

from lightning_rebasin import SoftTreeEnsemble, infer_spec, match_weights

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]
TREES, BATCH, FEATURES, RUNS = 256, 512, 10, 5


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class OneByOne(nn.Module):
    """The same function, tree by tree."""

    def __init__(self, model):
        super().__init__()
        self.weight, self.bias = model.weight, model.bias
        self.leaves = model.leaves
        self.depth = model.shape.depth

    def forward(self, x):
        total = 0
        for weight, bias, leaves in zip(
            self.weight, self.bias, self.leaves, strict=True
        ):
            rules = torch.sigmoid(x @ weight.T + bias)
            shares = x.new_ones(len(x), 1)
            for level in range(self.depth):
                first = 2**level - 1
                left = rules[:, first : 2 * first + 1]
                shares = torch.stack((shares * left, shares * (1 - left)), -1)
                shares = shares.flatten(1)
            total = total + shares @ leaves
        return total


class Catfish(nn.Module):
    """256 trees of catfishml."""

    def __init__(self, depth):
        super().__init__()
        spec = importlib.util.spec_from_file_location(
            "soft_tree", os.environ["CATFISHML"]
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.trees = nn.ModuleList(
            module.SoftNeuralTree(
                num_numeric_features=FEATURES,
                categorical_cardinalities=(),
                output_dim=2,
                depth=depth,
                linear_mode=True,
            )
            for _ in range(TREES)
        )

    def forward(self, x):
        return sum(tree(x)[0] for tree in self.trees)


def step(model, x):
    model(x).square().mean().backward()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_training_step(depth):
    torch.manual_seed(0)
    x = torch.randn(BATCH, FEATURES)
    ours = SoftTreeEnsemble("non_oblivious", depth, TREES, FEATURES, 2)
    others = {"tree by tree": OneByOne(ours)}
    torch.testing.assert_close(ours(x), others["tree by tree"](x), atol=1e-4, rtol=1e-3)  # fmt: skip
    if "CATFISHML" in os.environ:
        others["catfishml"] = Catfish(depth)
    step(ours, x)
    times = {name: [] for name in ("ours", *others)}
    for _ in range(RUNS):
        for name, model in {"ours": ours, **others}.items():
            times[name].append(cpu_seconds(lambda: step(model, x))[0])
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in medians.items():
        ratio = seconds / medians["ours"]
        print(f"depth {depth}, {name}: {seconds * 1e3:.1f} ms, {ratio:.1f}×")


@pytest.mark.parametrize("kind", ["non_oblivious", "oblivious"])
def test_matching(kind):
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = SoftTreeEnsemble(kind, 3, TREES, FEATURES, 2)
        states.append(model.state_dict())
    spec = infer_spec(model, torch.randn(8, FEATURES), kinds="all")
    # compiles what must be compiled
    match_weights(spec, *states)
    times = [
        cpu_seconds(lambda: match_weights(spec, *states))[0]
        for _ in range(RUNS)
    ]
    print(f"matching {kind}, depth 3: {statistics.median(times):.2f} s")
    assert statistics.median(times) < 2
