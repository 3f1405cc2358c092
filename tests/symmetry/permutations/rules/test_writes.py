"""Writes into a part of a tensor: the rest of the tensor is put around what was written."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, noise, parts_of
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import constant
from lightning_rebasin.symmetry.permutations.rules.base import LayoutNotCovered


def back(bench, view, base, piece, output=0, **arguments):
    """What lies behind a view after ``piece`` was written into it."""
    return bench.run(
        "tape.write_back",
        base.shape,
        view=f"aten.{view}",
        view_arguments=arguments,
        output=output,
        base=bench.tensor(base),
        piece=bench.tensor(piece),
    )


def test_a_written_slice_stands_beside_what_is_left():
    bench = Bench()
    written = back(
        bench,
        "slice",
        bench.units(2, 3),
        bench.units(2, 2),
        dim=1,
        start=1,
        end=None,
        step=1,
    )
    # columns 2 (left of the base) and 7, 8 (written) have the new elements 9 and 10, 11
    assert parts_of(written)[1,] == [9, 10, 11]
    assert [t for t in bench.tables("relation") if t[1] == [10, 11]] == [
        ("relation", [10, 11], [7, 8])
    ]


@pytest.mark.parametrize(
    ("start", "end", "which"), [(0, None, "piece"), (2, 2, "base")]
)
def test_everything_or_nothing_written(start, end, which):
    bench = Bench()
    base = bench.units(2, 3)
    piece = bench.units(2, 3) if which == "piece" else constant((2, 0))
    written = back(
        bench, "slice", base, piece, dim=1, start=start, end=end, step=1
    )
    assert (
        parts_of(written) == parts_of(piece if which == "piece" else base)
        and bench.tables() == []
    )


def test_every_second_column_is_put_back_in_its_place():
    bench = Bench()
    written = back(
        bench,
        "slice",
        bench.units(4),
        bench.units(2),
        dim=0,
        start=1,
        end=None,
        step=2,
    )
    # the rest comes first (6, 7), then the piece (8, 9), and both are put in the old order
    assert parts_of(written) == {(0,): [6, 8, 7, 9]}


@pytest.mark.parametrize(
    ("view", "output", "given"),
    [("select", 0, {"index": -1}), ("unbind", 2, {})],
)
def test_a_written_column_has_lost_its_dimension(view, output, given):
    bench = Bench()
    written = back(
        bench,
        view,
        bench.units(2, 3),
        bench.units(2),
        output=output,
        dim=1,
        **given,
    )
    assert (
        written.shape == (2, 3) and ("equal", [0, 1], [5, 6]) in bench.tables()
    )


@pytest.mark.parametrize(
    ("view", "shape", "given"),
    [
        ("t", (3, 2), {}),
        ("transpose", (3, 2), {"dim0": 0, "dim1": 1}),
        ("permute", (3, 2), {"dims": [1, 0]}),
        ("unsqueeze", (1, 2, 3), {"dim": 0}),
        ("view", (6,), {"size": [6]}),
    ],
)
def test_turned_and_reshaped_writes_are_undone(view, shape, given):
    bench = Bench()
    piece = bench.run(view, shape, self=bench.units(2, 3), **given)
    assert parts_of(back(bench, view, bench.units(2, 3), piece, **given)) == {
        (0,): [0, 1],
        (1,): [2, 3, 4],
    }


def test_three_turned_dimensions_come_back_in_their_order():
    bench = Bench()
    piece = bench.run(
        "permute", (4, 2, 3), self=bench.units(2, 3, 4), dims=[2, 0, 1]
    )
    written = back(
        bench, "permute", bench.units(2, 3, 4), piece, dims=[2, 0, 1]
    )
    assert parts_of(written) == {
        (0,): [0, 1],
        (1,): [2, 3, 4],
        (2,): [5, 6, 7, 8],
    }


def test_a_write_through_a_view_of_pieces_of_numbers_is_not_covered():
    bench = Bench()
    with pytest.raises(LayoutNotCovered):
        back(bench, "view", bench.units(2, 3), bench.units(2, 6), dtype=None)


def test_a_view_that_is_not_understood_pins_everything():
    bench = Bench()
    written = back(
        bench, "diagonal", bench.units(3, 3), bench.units(3), dim1=0, dim2=1
    )
    assert written.pinned == {0, 1} and len(bench.pins) == 9


@pytest.mark.parametrize(
    ("op", "src", "given"),
    [
        ("slice_scatter", (2, 2), {"start": 1, "end": 3, "step": 1}),
        ("select_scatter", (2,), {"index": 1}),
    ],
)
def test_a_copy_with_a_slice_replaced(op, src, given):
    bench = Bench()
    written = bench.run(
        op,
        (2, 3),
        self=bench.units(2, 3),
        src=bench.units(*src),
        dim=1,
        **given,
    )
    assert ("equal", [0, 1], [5, 6]) in bench.tables() and written.shape == (
        2,
        3,
    )


def test_writes_into_views():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (
                nn.Linear(4, 3),
                nn.Linear(4, 5),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            buffer = x.new_zeros(2, x.shape[0], 8)
            buffer[0, :, :3] = self.a(x)
            rest = buffer[0][:, 3:]
            rest += self.b(x)
            return self.c(buffer[0].relu_())

    assert exact(Writes(), noise(3, 4)).log10_symmetries == pytest.approx(
        log10((3, 1), (5, 1))
    )


def test_interleaved_writes_and_masked_writes():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).clone()
            h[h < 0] = 0
            y = torch.empty_like(h)
            y[:, ::2], y[:, 1::2] = h[:, 1::2] * 2, h[:, ::2]
            return self.b(y)

    assert exact(Writes(), noise(3, 4)).log10_symmetries == pytest.approx(
        log10((4, 2))
    )
