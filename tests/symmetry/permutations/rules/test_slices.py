"""Slices: a dead slice constrains nothing, a used one tells its units apart from the others."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.trace.tape import Ref


@pytest.mark.parametrize(
    ("op", "given", "columns"),
    [
        ("slice", {"start": 1, "end": None, "step": 2}, [3, 5]),
        ("slice", {"start": None, "end": -1, "step": 1}, [2, 3, 4]),
        ("narrow", {"start": 1, "length": 2}, [3, 4]),
    ],
)
def test_some_columns_are_kept(op, given, columns):
    bench = Bench()
    result = bench.run(
        op, (2, len(columns)), self=bench.units(2, 4), dim=-1, **given
    )
    assert (
        parts_of(result) == {(0,): [0, 1], (1,): columns}
        and bench.tables() == []
    )


def test_pieces_of_a_split_follow_each_other():
    bench = Bench()
    first, empty, second = bench.run(
        "split", (2, 1), (2, 0), (2, 2), self=bench.units(2, 3), dim=1
    )
    assert [e.ids.tolist() for e in first.pending] == [[2]] and parts_of(
        second
    )[1,] == [3, 4]
    assert empty.shape == (2, 0)


def test_a_piece_of_a_concatenation_is_the_piece():
    bench = Bench()
    pieces = [bench.tensor(bench.units(2, 3)), bench.tensor(bench.units(2, 4))]
    bench.run("cat", (2, 7), tensors=pieces, dim=1)
    number = len(bench.ctx.tape.values) - 1
    bench.ctx.known[number] = lambda: pytest.fail(
        "the concatenation was put together"
    )
    cut = bench.run(
        "slice", (2, 2), self=Ref(number), dim=1, start=4, end=6, step=1
    )
    assert parts_of(cut)[1,] == [8, 9]


def test_one_column_is_pending_and_may_order_other_axes():
    bench = Bench()
    result = bench.run(
        "select", (2, 4), self=bench.units(2, 3, 4), dim=1, index=-1
    )
    assert [e.ids.tolist() for e in result.pending] == [[4]]
    wishes = [
        (w.inner.ids.tolist(), w.outer.ids.tolist())
        for w in bench.ctx.wishes.found.values()
    ]
    assert wishes == [([0, 1], [2, 3, 4]), ([5, 6, 7, 8], [2, 3, 4])]


def test_what_nobody_needs_of_an_unbound_tensor_picks_nothing_out():
    bench = Bench()
    results = bench.run(
        "unbind",
        (2,),
        (2,),
        (2,),
        self=bench.units(2, 3),
        dim=1,
        needed=[0, 2],
    )
    assert [label.pending[0].ids.tolist() for label in results] == [
        [2],
        [2],
        [4],
    ]


@pytest.mark.parametrize(
    ("op", "given", "expected"),
    [
        ("flip", {"dims": [1]}, {(0,): [0, 1], (1,): [4, 3, 2]}),
        (
            "roll",
            {"shifts": [1], "dims": [-1]},
            {(0,): [0, 1], (1,): [4, 2, 3]},
        ),
        ("roll", {"shifts": [3], "dims": []}, {(0,): [1, 0], (1,): [2, 3, 4]}),
    ],
)
def test_turned_and_shifted_columns(op, given, expected):
    bench = Bench()
    assert (
        parts_of(bench.run(op, (2, 3), self=bench.units(2, 3), **given))
        == expected
    )


def test_picking_a_row_of_a_part_over_both_axes_wishes_for_nothing():
    bench = Bench()
    label = Label(
        ((0,), (1,)), (2, 3), (Part((0, 1), bench.store.fresh((2, 3))),)
    )
    row = bench.run("select", (3,), self=label, dim=0, index=1)
    assert parts_of(row) == {(0,): [3, 4, 5]} and not bench.ctx.wishes.found


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (lambda h: torch.cat([h, -h], 1)[:, :8], [(8, 1)]),
        (
            lambda h: torch.cat([t + 1 for t in h.unbind(1)]).view(8, -1).T,
            [(8, 0)],
        ),
        (lambda h: h.roll(3, 1) + h.flip(1).flip(1).roll(3, 1), [(8, 1)]),
        (lambda h: torch.cat(h.chunk(2, 1)[::-1], 1), [(4, 2)]),
    ],
)
def test_sliced_units(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.o = kind(3, 5, num_layers=2), nn.Linear(5, 2)

        def forward(self, x):
            return self.o(self.r(x)[0])

    assert exact(Net(), noise(4, 2, 3)).log10_symmetries == pytest.approx(
        log10((5, 2))
    )


def test_stacked_experts_are_ordered_one_by_one():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 5), nn.Linear(5, 2)
            self.up, self.bias = (
                nn.Parameter(torch.zeros(3, 5, 4)),
                nn.Parameter(torch.zeros(3, 4)),
            )
            self.down = nn.Parameter(torch.zeros(3, 4, 5))

        def forward(self, x):
            x = self.a(x)
            for e in range(3):
                x = x + F.relu(x @ self.up[e] + self.bias[e]) @ self.down[e]
            return self.o(x)

    assert exact(Experts(), noise(2, 4)).log10_symmetries == pytest.approx(
        log10((5, 1), (4, 3))
    )
