"""From a tape to labels and constraints; a rule that does not cover something says so, one that crashes is a bug."""

import pytest
import torch
from helpers.stages import stages, worked_example
from torch import nn

from lightning_rebasin.errors import (
    InternalError,
    TraceError,
    UntracedWarning,
)
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.rules import RULES
from lightning_rebasin.symmetry.permutations.rules.base import (
    LayoutNotCovered,
)
from lightning_rebasin.symmetry.permutations.run_rules import state_label


def two_layers():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_the_tape_and_the_labels_of_the_worked_example():
    example = worked_example()
    ops = [node.op for node in example.tape.nodes]
    assert ops == [
        "aten.t",
        "aten.addmm",
        "aten.relu",
        "aten.t",
        "aten.addmm",
    ]
    label = example.found.states["0.weight"]
    assert label.dims == ((0,), (1,)) and label.sizes == (2, 3)
    parts = [(p.sites, p.elements.ids.tolist()) for p in label.parts]
    assert parts == [((0,), [0, 1]), ((1,), [2, 3, 4])]


def test_an_axis_may_be_ordered_anew_in_each_row():
    store = Constraints()
    label = state_label(store, "w", (2, 3), {("w", 1): {0: 2}})
    parts = [(p.sites, p.elements.ids.tolist()) for p in label.parts]
    assert ((0, 1), [[2, 3, 4], [5, 6, 7]]) in parts
    # Each of the six lies in its row.
    (relation,) = [t for t in store.tables if t.kind == "relation"]
    assert relation.right.tolist() == [0, 0, 0, 1, 1, 1]


def test_an_axis_may_be_ordered_anew_in_each_block():
    """Four rows in two blocks, for each of which the three columns have an order of their own."""
    label = state_label(Constraints(), "w", (4, 3), {("w", 1): {0: 2}})
    assert label.dims == ((0, 1), (2,)) and label.sizes == (2, 2, 3)
    assert label.shape == (4, 3)
    joint = [p for p in label.parts if p.sites == (0, 2)]
    assert joint[0].elements.shape == (2, 3)


def test_another_tensor_is_not_refined():
    label = state_label(Constraints(), "v", (4, 3), {("w", 1): {0: 2}})
    assert [p.sites for p in label.parts] == [(0,), (1,)]


class Stacked(nn.Module):
    """Two matrices in one parameter, each between hidden units of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, 3, 4))
        self.b = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        return ((x @ self.a).relu() @ self.b).sum(0)


def test_stacked_matrices_have_an_order_each():
    found = stages(Stacked(), torch.zeros(5, 3)).found
    sites = {part.sites for part in found.states["a"].parts}
    assert (0, 2) in sites
    sizes = [
        g.shape
        for g in infer_spec(Stacked(), torch.zeros(5, 3)).groups.values()
    ]
    assert (2, 4) in sizes


def test_outputs_are_pinned():
    found = stages(nn.Linear(3, 4), torch.zeros(2, 3)).found
    last = found.store.tables[-1]
    assert last.reason == "it is an output" and last.where == "output"
    assert len(last.left) == 4


def uncovered(ctx, node):
    raise LayoutNotCovered


def crashing(ctx, node):
    raise IndexError("tuple index out of range")


def complaining(ctx, node):
    raise TraceError("say this")


def wrong_shape(ctx, node):
    return [state_label(ctx.store, "x", (7, 7), {})]


def test_a_layout_that_is_not_covered_is_pinned_and_reported(monkeypatch):
    monkeypatch.setitem(RULES._rules, "aten.relu", uncovered)
    with pytest.warns(
        UntracedWarning, match=r"aten\.relu has no rule \(aten\.relu in 1\)"
    ):
        spec = infer_spec(two_layers(), torch.zeros(1, 3))
    assert not spec.groups


def test_a_crash_of_a_rule_is_an_internal_error_that_names_rule_and_place(
    monkeypatch,
):
    monkeypatch.setitem(RULES._rules, "aten.relu", crashing)
    with pytest.raises(InternalError) as caught:
        infer_spec(two_layers(), torch.zeros(1, 3))
    message = str(caught.value)
    assert "'crashing'" in message and "aten.relu in 1" in message
    assert "IndexError: tuple index out of range" in message
    assert "a bug" in message and "report" in message
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_of_ours_is_passed_on(monkeypatch):
    monkeypatch.setitem(RULES._rules, "aten.relu", complaining)
    with pytest.raises(TraceError, match=r"^say this$"):
        infer_spec(two_layers(), torch.zeros(1, 3))


def test_labels_of_another_shape_are_not_believed(monkeypatch):
    monkeypatch.setitem(RULES._rules, "aten.relu", wrong_shape)
    with pytest.warns(UntracedWarning, match=r"aten\.relu has no rule"):
        spec = infer_spec(two_layers(), torch.zeros(1, 3))
    assert not spec.groups


def test_pointwise_operations_need_no_rule():
    """torch says itself that ``xlogy`` works position by position."""

    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = two_layers()

        def forward(self, x):
            h = self.layers[0](x)
            return self.layers[2](torch.special.xlog1py(h, h.exp()))

    assert "aten.special_xlog1py" not in RULES
    spec = infer_spec(Pointwise(), torch.zeros(1, 3))
    assert [g.size for g in spec.groups.values()] == [4]


def test_empty_results_need_no_rule(monkeypatch):
    """Nothing is left of a slice of length 0: whatever is computed on it has nothing to say."""

    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = two_layers()

        def forward(self, x):
            h = self.layers[0](x)
            nothing = torch.tanh(h[:0])
            return self.layers[2](h) + nothing.sum()

    monkeypatch.setitem(RULES._rules, "aten.tanh", crashing)
    spec = infer_spec(Empty(), torch.zeros(2, 3))
    assert [g.size for g in spec.groups.values()] == [4]
