"""Writes into memory become new values; constants, contractions and places are noted."""

import pytest
import torch

from lightning_rebasin.symmetry.trace.mode import Recorder


def taped(function, *inputs, known=None):
    """The tape of a function of tensors."""
    recorder = Recorder(known or {})
    for x in inputs:
        recorder.add_input(x)
    with torch.no_grad(), recorder:
        result = function(*inputs)
    return recorder.finish([result]), recorder


def ops(tape):
    return [node.op for node in tape.nodes]


def test_the_example_of_the_docstring():
    def run(x):
        w = torch.zeros(2, 3)
        w[0].fill_(1)
        return w.sum()

    tape, _ = taped(run, torch.zeros(1))
    assert ops(tape) == [
        "aten.zeros",
        "aten.select",
        "aten.fill",
        "aten.select",
        "tape.write_back",
        "aten.sum",
    ]
    assert "aten.select" not in [n.op for n in tape.live_nodes()[0]]
    written = tape.nodes[-2]
    assert written.arguments["view"] == "aten.select"
    # the sum reads the whole tensor as it is after the write
    assert tape.nodes[-1].arguments["self"].value == written.outputs[0]


def test_a_view_taken_before_a_write_is_looked_at_anew():
    def run(x):
        y = x.clone()
        view = y[1:]
        y.mul_(2)
        return view.neg()

    tape, _ = taped(run, torch.ones(3))
    assert ops(tape) == [
        "aten.clone",
        "aten.slice",
        "aten.mul",
        "aten.slice",
        "aten.neg",
    ]
    multiplied, again, negated = tape.nodes[2:]
    assert again.arguments["self"].value == multiplied.outputs[0]
    assert negated.arguments["self"].value == again.outputs[0]


def test_what_is_written_is_kept_for_putting_back():
    buffer = torch.tensor([1.0, 2.0])
    _, recorder = taped(
        lambda x: buffer.add_(x).mul_(2), torch.ones(2), known={"b": buffer}
    )
    # once, as it was before the first write
    ((owner, copy),) = recorder.saved
    assert owner is buffer and copy.tolist() == [1.0, 2.0]


def test_constants_know_along_which_dimensions_they_vary():
    constant = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    recorder = Recorder({}, [constant])
    assert recorder.tape.values[0].origin == "constant"
    assert recorder.tape.values[0].varying == (1,)
    mask = torch.full((2, 2), float("nan"))
    assert Recorder({}, [mask]).tape.values[0].varying == ()


def test_integer_constants_keep_their_numbers():
    def run(x):
        return x[torch.tensor([2, 0])]

    tape, _ = taped(run, torch.zeros(3))
    arrays = [v.array.tolist() for v in tape.values if v.array is not None]
    assert [2, 0] in arrays


def test_random_numbers_are_not_constant():
    tape, _ = taped(lambda x: x + torch.rand(3), torch.zeros(3))
    made = tape.nodes[0]
    assert made.op == "aten.rand"
    assert tape.values[made.outputs[0]].origin == "operation"


def test_contractions_are_counted_for_each_operation_apart():
    def run(x):
        y = x @ x
        z = torch.addmm(y, x, x)
        return (z @ x).relu()

    tape, _ = taped(run, torch.eye(2))
    found = [(node.op, node.contraction) for node in tape.nodes]
    assert found == [
        ("aten.mm", 0),
        ("aten.addmm", 0),
        ("aten.mm", 1),
        ("aten.relu", -1),
    ]


@pytest.mark.parametrize(("path", "where"), [([], ""), (["a.b"], " in a.b")])
def test_nodes_say_where_they_ran(path, where):
    recorder = Recorder({})
    x = torch.zeros(2)
    recorder.add_input(x)
    recorder.module_path += path
    with recorder:
        x.neg()
    assert recorder.tape.nodes[0].where == "aten.neg" + where
