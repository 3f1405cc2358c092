"""What the results of a tape depend on."""

import numpy as np

from lightning_rebasin.symmetry.trace.tape import (
    Node,
    Ref,
    Tape,
    Value,
    references,
)


def tape():
    """``y = (x · w) + c``; ``v`` is read by a dead operation only, ``u`` is returned as it is."""
    found = Tape()
    x = found.new_value(Value((3,), "input"))
    w = found.new_value(Value((3,), "state", "w"))
    c = found.new_value(Value((3,), "constant"))
    v = found.new_value(Value((3,), "state", "v"))
    u = found.new_value(Value((3,), "state", "u"))
    product = found.new_value(Value((3,), "operation"))
    dead = found.new_value(Value((3,), "operation"))
    y = found.new_value(Value((3,), "operation"))
    found.nodes = [
        Node("aten.mul", {"self": Ref(x), "other": Ref(w)}, [product], ""),
        Node("aten.neg", {"self": Ref(v)}, [dead], ""),
        Node("aten.add", {"self": Ref(product), "other": Ref(c)}, [y], ""),
    ]
    found.results = [y, u]
    return found


def test_values_are_numbered_in_order():
    found = Tape()
    numbers = [found.new_value(Value((1,), "input")) for _ in range(3)]
    assert numbers == [0, 1, 2]


def test_dead_operations_are_left_out():
    live, needed = tape().live_nodes()
    assert [node.op for node in live] == ["aten.mul", "aten.add"]
    assert np.flatnonzero(needed).tolist() == [0, 1, 2, 4, 5, 7]


def test_what_hands_a_value_to_python_counts_without_a_result():
    found = tape()
    read = Node("aten.is_nonzero", {"self": Ref(6)}, [], "")
    found.nodes.append(read)
    live, _ = found.live_nodes()
    assert [node.op for node in live] == [
        "aten.mul",
        "aten.neg",
        "aten.add",
        "aten.is_nonzero",
    ]
    assert found.touched() == {"w", "u", "v"}


def test_touched_parameters_are_used_or_returned():
    assert tape().touched() == {"w", "u"}


def test_what_depends_on_an_input():
    assert np.flatnonzero(tape().from_data()).tolist() == [0, 5, 7]


def test_references_inside_containers():
    argument = {"a": [Ref(1), 3, (Ref(2), None)], "b": {"c": Ref(1)}}
    assert [ref.value for ref in references(argument)] == [1, 2, 1]
