"""How far a layer's output is followed, and what is taken along."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rebasin.merging.refit.fitted import FittedLayer
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


class Net(nn.Module):
    """One linear layer ``w`` with what a test wants behind it."""

    def __init__(self, use: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.before = nn.Linear(4, 3)
        self.w = nn.Parameter(torch.randn(4, 3))
        self.after = nn.Linear(4, 3)
        self.bias = nn.Parameter(torch.arange(3.0))
        self.gain = nn.Parameter(torch.arange(1.0, 4.0))
        self.one = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def followed(use: Callable[[Net, Tensor], Tensor]) -> FittedLayer:
    module = Net(use).eval()
    x = torch.randn(5, 4)
    plan = make_plan(module, record(module, Example((x,))), 5)
    (found,) = [layer for layer in plan.fitted if layer.name == "w"]
    return found


def summary(layer: FittedLayer) -> tuple[list[str], float, bool, bool, int]:
    ops = [place.op.removeprefix("aten.") for place in layer.steps]
    ops = ["norm" if "batch_norm" in op else op for op in ops]
    return (
        ops,
        layer.factor,
        layer.joins,
        layer.bias is not None,
        len(layer.gains),
    )


WAYS: dict[str, tuple[Callable[[Net, Tensor], Tensor], object]] = {
    "nothing": (lambda m, x: torch.relu(x @ m.w), ([], 1, False, False, 0)),
    "bias": (
        lambda m, x: torch.relu(x @ m.w + m.bias),
        (["add"], 1, False, True, 0),
    ),
    "bias in front": (
        lambda m, x: torch.relu(m.bias + x @ m.w),
        (["add"], 1, False, True, 0),
    ),
    "numbers": (
        lambda m, x: torch.relu(3 * (x @ m.w) / 2),
        (["mul", "div"], 1.5, False, False, 0),
    ),
    "division of a number": (
        lambda m, x: 1 / (x @ m.w),
        ([], 1, False, False, 0),
    ),
    "stream": (
        lambda m, x: torch.relu(m.before(x) - x @ m.w),
        (["sub"], -1, True, False, 0),
    ),
    "stream with a factor": (
        lambda m, x: torch.relu(torch.add(m.before(x), x @ m.w, alpha=2)),
        (["add"], 2, True, False, 0),
    ),
    "stream that is not final": (
        lambda m, x: torch.relu(x @ m.w + m.after(x)),
        ([], 1, False, False, 0),
    ),
    "gain, then stream": (
        lambda m, x: torch.relu(m.before(x) + m.gain * (x @ m.w + m.bias)),
        (["add", "mul", "add"], 1, True, True, 1),
    ),
    "one gain for all": (
        lambda m, x: torch.relu(m.one * (x @ m.w)),
        ([], 1, False, False, 0),
    ),
    "norm": (
        lambda m, x: torch.relu(m.norm(x @ m.w + m.bias)),
        (["add", "norm"], 1, False, True, 0),
    ),
    "norm behind a stream": (
        lambda m, x: torch.relu(m.norm(m.before(x) + x @ m.w)),
        (["add"], 1, True, False, 0),
    ),
    "seen by two": (
        lambda m, x: F.relu(y := x @ m.w) + y,
        ([], 1, False, False, 0),
    ),
    "doubled by itself": (
        lambda m, x: (y := x @ m.w) + y,
        ([], 1, False, False, 0),
    ),
    "spread": (
        lambda m, x: (x @ m.w)[:, None] + torch.ones(2, 1),
        ([], 1, False, False, 0),
    ),
    "moves": (
        lambda m, x: torch.relu((x @ m.w).t() + m.bias[:, None]),
        (["add"], 1, False, True, 0),
    ),
    "a part": (lambda m, x: (x @ m.w)[:, :2] * 2, ([], 1, False, False, 0)),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_way_to_the_target(name: str) -> None:
    use, expected = WAYS[name]
    assert summary(followed(use)) == expected


def test_a_bias_in_another_layout_is_that_of_each_output() -> None:
    layer = followed(WAYS["moves"][0])
    assert layer.bias is not None
    assert layer.bias.index.tolist() == [[0, 1, 2]]


def test_a_norm_is_read_per_output() -> None:
    layer = followed(WAYS["norm"][0])
    norm = layer.norm
    assert norm is not None
    assert norm.mean.name == "norm.running_mean"
    assert norm.gain is not None
    assert norm.gain.index.tolist() == [[0, 1, 2]]
    assert norm.epsilon == pytest.approx(1e-5)
    assert layer.written >= {"w", "bias", "norm.weight", "norm.running_var"}


def test_a_norm_behind_a_stream_is_a_layer_of_its_own() -> None:
    module = Net(WAYS["norm behind a stream"][0]).eval()
    x = torch.randn(5, 4)
    plan = make_plan(module, record(module, Example((x,))), 5)
    (norm,) = [x for x in plan.fitted if x.name == "norm.weight"]
    assert norm.norm is not None
    assert norm.bias is not None
    assert norm.weight.index.shape == (3, 1, 1)
