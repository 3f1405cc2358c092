"""What a rule sees of the operation: arguments by name, labels and shapes."""

import numpy as np
import pytest
from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.trace.tape import Node, Value


def operation(bench, out_shapes=((2, 3),), **arguments):
    outputs = [
        bench.ctx.tape.new_value(Value(shape, "operation"))
        for shape in out_shapes
    ]
    bench.ctx.needed = np.zeros(len(bench.ctx.tape.values), dtype=bool)
    return Operation(bench.ctx, Node("aten.thing", arguments, outputs, ""))


def test_an_operation_shows_its_arguments():
    bench = Bench()
    x, index = bench.tensor(bench.units(2, 3)), bench.constant([1, 0])
    op = operation(
        bench,
        ((2, 3), (5,)),
        self=x,
        index=index,
        dim=-1,
        other=None,
        tensors=[x, index],
    )
    assert (op.name, op["dim"], op.get("missing"), op.dim(3)) == (
        "aten.thing",
        -1,
        None,
        2,
    )
    assert (
        op.has_tensor("self")
        and not op.has_tensor("other")
        and not op.has_tensor("missing")
    )
    assert (
        op.shape("index") == (2,)
        and op.out_shapes == [(2, 3), (5,)]
        and op.out_shape == (2, 3)
    )
    assert parts_of(op.label()) == {(0,): [0, 1], (1,): [2, 3, 4]}
    assert [label.shape for label in op.labels("self", "other", "index")] == [
        (2, 3),
        (2,),
    ]
    assert op.tensors == [x, index, x, index] and not op.needs(0)
    assert [label.pinned for label in op.fixed_results(1)] == [{0}]
    with pytest.raises(KeyError):
        op["missing"]


def test_a_number_has_the_dimensions_zero_and_minus_one():
    op = operation(Bench(), dim=-1)
    assert (
        op.dim(0) == 0
        and dims_of(-1, 0) == []
        and dims_of((0, -1), 2) == [0, 1]
    )
