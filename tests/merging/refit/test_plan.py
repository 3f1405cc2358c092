"""Which layers are found, where they are judged, and what is left with which reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rebasin.merging.refit.fitted import Plan
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


def plan_of(module: nn.Module, x: Tensor) -> Plan:
    return make_plan(module, record(module.eval(), Example((x,))), len(x))


def reasons(plan: Plan) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan.left}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(
            x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        )


def test_a_residual_block_is_judged_as_the_docstring_says() -> None:
    plan = plan_of(Residual(), torch.randn(2, 3, 5, 5))
    first, second = plan.fitted
    assert [first.name, second.name] == ["conv1.weight", "conv2.weight"]
    assert [place.op for place in first.steps] == [_norm_op(first.steps[0].op)]
    assert first.norm is not None
    assert not first.joins
    assert [place.op for place in second.steps][1:] == ["aten.add"]
    assert second.joins
    assert plan.left == ()


def _norm_op(op: str) -> str:
    assert "batch_norm" in op
    return op


def test_layers_come_in_the_order_of_the_pass() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)
    )
    names = [layer.name for layer in plan_of(net, torch.randn(2, 3)).fitted]
    assert names == ["0.weight", "1.weight", "3.weight"]


class Use(nn.Module):
    """A network of one small function."""

    def __init__(self, use: Callable[[Use, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4, bias=False)
        self.gain = nn.Parameter(torch.arange(1.0, 5.0))
        self.table = nn.Embedding(7, 4)
        self.register_buffer("fixed", torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


TIED = "its weight is used 2 times in one pass"
LEFT: dict[str, tuple[Callable[[Use, Tensor], Tensor], dict[str, str]]] = {
    "tied": (
        lambda m, x: m.b(torch.relu(m.b(x))) * m.gain,
        {"b.weight": TIED, "gain": ""},
    ),
    "tied as embedding and head": (
        lambda m, x: m.table(x.argmax(1)) @ m.table.weight.t(),
        {
            "table.weight": f"the average of the tables returns the average of the ends; {TIED}"
        },
    ),
    "buffer": (
        lambda m, x: x @ m.fixed,
        {"fixed": "it is a buffer, not a parameter"},
    ),
    "computed": (
        lambda m, x: x @ (m.b.weight * 2),
        {"b.weight": "aten.mul is not solved"},
    ),
    "gain behind a layer": (
        lambda m, x: x + m.gain * m.b(x),
        {"gain": "the layer in front is fitted through this gain"},
    ),
    "added": (
        lambda m, x: torch.relu(x) + m.gain,
        {
            "gain": "it is only added, and its average adds the average of the ends"
        },
    ),
    "slope": (
        lambda m, x: torch.prelu(x, m.gain),
        {"gain": "aten._prelu_kernel is not solved"},
    ),
    "unused": (lambda m, x: m.b(x), {"a.weight": "the pass does not use it"}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_named_with_its_reason(name: str) -> None:
    use, expected = LEFT[name]
    found = reasons(plan_of(Use(use), torch.randn(3, 4)))
    for weight, reason in expected.items():
        assert found.get(weight, "") == reason


@pytest.mark.parametrize("name", LEFT)
def test_every_parameter_is_fitted_or_named(name: str) -> None:
    module = Use(LEFT[name][0])
    plan = plan_of(module, torch.randn(3, 4))
    named = {layer.name for layer in plan.left}
    for layer in plan.fitted:
        named |= layer.written
    assert {name for name, _ in module.named_parameters()} <= named
    assert len(reasons(plan)) == len(plan.left)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_cell_is_left_and_the_head_behind_it_is_solved(
    cell: type[nn.RNNBase],
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(4, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0])

    plan = plan_of(Net(), torch.randn(3, 6, 4))
    assert [layer.name for layer in plan.fitted] == ["head.weight"]
    found = reasons(plan)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    for name in names:
        assert found[f"cell.{name}"] == "it belongs to a recurrent cell"


def test_between_the_uses_of_a_tied_layer_others_are_solved() -> None:
    plan = plan_of(
        Use(lambda m, x: m.a(torch.tanh(m.b(torch.tanh(m.a(x)))))),
        torch.randn(3, 4),
    )
    assert [layer.name for layer in plan.fitted] == ["b.weight"]
    assert reasons(plan)["a.weight"] == TIED


def test_data_times_data_is_no_layer() -> None:
    plan = plan_of(Use(lambda m, x: x @ x.t()), torch.randn(3, 4))
    assert plan.fitted == ()
