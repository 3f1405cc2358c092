"""What rules can do with labels, and what becomes of an operation without one."""

import numpy as np
import pytest
import torch
from helpers.labels import Bench, noise, parts_of

from lightning_rebasin.errors import UntracedWarning
from lightning_rebasin.symmetry import infer_spec
from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.join import Wishes
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Piece,
    Pieces,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.registry import RULES
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, Value


def test_first_labels_come_from_the_state_and_from_what_varies():
    bench = Bench()
    weight = bench.units(2, 3)
    tape = Tape()
    ctx = Context(Constraints(), tape, {"w": weight}, Wishes())
    state = Ref(tape.new_value(Value((2, 3), "state", "w")))
    constant = Ref(tape.new_value(Value((2, 3), "constant", varying=(1,))))
    given = Ref(tape.new_value(Value((2, 3), "input")))
    assert (
        ctx.label(state).parts[0].elements.key == weight.parts[0].elements.key
    )
    assert ctx.label(constant).pinned == {1} and ctx.label(given).pinned == {
        0,
        1,
    }


def test_a_lazy_label_is_made_once():
    bench, made = Bench(), []
    x = bench.tensor(bench.units(2, 3))
    bench.ctx.known[x.value] = lambda: made.append(0) or bench.units(2, 3)
    assert (
        bench.ctx.label(x).shape == bench.ctx.label(x).shape == (2, 3)
        and len(made) == 1
    )


def test_cutting_a_piece_out_of_nested_concatenations_gives_the_piece():
    bench = Bench()
    piece = bench.units(2, 3)
    inner, whole = (
        bench.tensor(bench.units(2, 5)),
        bench.tensor(bench.units(2, 9)),
    )
    bench.ctx.concatenated[inner.value] = Pieces(
        1, [Piece(0, 3, bench.tensor(piece))]
    )
    bench.ctx.concatenated[whole.value] = Pieces(
        1, [Piece(0, 4, bench.tensor(bench.units(2, 4))), Piece(4, 9, inner)]
    )
    cut = bench.ctx.piece_of(whole, 1, np.array([5, 6]))
    assert parts_of(cut) == {(0,): [0, 1], (1,): [3, 4]}
    for dim, index in ((0, [5, 6]), (1, [5, 7]), (1, [3, 4]), (1, [])):
        assert (
            bench.ctx.piece_of(whole, dim, np.array(index, dtype=np.int64))
            is None
        )


def test_meeting_reducing_and_normalising():
    bench = Bench()
    met = bench.ctx.meet(bench.units(2, 3), bench.units(1, 3))
    assert parts_of(met) == {(0,): [0, 1], (1,): [2, 3, 4]}
    assert bench.tables() == [("equal", [2, 3, 4], [5, 6, 7])]
    assert parts_of(bench.ctx.normalise(met, [1])) == parts_of(
        met
    ) and bench.tables("mark") == [("mark", [2, 3, 4], [0, 0, 0])]
    assert parts_of(bench.ctx.pin_and_reduce(met, [0], "because")) == {
        (0,): [2, 3, 4]
    }
    assert bench.pins == {0, 1}


def test_an_unknown_operation_pins_everything():
    bench = Bench()
    x = bench.tensor(bench.units(2, 3))
    out = bench.ctx.tape.new_value(Value((4, 3), "operation"))
    (result,) = unknown(bench.ctx, Node("aten.thing", {"self": x}, [out], ""))
    assert (
        result.shape == (4, 3)
        and result.pinned == {0, 1}
        and bench.pins == {0, 1, 2, 3, 4}
    )


class Twice(torch.nn.Module):
    """Two layers around an operation that is made up for a test."""

    def __init__(self):
        super().__init__()
        self.before, self.after = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.after(covered_or_not(self.before(x)))


@torch.library.custom_op("rebasin_tests::covered_or_not", mutates_args=())
def covered_or_not(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def refuse(ctx, op):
    raise LayoutNotCovered("not this layout")


def test_a_layout_that_a_rule_does_not_cover_is_pinned_and_reported():
    net, x = Twice(), noise(2, 4).float()
    with RULES.added(
        "rebasin_tests.covered_or_not", lambda ctx, op: [op.label("x")]
    ):
        assert [
            group.size for group in infer_spec(net, x).groups.values()
        ] == [3]
    with (
        RULES.added("rebasin_tests.covered_or_not", refuse),
        pytest.warns(UntracedWarning, match=r"covered_or_not has no rule"),
    ):
        assert not infer_spec(net, x).groups
