"""Which layers are found, where they are judged, and what is left with which reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rebasin.merging.refit.fitted import Plan
from lightning_rebasin.merging.refit.leftovers import CORRECTED
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


TIED = f"its weight is used 2 times in one pass; {CORRECTED}"
LEFT: dict[str, tuple[Callable[[Use, Tensor], Tensor], dict[str, str]]] = {
    "tied": (
        lambda m, x: m.b(torch.relu(m.b(x))) * m.gain,
        {"b.weight": TIED, "gain": ""},
    ),
    "tied as embedding and head": (
        lambda m, x: m.table(x.argmax(1)) @ m.table.weight.t(),
        {
            "table.weight": "the average of the tables returns the average of the ends; "
            "its weight is used 2 times in one pass"
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
def test_a_recurrent_cell_is_corrected_with_all_its_steps(
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
    layers = {layer.name: layer for layer in plan.fitted}
    assert not layers["head.weight"].only_corrected
    hidden = layers["cell.weight_hh_l0"]
    assert hidden.only_corrected
    # the first of six steps starts from zeros, of which nothing can be learnt
    assert len(hidden.uses) == 5
    found = reasons(plan)
    recurrent = "it belongs to a recurrent cell"
    assert found["cell.weight_hh_l0"] == f"{recurrent}; {CORRECTED}"
    assert found["cell.bias_ih_l0"] == recurrent


def test_a_tied_layer_is_corrected_where_it_runs_first() -> None:
    plan = plan_of(
        Use(lambda m, x: m.a(torch.tanh(m.b(torch.tanh(m.a(x)))))),
        torch.randn(3, 4),
    )
    names = [(x.name, x.only_corrected, len(x.uses)) for x in plan.fitted]
    assert names == [("a.weight", True, 2), ("b.weight", False, 1)]
    assert plan.fitted[0].bias is not None


def test_uses_that_read_a_weight_differently_are_not_corrected() -> None:
    use: Callable[[Use, Tensor], Tensor]
    use = lambda m, x: torch.tanh(x @ m.b.weight) @ m.b.weight.t()
    found = reasons(plan_of(Use(use), torch.randn(3, 4)))
    assert found["b.weight"] == "its weight is used 2 times in one pass"


def test_data_times_data_is_no_layer() -> None:
    plan = plan_of(Use(lambda m, x: x @ x.t()), torch.randn(3, 4))
    assert plan.fitted == ()
